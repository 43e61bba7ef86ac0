"""The softmax layer of T2T's token module."""

from typing import Any

from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import SoftmaxAttention, merge_heads
from vit_jax.layers.checks import check_number, hidden_width
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm


class TokenAttention(SoftmaxAttention):
    """Self-attention of one head that changes the width; the skip connection starts at the values.

    Args:
      dim: width of the input; out_dim: of the output.
      qk_scale: factor of the scores; None means dim ** -0.5, of the input's width.
      drop_rate: dropout after the output Linear.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        qk_scale: float | None,
        drop_rate: float,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.num_heads = 1
        self.scale = dim**-0.5 if qk_scale is None else check_number("qk_scale", qk_scale)
        self.qkv = Linear(dim, 3 * out_dim, use_bias=False, kernel_init=kernel_init, **types)
        self.proj = Linear(out_dim, out_dim, kernel_init=kernel_init, bias_init=zeros, **types)
        self.attn_drop = Dropout(0.0)
        self.proj_drop = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens out_dim"]:
        q, k, v = self.queries_keys_values(x)
        x = self.attended(q, k, v)
        return merge_heads(v) + self.proj_drop(self.proj(merge_heads(x)), key)

    @property
    def stacked(self) -> Linear:
        return self.qkv


class TokenTransformer(nnx.Module):
    """One transformer layer of T2T's token module: it changes the width from `dim` to `out_dim`.

    Args:
      dim: width of the input; out_dim: of the output (the source's `in_dim`).
      mlp_ratio: hidden width of the MLP over `out_dim`.
      qk_scale: see `TokenAttention`.
      norm_eps: epsilon of both LayerNorms.
      drop_rate: dropout after the attention's output and in the MLP.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        mlp_ratio: float = 1.0,
        qk_scale: float | None = None,
        norm_eps: float = 1e-5,
        drop_rate: float,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = layer_norm(dim, norm_eps, **types)
        self.attn = TokenAttention(
            dim, out_dim, qk_scale=qk_scale, drop_rate=drop_rate, kernel_init=kernel_init, **types
        )
        self.norm2 = layer_norm(out_dim, norm_eps, **types)
        self.mlp = Mlp(
            out_dim,
            hidden_width(out_dim, mlp_ratio, "token_dim"),
            drop_rate=drop_rate,
            kernel_init=kernel_init,
            bias_init=zeros,
            **types,
        )

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens out_dim"]:
        attn_key, mlp_key = split_key(key, 2)
        x = self.attn(self.norm1(x), key=attn_key)
        return x + self.mlp(self.norm2(x), key=mlp_key)
