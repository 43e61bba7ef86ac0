"""Linear layers that start as PyTorch's."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.initializers import uniform_bias, uniform_fan_in


def torch_linear(
    in_dim: int, out_dim: int, *, dtype: Dtype, param_dtype: Dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A Linear that starts as `torch.nn.Linear` does: U(-b, b) with b = 1 / sqrt(in_dim)."""
    return nnx.Linear(
        in_dim,
        out_dim,
        kernel_init=uniform_fan_in,
        bias_init=uniform_bias(in_dim),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class WideLinear(nnx.Linear):
    """A Linear whose output is not rounded to a narrow dtype: float32 or wider."""

    def __call__(
        self, inputs: Float[Array, "*batch in_dim"], out_sharding: Any = None
    ) -> Float[Array, "*batch out_dim"]:
        dtype = self.dtype or inputs.dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        kernel = self.kernel[...].astype(dtype)
        y = jnp.matmul(
            inputs.astype(dtype),
            kernel,
            preferred_element_type=wide,
            out_sharding=out_sharding,
        )
        if self.bias is None:
            return y
        return y + self.bias[...].astype(wide).reshape((1,) * (y.ndim - 1) + (-1,))
