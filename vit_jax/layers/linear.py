"""Linear layers that start as PyTorch's."""

from flax import nnx
from flax.typing import Dtype

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
