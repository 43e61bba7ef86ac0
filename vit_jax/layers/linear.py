"""Linear layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.initializers import uniform_bias, uniform_fan_in


def _by_rows(layer: nnx.Linear, inputs: jax.Array) -> jax.Array:
    rows = layer(inputs.reshape(-1, inputs.shape[-1]))
    return rows.reshape(*inputs.shape[:-1], rows.shape[-1])


class Linear(nnx.Linear):
    """`flax.nnx.Linear`.

    Attributes:
      as_rows: whether the tokens of all images are the rows of one matrix. On a CPU the gradient of
        the weights, a sum over two axes otherwise, is then one matmul without copies: a training
        step of T2T-ViT-7 took a tenth less time. See `vit_jax.layers.forms`.
    """

    as_rows = False

    def __call__(
        self, inputs: Float[Array, "*batch in_dim"], out_sharding: Any = None
    ) -> Float[Array, "*batch out_dim"]:
        if self.as_rows and inputs.ndim > 2 and out_sharding is None:
            return _by_rows(self, inputs)
        if out_sharding is None:  # jax2onnx puts a method of one argument in the place of Flax's
            return super().__call__(inputs)
        return super().__call__(inputs, out_sharding)


def torch_linear(
    in_dim: int, out_dim: int, *, dtype: Dtype, param_dtype: Dtype, rngs: nnx.Rngs
) -> Linear:
    """A Linear that starts as `torch.nn.Linear` does: U(-b, b) with b = 1 / sqrt(in_dim)."""
    return Linear(
        in_dim,
        out_dim,
        kernel_init=uniform_fan_in,
        bias_init=uniform_bias(in_dim),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def wide_matmul(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x @ y as `jnp.matmul`, in float32 or wider.

    Of narrow operands the gradient is rounded to their type before it is multiplied: its matmuls
    are narrow as well, at twice the speed of float32 or more.
    """
    if jnp.promote_types(x.dtype, jnp.float32) == x.dtype:
        return jnp.matmul(x, y)
    return _wide_matmul(x, y)


@jax.custom_vjp
def _wide_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _wide_matmul_forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _wide_matmul(x, y), (x, y)


def _wide_matmul_backward(
    operands: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    x, y = operands
    gradient = gradient.astype(x.dtype)
    (of_x,) = jax.linear_transpose(lambda x: jnp.matmul(x, y), x)(gradient)
    (of_y,) = jax.linear_transpose(lambda y: jnp.matmul(x, y), y)(gradient)
    return of_x, of_y


_wide_matmul.defvjp(_wide_matmul_forward, _wide_matmul_backward)


class WideLinear(nnx.Linear):
    """A Linear whose output is not rounded to a narrow dtype: float32 or wider.

    Attributes:
      as_rows: see `Linear`.
    """

    as_rows = False

    def __call__(
        self, inputs: Float[Array, "*batch in_dim"], out_sharding: Any = None
    ) -> Float[Array, "*batch out_dim"]:
        if self.as_rows and inputs.ndim > 2 and out_sharding is None:
            return _by_rows(self, inputs)
        dtype = self.dtype or inputs.dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        kernel = self.kernel[...].astype(dtype)
        inputs = inputs.astype(dtype)
        if out_sharding is None:
            y = wide_matmul(inputs, kernel)
        else:
            y = jnp.matmul(inputs, kernel, preferred_element_type=wide, out_sharding=out_sharding)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(wide).reshape((1,) * (y.ndim - 1) + (-1,))
