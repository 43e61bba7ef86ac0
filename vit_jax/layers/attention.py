"""Multi-head softmax self-attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Bool, Float, Key

from vit_jax.layers.checks import check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import uniform_fan_in, xavier_uniform, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.norm import layer_norm


def check_heads(embed_dim: int, num_heads: int) -> int:
    """Returns the width of a head, or raises ValueError where it is not whole."""
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads} heads"
        )
    return embed_dim // num_heads


def split_heads(
    qkv: Float[Array, "batch tokens triple"], num_heads: int
) -> Float[Array, "3 batch heads tokens head_dim"]:
    """Splits the output of one Linear for q, k and v, stacked in this order, into heads."""
    batch, tokens, triple = qkv.shape
    x = qkv.reshape(batch, tokens, 3, num_heads, triple // (3 * num_heads))
    return x.transpose(2, 0, 3, 1, 4)


def merge_heads(
    x: Float[Array, "batch heads tokens head_dim"],
) -> Float[Array, "batch tokens dim"]:
    batch, heads, tokens, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head_dim)


def softmax_weights(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    *,
    scale: float,
    mask: Bool[Array, "batch keys"] | None = None,
    bias: Float[Array, "#batch heads queries keys"] | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """softmax(q k^T * scale + bias) over the keys that the mask has, in float32 or wider."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=wide) * scale
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(wide).min)
    return jax.nn.softmax(scores, axis=-1)


def attend(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    v: Float[Array, "batch heads keys value_dim"],
    *,
    scale: float,
    dropout: Dropout,
    key: Key[Array, ""] | None = None,
    mask: Bool[Array, "batch keys"] | None = None,
    bias: Float[Array, "#batch heads queries keys"] | None = None,
) -> Float[Array, "batch heads queries value_dim"]:
    """softmax(q k^T * scale + bias) v, with the scores and the softmax in float32 or wider.

    Batched matmuls over (B, H, N, D): on a CPU `jax.nn.dot_product_attention`, which takes
    (B, N, H, D), ran at half the speed.
    """
    weights = softmax_weights(q, k, scale=scale, mask=mask, bias=bias).astype(v.dtype)
    return jnp.matmul(dropout(weights, key), v)


class Attention(nnx.Module):
    """Self-attention with one Linear for q, k and v, as timm's.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      qkv_bias: whether the q/k/v Linear has a bias.
      k_bias: whether the keys have theirs too. Without it the Linear has none, and `q_bias` and
        `v_bias` are parameters, as in timm's BEiT.
      qk_scale: factor of the scores; None means head_dim ** -0.5.
      qk_norm: LayerNorm on the heads of q and of k.
      norm_eps: epsilon of these norms.
      attn_drop_rate: dropout on the attention weights.
      proj_drop_rate: dropout after the output Linear.

    Raises:
      ValueError: dim is not divisible by num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        qk_scale: float | None,
        qk_norm: bool,
        norm_eps: float,
        attn_drop_rate: float,
        proj_drop_rate: float,
        k_bias: bool = True,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        head_dim = check_heads(dim, num_heads)
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.num_heads = num_heads
        # Not `or`: a scale of 0 would be replaced in silence.
        self.scale = head_dim**-0.5 if qk_scale is None else check_number("qk_scale", qk_scale)
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias and k_bias, **init, **types, rngs=rngs)

        def bias() -> nnx.Param | None:
            is_wanted = qkv_bias and not k_bias
            return nnx.Param(bias_init(rngs.params(), (dim,), param_dtype)) if is_wanted else None

        self.q_bias, self.v_bias = bias(), bias()
        self.q_norm = layer_norm(head_dim, norm_eps, **types, rngs=rngs) if qk_norm else None
        self.k_norm = layer_norm(head_dim, norm_eps, **types, rngs=rngs) if qk_norm else None
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = Linear(dim, dim, **init, **types, rngs=rngs)
        self.proj_drop = Dropout(proj_drop_rate)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *context: jax.Array,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        """Tokens to tokens; `context` is what all blocks are given: here the mask of the keys."""
        attn_key, proj_key = split_key(key, 2)
        q, k, v = self.queries_keys_values(x, *context)
        weights = self.weights(q, k, *context).astype(v.dtype)
        x = jnp.matmul(self.attn_drop(weights, attn_key), v)
        return self.proj_drop(self.project(merge_heads(x)), proj_key)

    def weights(self, q: jax.Array, k: jax.Array, *context: jax.Array) -> jax.Array:
        """What the values of each key are multiplied with, before dropout: (B, heads, N, N)."""
        return softmax_weights(q, k, scale=self.scale, mask=context[0] if context else None)

    def queries_keys_values(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
        """Tokens to the heads that attend."""
        del context
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            q_bias, v_bias = (bias[...].astype(qkv.dtype) for bias in (self.q_bias, self.v_bias))
            bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
            qkv = qkv + bias.reshape(1, 1, -1)
        q, k, v = split_heads(qkv, self.num_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"], *context: jax.Array
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens gives the values, before dropout."""
        q, k, _ = self.queries_keys_values(x, *context)
        return self.weights(q, k, *context)

    def project(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """The merged heads to the output."""
        return self.proj(x)


class MultiheadAttention(nnx.Module):
    """Self-attention of `torch.nn.MultiheadAttention`, with its names and initialisation.

    `in_proj` holds q, k and v stacked (`in_proj_weight`, `in_proj_bias`: Xavier-uniform and zeros);
    `out_proj` starts as a plain `torch.nn.Linear` with a zero bias.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
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
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.in_proj = Linear(
            dim, 3 * dim, kernel_init=xavier_uniform, bias_init=zeros, **types, rngs=rngs
        )
        self.out_proj = Linear(
            dim, dim, kernel_init=uniform_fan_in, bias_init=zeros, **types, rngs=rngs
        )
        self.attn_drop = Dropout(attn_drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        q, k, v = split_heads(self.in_proj(x), self.num_heads)
        x = attend(q, k, v, scale=self.scale, dropout=self.attn_drop, key=key)
        return self.out_proj(merge_heads(x))

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens gives the values, before dropout."""
        q, k, _ = split_heads(self.in_proj(x), self.num_heads)
        return softmax_weights(q, k, scale=self.scale)
