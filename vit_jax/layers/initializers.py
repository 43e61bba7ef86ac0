"""Initialisers, most with the distributions of PyTorch's, as `f(key, shape, dtype) -> array`.

Kernels are in Flax layout: the last axis is the output, the one before it the input, and what
stands before those is spatial.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

zeros = jax.nn.initializers.zeros

# Cached: NNX compares a module's initialisers by identity, and two models built alike should be
# one to `nnx.jit`.
normal = functools.cache(jax.nn.initializers.normal)


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])


def _fan_out(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-2]) * shape[-1]


@functools.cache
def _uniform(bound: float) -> Initializer:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def trunc_normal(std: float) -> Initializer:
    """`torch.nn.init.trunc_normal_(std=std)`: its bounds are -2 and 2, absolute, whatever `std` is.

    (JAX's `truncated_normal` cuts at two standard deviations and so has a smaller one.) For the
    `std` of at most 0.1 that is accepted here the bounds lie 20 deviations out: a normal
    distribution, exactly, at any float precision.
    """
    assert 0 < std <= 0.1, std
    return normal(std)


def uniform_fan_in(key, shape, dtype=jnp.float32):
    """Kernel of `torch.nn.Linear` and `Conv2d`: U(-b, b), b = 1 / sqrt(fan_in)."""
    return _uniform(1 / math.sqrt(_fan_in(shape)))(key, shape, dtype)


def uniform_bias(fan_in: int) -> Initializer:
    """Bias of `torch.nn.Linear` and `Conv2d`: U(-b, b), b = 1 / sqrt(fan_in of the kernel)."""
    return _uniform(1 / math.sqrt(fan_in))


def xavier_uniform(key, shape, dtype=jnp.float32):
    """`torch.nn.init.xavier_uniform_`: U(-b, b), b = sqrt(6 / (fan_in + fan_out))."""
    return _uniform(math.sqrt(6 / (_fan_in(shape) + _fan_out(shape))))(key, shape, dtype)


def kaiming_normal_fan_out(key, shape, dtype=jnp.float32):
    """`torch.nn.init.kaiming_normal_(mode="fan_out")`: N(0, 2 / fan_out)."""
    return normal(math.sqrt(2 / _fan_out(shape)))(key, shape, dtype)


def uniform_0_1(key, shape, dtype=jnp.float32):
    """`torch.rand`: U(0, 1)."""
    return jax.random.uniform(key, shape, dtype)


def mimetic_kernels(
    key: Key[Array, ""], dim: int, num_heads: int, dtype: Dtype
) -> tuple[Float[Array, "dim triple"], Float[Array, "dim dim"]]:
    """Kernels of a self-attention that begins as trained ones end (Trockman and Kolter 2023).

    2305.09828: in each head W_q W_k^T is 0.7 (Z + I), as near as its rank allows, and W_v W_proj is
    0.4 (Z - I), with Z ~ N(0, 1 / dim). A token attends to those like it, and takes away their
    mean.

    Returns:
      (dim, 3 dim) for q, k and v, and (dim, dim) for the output, as `layers.attention.Attention`.
    """
    wide, width = jnp.promote_types(dtype, jnp.float32), dim // num_heads
    scores_key, values_key = jax.random.split(key)
    identity = jnp.eye(dim, dtype=wide)
    noise = jax.random.normal(scores_key, (num_heads, dim, dim), wide) / math.sqrt(dim)
    left, right = _factors(0.7 * (noise + identity[None]))
    q, k = (x[..., :width].swapaxes(0, 1).reshape(dim, dim) for x in (left, right))
    noise = jax.random.normal(values_key, (dim, dim), wide) / math.sqrt(dim)
    v, proj = _factors(0.4 * (noise - identity))
    return jnp.concatenate([q, k, v], axis=1).astype(dtype), proj.T.astype(dtype)


def _factors(x: Float[Array, "*batch n n"]) -> tuple[jax.Array, jax.Array]:
    """a and b of x = a b^T, the largest parts first."""
    u, scales, vt = jnp.linalg.svd(x)
    roots = jnp.sqrt(scales)[..., None, :]
    return u * roots, vt.swapaxes(-1, -2) * roots
