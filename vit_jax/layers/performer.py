"""Attention whose cost is linear in the tokens: positive random features of the softmax kernel.

Choromanski et al. 2020, "Rethinking Attention with Performers" (2009.14794).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import check_heads, merge_heads, split_heads
from vit_jax.layers.checks import check_int, check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import zeros
from vit_jax.layers.linear import Linear, WideLinear
from vit_jax.layers.mlp import gelu
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.variables import Frozen

EPS = 1e-8  # of the attention's denominator


def random_features(key: Key[Array, ""], count: int, dim: int, dtype: Dtype) -> jax.Array:
    """Draws `count` orthogonal directions of length sqrt(count): (count, dim)."""
    init = jax.nn.initializers.orthogonal(scale=math.sqrt(count))
    wide = jnp.promote_types(dtype, jnp.float32)  # QR has no narrower form
    return init(key, (count, dim), wide).astype(dtype)


def _kernel_features(
    q: Float[Array, "*batch queries dim"],
    k: Float[Array, "*batch keys dim"],
    features: Float[Array, "features dim"],
    eps: float,
) -> tuple[
    Float[Array, "*batch queries features"],
    Float[Array, "*batch keys features"],
    Float[Array, "*batch queries 1"],
]:
    """q', k' and the denominator of `linear_attention`, up to factors that cancel."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    w = features.astype(wide)

    def exponents(x: jax.Array) -> jax.Array:
        x = x.astype(wide)
        # In full on every device: an error here is a relative one of the exponential.
        return jnp.matmul(x, w.T, precision="highest") - 0.5 * jnp.sum(
            x * x, axis=-1, keepdims=True
        )

    def rows(x: jax.Array) -> jax.Array:  # keeps the axes of the batch
        return jnp.expand_dims(x, -2)

    q_exponents, k_exponents = exponents(q), exponents(k)
    # Constants to the derivative, since the result does not depend on them.
    q_largest = jax.lax.stop_gradient(q_exponents.max(axis=-1, keepdims=True))
    k_largest = jax.lax.stop_gradient(k_exponents.max(axis=(-2, -1), keepdims=True))
    q_features = jnp.exp(q_exponents - q_largest)  # (..., queries, m)
    k_features = jnp.exp(k_exponents - k_largest)  # (..., keys, m)
    scaled_eps = eps * features.shape[0] * jnp.exp(-q_largest - k_largest)
    denominator = jnp.sum(q_features * rows(k_features.sum(axis=-2)), axis=-1, keepdims=True)
    return q_features, k_features, denominator + scaled_eps


def linear_attention(
    q: Float[Array, "*batch queries dim"],
    k: Float[Array, "*batch keys dim"],
    v: Float[Array, "*batch keys value_dim"],
    features: Float[Array, "features dim"],
    *,
    eps: float,
) -> Float[Array, "*batch queries value_dim"]:
    """q' (k'^T v) / (q' . sum(k') + eps), with x' = exp(x w^T - |x|^2 / 2) / sqrt(m).

    Never forms the (queries, keys) matrix. The features, up to exp(m / 2), and all sums are in
    float32 or wider. Each exponential is taken relative to its largest exponent, one for each
    query and one for all keys; both cancel from the quotient, and eps is scaled in their place, so
    that the numbers are those of the formula wherever that does not overflow.

    Args:
      q, k, v: queries, keys and values.
      features: m directions w.
      eps: added to the denominator.

    Returns:
      The attended values, in the type of `v`.
    """
    q_features, k_features, denominator = _kernel_features(q, k, features, eps)
    values = v.astype(q_features.dtype)
    summary = jnp.matmul(k_features.swapaxes(-1, -2), values)  # (..., m, value_dim)
    return (jnp.matmul(q_features, summary) / denominator).astype(v.dtype)


def linear_attention_weights(
    q: Float[Array, "*batch queries dim"],
    k: Float[Array, "*batch keys dim"],
    features: Float[Array, "features dim"],
    *,
    eps: float,
) -> Float[Array, "*batch queries keys"]:
    """The matrix that `linear_attention` applies to its values, q' k'^T / (q' . sum(k') + eps).

    To look at: it costs what `linear_attention` saves. Its rows are positive and sum to one, up to
    eps over the denominator.
    """
    q_features, k_features, denominator = _kernel_features(q, k, features, eps)
    return jnp.matmul(q_features, k_features.swapaxes(-1, -2)) / denominator


