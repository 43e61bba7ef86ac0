"""labml-nn's pre-norm transformer layer: models.py, mha.py, feed_forward.py of its transformers."""

from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import attend, check_heads, merge_heads, softmax_weights
from vit_jax.layers.dropout import Dropout, drop_path, split_key
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.norm import layer_norm


class SelfAttention(nnx.Module):
    """Softmax attention with a Linear each for queries, keys and values, scale head_dim ** -0.5.

    Args:
      dim: width of a token, divisible by `num_heads`.
      attn_drop_rate: dropout on the attention weights.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.scale = check_heads(dim, num_heads) ** -0.5
        self.num_heads = num_heads
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = torch_linear(dim, dim, **types)
        self.key = torch_linear(dim, dim, **types)
        self.value = torch_linear(dim, dim, **types)
        self.output = torch_linear(dim, dim, **types)
        self.dropout = Dropout(attn_drop_rate)

    def _heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], self.num_heads, -1)  # (B, N, heads, head_dim)
        return x.transpose(0, 2, 1, 3)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        x = attend(q, k, v, scale=self.scale, dropout=self.dropout, key=key)
        return self.output(merge_heads(x))

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens gives the values, before dropout."""
        q, k = (self._heads(linear(x)) for linear in (self.query, self.key))
        return softmax_weights(q, k, scale=self.scale)


class FeedForward(nnx.Module):
    """Linear, ReLU, Dropout, Linear."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layer1 = torch_linear(dim, hidden_dim, **types)
        self.layer2 = torch_linear(hidden_dim, dim, **types)
        self.dropout = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        return self.layer2(self.dropout(jax.nn.relu(self.layer1(x)), key))


class TransformerLayer(nnx.Module):
    """y = x + self_attn(norm_self_attn(x)); the result is y + feed_forward(norm_ff(y)).

    Args:
      dim: width of a token; num_heads: a divisor of it.
      mlp_dim: hidden width of the feed-forward.
      norm_eps: epsilon of both LayerNorms.
      drop_rate: dropout after the attention, inside the feed-forward and after it.
      attn_drop_rate: dropout on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm_eps: float,
        drop_rate: float,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm_self_attn = layer_norm(dim, norm_eps, **types)
        self.self_attn = SelfAttention(dim, num_heads, attn_drop_rate=attn_drop_rate, **types)
        self.norm_ff = layer_norm(dim, norm_eps, **types)
        self.feed_forward = FeedForward(dim, mlp_dim, drop_rate=drop_rate, **types)
        self.dropout = Dropout(drop_rate)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        attn_key, drop1_key, path1_key, hidden_key, drop2_key, path2_key = split_key(key, 6)
        attn = self.dropout(self.self_attn(self.norm_self_attn(x), key=attn_key), drop1_key)
        x = x + drop_path(attn, drop_path_rate, path1_key)
        mlp = self.dropout(self.feed_forward(self.norm_ff(x), key=hidden_key), drop2_key)
        return x + drop_path(mlp, drop_path_rate, path2_key)
