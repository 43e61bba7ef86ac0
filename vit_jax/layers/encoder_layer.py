"""PyTorch's post-norm transformer encoder: `nn.TransformerEncoder` over its default layer."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import MultiheadAttention
from vit_jax.layers.dropout import Dropout, drop_path, split_key
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.stack import run_layers, stack_layers


class TransformerEncoderLayer(nnx.Module):
    """y = norm1(x + attn(x)); the result is norm2(y + linear2(relu(linear1(y)))).

    `torch.nn.TransformerEncoderLayer` with its defaults `norm_first=False` and ReLU, its names and
    its initialisation (Vaswani et al. 2017, section 3.1).

    Args:
      dim: width of a token; num_heads: a divisor of it.
      mlp_dim: hidden width of the feed-forward.
      batch_first: False lets the first axis, here the batch, be the sequence, as PyTorch does: an
        element attends to those of the same second index.
      norm_eps: epsilon of both LayerNorms.
      drop_rate: dropout after the attention, inside the feed-forward and after it.
      attn_drop_rate: dropout on the attention weights.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        batch_first: bool,
        norm_eps: float,
        drop_rate: float,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.batch_first = batch_first
        self.self_attn = MultiheadAttention(dim, num_heads, attn_drop_rate=attn_drop_rate, **types)
        self.linear1 = torch_linear(dim, mlp_dim, **types)
        self.linear2 = torch_linear(mlp_dim, dim, **types)
        self.norm1 = layer_norm(dim, norm_eps, **types)
        self.norm2 = layer_norm(dim, norm_eps, **types)
        self.dropout = Dropout(drop_rate)

    def _attend(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.batch_first:
            return self.self_attn(x, key=key)
        return self.self_attn(x.swapaxes(0, 1), key=key).swapaxes(0, 1)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        attn_key, drop1_key, path1_key, hidden_key, drop2_key, path2_key = split_key(key, 6)
        attn = self.dropout(self._attend(x, attn_key), drop1_key)
        x = self.norm1(x + drop_path(attn, drop_path_rate, path1_key))
        hidden = self.dropout(jax.nn.relu(self.linear1(x)), hidden_key)
        mlp = self.dropout(self.linear2(hidden), drop2_key)
        return self.norm2(x + drop_path(mlp, drop_path_rate, path2_key))


class TransformerEncoder(nnx.Module):
    """Layers in a row and nothing after the last, as `torch.nn.TransformerEncoder(norm=None)`.

    PyTorch copies one layer, so that all start equal; here each starts on its own.

    Args:
      depth: layers.
      scan: keeps the layers stacked: see `ScannedLayers`.
      **layer: arguments of `TransformerEncoderLayer`.
    """

    def __init__(self, depth: int, *, scan: bool, **layer: Any):
        self.layers = stack_layers([TransformerEncoderLayer(**layer) for _ in range(depth)], scan)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rates: Sequence[float],
        remat: str,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        return run_layers(self.layers, x, drop_path_rates=drop_path_rates, key=key, remat=remat)