class TokenPerformer(nnx.Module):
    """One performer layer of T2T's token module: it changes the width from `dim` to `out_dim`.

    `kqv` holds keys, queries and values in this order; the skip connection starts at the values,
    not at the input.

    Args:
      dim: width of the input.
      out_dim: width of the output (the source's `in_dim`).
      kernel_ratio: random features over `out_dim`.
      norm_eps: epsilon of both LayerNorms; eps: of the attention's denominator.
      drop_rate: dropout after the attention's output and after the MLP.

    Attributes:
      w: the random features (int(out_dim * kernel_ratio), out_dim), orthogonal, never trained.
    """

    torch_names = ((r"(^|\.)mlp_fc1\.", r"\1mlp.0."), (r"(^|\.)mlp_fc2\.", r"\1mlp.2."))

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel_ratio: float = 0.5,
        norm_eps: float = 1e-5,
        eps: float = EPS,
        drop_rate: float,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": zeros}
        count = check_int("int(token_dim * kernel_ratio)", int(out_dim * kernel_ratio), least=1)
        self.eps = eps
        self.kqv = WideLinear(dim, 3 * out_dim, **init, **types)
        self.w = Frozen(random_features(rngs.params(), count, out_dim, param_dtype))
        self.proj = Linear(out_dim, out_dim, **init, **types)
        self.norm1 = layer_norm(dim, norm_eps, **types)
        self.norm2 = layer_norm(out_dim, norm_eps, **types)
        self.mlp_fc1 = Linear(out_dim, out_dim, **init, **types)
        self.mlp_fc2 = Linear(out_dim, out_dim, **init, **types)
        self.dtype = dtype
        self.drop = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens out_dim"]:
        attn_key, mlp_key = split_key(key, 2)
        k, q, v = self.keys_queries_values(x)
        attended = linear_attention(q, k, v, self.w[...], eps=self.eps)
        x = v.astype(self.dtype) + self.drop(self.proj(attended), attn_key)
        branch = self.mlp_fc2(gelu(self.mlp_fc1(self.norm2(x))))
        return x + self.drop(branch, mlp_key)

    def keys_queries_values(
        self, x: Float[Array, "batch tokens dim"]
    ) -> list[Float[Array, "batch tokens out_dim"]]:
        """Tokens to keys, queries and values, in float32 or wider.

        A rounded key would be a relative error of its exponential.
        """
        return jnp.split(self.kqv(self.norm1(x)), 3, axis=-1)

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch 1 tokens tokens"]:
        """The weights that a call with these tokens implies: see `linear_attention_weights`."""
        k, q, _ = self.keys_queries_values(x)
        weights = linear_attention_weights(q, k, self.w[...], eps=self.eps)
        return jnp.expand_dims(weights, 1)


class LinearAttention(nnx.Module):
    """Multi-head self-attention in linear time, in the place of `layers.attention.Attention`.

    Same arguments and the same names of weights; beside them `w`, head_dim random features for all
    heads, never trained. It estimates softmax attention: the features stand for
    exp(q k^T * scale).

    Raises:
      ValueError: dim is not divisible by num_heads; a dropout on attention weights, which are
        never formed, is asked for; a scale that is not positive.
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
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        if attn_drop_rate:
            raise ValueError(
                "linear attention has no attention weights to drop: attn_drop_rate must be 0, got "
                f"{attn_drop_rate!r}"
            )
        head_dim = check_heads(dim, num_heads)
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = num_heads
        self.scale = (
            head_dim**-0.5 if qk_scale is None else check_number("qk_scale", qk_scale, above=0)
        )
        self.qkv = WideLinear(dim, 3 * dim, use_bias=qkv_bias, **init, **types)
        self.q_norm = layer_norm(head_dim, norm_eps, **types) if qk_norm else None
        self.k_norm = layer_norm(head_dim, norm_eps, **types) if qk_norm else None
        self.w = Frozen(random_features(rngs.params(), head_dim, head_dim, param_dtype))
        self.proj = Linear(dim, dim, **init, **types)
        self.proj_drop = Dropout(proj_drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        q, k, v = self.queries_keys_values(x)
        x = linear_attention(q, k, v, self.w[...], eps=EPS)
        return self.proj_drop(self.proj(merge_heads(x)), key)

    def queries_keys_values(
        self, x: Float[Array, "batch tokens dim"]
    ) -> tuple[Float[Array, "batch heads tokens head_dim"], ...]:
        """Tokens to heads, the scale in queries and keys."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        root = self.scale**0.5
        return q * root, k * root, v

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens implies: see `linear_attention_weights`."""
        q, k, _ = self.queries_keys_values(x)
        return linear_attention_weights(q, k, self.w[...], eps=EPS)
