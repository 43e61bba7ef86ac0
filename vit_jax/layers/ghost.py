"""Ghost layers: half or more of the features are cheap copies (Han et al. 2019, 1911.11907)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import attend, check_heads, merge_heads, softmax_weights
from vit_jax.layers.checks import check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import uniform_bias
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import gelu


class CheapOperation(nnx.Module):
    """A factor for each channel: a depth-wise 1x1 convolution without bias, and starts as one.

    The kernel's shape is that of the convolution, (1, 1, dim).
    """

    def __init__(self, dim: int, *, dtype: Dtype, param_dtype: Dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform_bias(1)(rngs.params(), (1, 1, dim), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        return x * self.kernel[...].astype(self.dtype)


class GhostAttention(nnx.Module):
    """Self-attention whose q, k and v are half computed, half cheap copies of that half.

    In the place of `layers.attention.Attention`, with its arguments but for `qk_norm`.

    Raises:
      ValueError: dim is odd or not divisible by num_heads.
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
        if qk_norm:
            raise ValueError("ghost attention has no qk_norm: it must be False, got True")
        head_dim = check_heads(dim, num_heads)
        if dim % 2:
            raise ValueError(
                f"ghost attention copies half of embed_dim: it must be even, got {dim}"
            )
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = num_heads
        self.scale = head_dim**-0.5 if qk_scale is None else check_number("qk_scale", qk_scale)
        self.q = Linear(dim, dim // 2, use_bias=qkv_bias, **init, **types)
        self.k = Linear(dim, dim // 2, use_bias=qkv_bias, **init, **types)
        self.v = Linear(dim, dim // 2, use_bias=qkv_bias, **init, **types)
        self.cheap_operation_q = CheapOperation(dim // 2, **types)
        self.cheap_operation_k = CheapOperation(dim // 2, **types)
        self.cheap_operation_v = CheapOperation(dim // 2, **types)
        self.attn_drop = Dropout(attn_drop_rate)
        self.proj = Linear(dim, dim, **init, **types)
        self.proj_drop = Dropout(proj_drop_rate)

    def _heads(
        self, half: Float[Array, "batch tokens half"], copy: CheapOperation
    ) -> Float[Array, "batch heads tokens head_dim"]:
        x = jnp.concatenate([half, copy(half)], axis=-1)
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(0, 2, 1, 3)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        attn_key, proj_key = split_key(key, 2)
        q = self._heads(self.q(x), self.cheap_operation_q)
        k = self._heads(self.k(x), self.cheap_operation_k)
        v = self._heads(self.v(x), self.cheap_operation_v)
        x = attend(q, k, v, scale=self.scale, dropout=self.attn_drop, key=attn_key)
        return self.proj_drop(self.proj(merge_heads(x)), proj_key)

    def attention_weights(
        self, x: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch heads tokens tokens"]:
        """The weights that a call with these tokens gives the values, before dropout."""
        q = self._heads(self.q(x), self.cheap_operation_q)
        k = self._heads(self.k(x), self.cheap_operation_k)
        return softmax_weights(q, k, scale=self.scale)


class GhostMlp(nnx.Module):
    """Linear and GELU to `dim` features, two cheap copies with GELU beside them, Linear.

    In the place of `layers.mlp.Mlp`, with its arguments.

    Raises:
      ValueError: hidden_dim is not 3 * dim.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        drop_rate: float,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        if hidden_dim != 3 * dim:
            raise ValueError(
                "the ghost MLP is one map and two copies: mlp_ratio must be 3, got a hidden width "
                f"of {hidden_dim} for embed_dim {dim}"
            )
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.fc1 = Linear(dim, dim, **init, **types)
        self.fc2 = Linear(hidden_dim, dim, **init, **types)
        self.cheap_operation2 = CheapOperation(dim, **types)
        self.cheap_operation3 = CheapOperation(dim, **types)
        self.drop = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        hidden_key, out_key = split_key(key, 2)
        first = gelu(self.fc1(x))
        copies = (gelu(self.cheap_operation2(first)), gelu(self.cheap_operation3(first)))
        hidden = self.drop(jnp.concatenate([first, *copies], axis=-1), hidden_key)
        return self.drop(self.fc2(hidden), out_key)
