"""The feed-forward half of a transformer block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.linear import Linear


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact, erf form: PyTorch's default. (JAX's and Flax's is the tanh approximation.)"""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tanh approximation: big_vision's, and `gelu_pytorch_tanh` of transformers."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x): OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


class Mlp(nnx.Module):
    """Linear, GELU, Dropout, Linear, Dropout, as timm's `Mlp`.

    Args:
      dim: width of input and output.
      hidden_dim: width between the two Linears.
      drop_rate: of both dropouts.
      activation: between them.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        drop_rate: float,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        kernel_init: Initializer,
        bias_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.activation = activation
        self.fc1 = Linear(dim, hidden_dim, **init, **types, rngs=rngs)
        self.fc2 = Linear(hidden_dim, dim, **init, **types, rngs=rngs)
        self.drop = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        hidden_key, out_key = split_key(key, 2)
        x = self.drop(self.activation(self.fc1(x)), hidden_key)
        return self.drop(self.fc2(x), out_key)


class SwiGlu(nnx.Module):
    """The gate and the value in one Linear `w12`, silu(gate) * value, and a Linear `w3`.

    As DINOv2's `SwiGLUFFNFused` (Shazeer 2020, 2002.05202): of the hidden width two thirds, rounded
    down and then up to a multiple of 8. It has no dropout.

    Args:
      dim: width of input and output.
      hidden_dim: width that an `Mlp` of as many parameters would have.
      drop_rate: 0.

    Raises:
      ValueError: a rate of dropout.
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
        _check_no_dropout(drop_rate)
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        width = -(-int(hidden_dim * 2 / 3) // 8) * 8
        self.w12 = Linear(dim, 2 * width, **init, **types, rngs=rngs)
        self.w3 = Linear(width, dim, **init, **types, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        del key
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * value)


class GatedMlp(nnx.Module):
    """silu(w1(x)) * w2(x), and a Linear `w3`: DINOv3's `SwiGLUFFN`. It has no dropout.

    Args:
      dim: width of input and output.
      hidden_dim: width of the gate and of the value.
      drop_rate: 0.

    Raises:
      ValueError: a rate of dropout.
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
        _check_no_dropout(drop_rate)
        init: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.w1 = Linear(dim, hidden_dim, **init, **types, rngs=rngs)
        self.w2 = Linear(dim, hidden_dim, **init, **types, rngs=rngs)
        self.w3 = Linear(hidden_dim, dim, **init, **types, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch tokens dim"]:
        del key
        return self.w3(jax.nn.silu(self.w1(x)) * self.w2(x))


def _check_no_dropout(drop_rate: float) -> None:
    if drop_rate:
        raise ValueError(f"a gated MLP has no dropout: drop_rate must be 0, got {drop_rate}")


class PreLogits(nnx.Module):
    """Linear and tanh between the class token and the head: ViT's representation layer."""

    def __init__(
        self, dim: int, representation_size: int, *, kernel_init, dtype, param_dtype, rngs: nnx.Rngs
    ):
        self.fc = nnx.Linear(
            dim,
            representation_size,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch representation"]:
        return jnp.tanh(self.fc(x))
