"""Squeeze and excitation over tokens (Hu et al. 2017, 1709.01507)."""

from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention
from vit_jax.layers.checks import check_int
from vit_jax.layers.linear import Linear


class SqueezeExcite(nnx.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), the mean over all tokens, class tokens included.

    Args:
      dim: width of a token.
      reduction: `dim` over the width between the two Linears, which have no biases.
    """

    torch_names = (
        (r"(^|\.se_layer\.)fc1\.", r"\1fc.0."),
        (r"(^|\.se_layer\.)fc2\.", r"\1fc.2."),
    )

    def __init__(
        self,
        dim: int,
        *,
        reduction: int = 16,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        hidden_dim = check_int(f"embed_dim // {reduction}", dim // reduction, least=1)
        self.fc1 = Linear(dim, hidden_dim, use_bias=False, kernel_init=kernel_init, **types)
        self.fc2 = Linear(hidden_dim, dim, use_bias=False, kernel_init=kernel_init, **types)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        mean = x.mean(axis=1, keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean))))


class SqueezeExciteAttention(Attention):
    """`Attention` with a `SqueezeExcite` gate on what its output Linear gives."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(dim, num_heads, kernel_init=kernel_init, **fields, **types)
        self.se_layer = SqueezeExcite(dim, kernel_init=kernel_init, **types)

    def project(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        return self.se_layer(self.proj(x))
