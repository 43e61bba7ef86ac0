"""The pre-norm transformer block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import Attention
from vit_jax.layers.checks import hidden_width
from vit_jax.layers.dropout import drop_path, split_key
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm


class LayerScale(nnx.Module):
    """A learned factor for each channel (Touvron et al. 2021, 2103.17239)."""

    def __init__(self, dim: int, init_value: float, *, dtype: Dtype, param_dtype: Dtype):
        self.gamma = nnx.Param(jnp.full((dim,), init_value, param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        return x * self.gamma[...].astype(self.dtype).reshape(1, 1, -1)


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), as timm's `Block`.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads: heads.
      mlp_ratio: hidden width of the MLP over `dim`.
      qkv_bias, qk_scale, qk_norm: see `Attention`.
      init_values: initial LayerScale of both branches; None or 0 means none, as in timm.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the attention's output Linear and inside the MLP.
      attn_drop_rate: dropout on the attention weights.
      attention, mlp: what builds the two branches, with the arguments of `Attention` and `Mlp`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attention: Callable[..., Any] = Attention,
        mlp: Callable[..., Any] = Mlp,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        qk_norm: bool,
        init_values: float | None,
        norm_eps: float,
        drop_rate: float,
        attn_drop_rate: float,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}

        def layer_scale() -> LayerScale | None:
            return LayerScale(dim, init_values, **types) if init_values else None

        self.norm1 = layer_norm(dim, norm_eps, **types, rngs=rngs)
        self.attn = attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            qk_norm=qk_norm,
            norm_eps=norm_eps,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=drop_rate,
            **init,
            **types,
            rngs=rngs,
        )
        self.ls1 = layer_scale()
        self.norm2 = layer_norm(dim, norm_eps, **types, rngs=rngs)
        hidden_dim = hidden_width(dim, mlp_ratio)
        self.mlp = mlp(dim, hidden_dim, drop_rate=drop_rate, **init, **types, rngs=rngs)
        self.ls2 = layer_scale()

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *context: jax.Array,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        attn_key, path1_key, mlp_key, path2_key = split_key(key, 4)

        def scaled(layer_scale: LayerScale | None, branch: jax.Array) -> jax.Array:
            return branch if layer_scale is None else layer_scale(branch)

        attn = scaled(self.ls1, self.attn(self.norm1(x), *context, key=attn_key))
        x = x + drop_path(attn, drop_path_rate, path1_key)
        mlp = scaled(self.ls2, self.mlp(self.norm2(x), key=mlp_key))
        return x + drop_path(mlp, drop_path_rate, path2_key)
