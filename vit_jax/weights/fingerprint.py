"""A fingerprint of arrays, to know restored ones from damaged ones."""

from typing import Any

import jax
import jax.numpy as jnp

# Odd constants, one an axis: two places of an array get different weights.
_AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5)


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32, with a last axis of 2 for 64-bit types."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = x.dtype.itemsize * 8
    if width >= 32:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _of_array(x: jax.Array) -> jax.Array:
    words = _words(x)
    mixed = words
    for axis in range(words.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        mixed = mixed ^ ((place + 1) * jnp.uint32(_AXES[axis % len(_AXES)] + 2 * axis))
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x2C1B3C6D)
    mixed = (mixed ^ (mixed >> 12)) * jnp.uint32(0x297A2D39)
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """One uint32 for each array of `tree`, of all its bits and of their places.

    Integer sums do not depend on their order: the result is the same on any device and however the
    arrays are divided, and it is computed where they lie, without waiting.
    """
    return jnp.stack([_of_array(leaf) for leaf in jax.tree.leaves(tree)])
