"""The attention of CaiT: talking heads (Shazeer et al. 2020, 2003.02436), and class attention.

Touvron et al. 2021 (2103.17239, sections 3 and 4); timm 1.0.31 (models/cait.py).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention, attend, check_heads, merge_heads
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.linear import Linear


def _mixed(
    linear: Linear, x: Float[Array, "batch heads queries keys"]
) -> Float[Array, "batch heads queries keys"]:
    """A Linear over the heads."""
    return linear(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


class TalkingHeadsAttention(Attention):
    """Attention whose heads are mixed by a Linear before the softmax, and by one after it.

    Args:
      dim, num_heads, **kind: see `Attention`.
    """

    def __init__(self, dim: int, num_heads: int, **kind: Any):
        super().__init__(dim, num_heads, **kind)
        names = ("kernel_init", "bias_init", "dtype", "param_dtype", "rngs")
        kind = {name: kind[name] for name in names}
        self.proj_l = Linear(num_heads, num_heads, **kind)
        self.proj_w = Linear(num_heads, num_heads, **kind)

    def weights(self, q: jax.Array, k: jax.Array, *context: jax.Array) -> jax.Array:
        """After the second mixing: a row may have negative entries, and a sum that is not one."""
        del context
        scores = jnp.matmul(q * jnp.asarray(self.scale, q.dtype), k.swapaxes(-1, -2))
        scores = _mixed(self.proj_l, scores)
        wide = jnp.promote_types(scores.dtype, jnp.float32)
        weights = jax.nn.softmax(scores.astype(wide), axis=-1).astype(scores.dtype)
        return _mixed(self.proj_w, weights)


class ClassAttention(nnx.Module):
    """Attention of one query, the first token, to all tokens.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      qkv_bias: whether the Linears of q, k and v have biases.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        init |= {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.scale = check_heads(dim, num_heads) ** -0.5
        self.num_heads = num_heads
        self.q = Linear(dim, dim, use_bias=qkv_bias, **init)
        self.k = Linear(dim, dim, use_bias=qkv_bias, **init)
        self.v = Linear(dim, dim, use_bias=qkv_bias, **init)
        self.proj = Linear(dim, dim, **init)
        self.attn_drop = Dropout(0.0)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch 1 dim"]:
        """Tokens, the class token first, to what it gathers."""

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)

        q, k, v = heads(self.q(x[:, :1])), heads(self.k(x)), heads(self.v(x))
        x = attend(q, k, v, scale=self.scale, dropout=self.attn_drop)
        return self.proj(merge_heads(x))
