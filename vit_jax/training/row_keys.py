"""Random keys that know which part of the batch they draw for.

Under `jit` a dropout mask is drawn for the global batch and divided like it. A device of `pmap`
sees its own part alone. With these keys it draws exactly its part of the global mask, so that both
give the same numbers on any number of devices.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend import random as jex_random

_TYPES = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def _like_threefry(derive, data: jax.Array, argument) -> jax.Array:
    """Derives keys as JAX's own generator does; the position goes along."""
    derived = jax.random.key_data(derive(jax.random.wrap_key_data(data[:2]), argument))
    position = jnp.broadcast_to(data[2], (*derived.shape[:-1], 1))
    return jnp.concatenate([derived, position], axis=-1)


def _split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _like_threefry(jax.random.split, data, shape)


def _fold_in(data: jax.Array, value: jax.Array | int) -> jax.Array:
    return _like_threefry(jax.random.fold_in, data, value)


def _random_bits(data: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """JAX numbers the bits of a draw in C order; these are numbers position * size + 0, 1, ..."""
    size = math.prod(shape)
    position = data[2]  # below 2**16, so that the products below fit their words
    middle = position * jnp.uint32(size >> 16)
    low = position * jnp.uint32(size & 0xFFFF)
    start = low + (middle << 16)
    high = (middle >> 16) + (start < low).astype(jnp.uint32)
    counts = start + jax.lax.iota(jnp.uint32, size)
    high = high + (counts < start).astype(jnp.uint32)
    key_1, key_2 = (jnp.broadcast_to(word, (size,)) for word in (data[0], data[1]))
    bits_1, bits_2 = jex_random.threefry2x32_p.bind(key_1, key_2, high, counts)
    kind = _TYPES[bit_width]
    if bit_width == 64:
        bits = (bits_1.astype(kind) << jnp.asarray(32, kind)) | bits_2.astype(kind)
    else:
        bits = (bits_1 ^ bits_2).astype(kind)
    return bits.reshape(shape)


def _seed(seed: jax.Array) -> jax.Array:
    data = jax.random.key_data(jax.random.key(seed))
    return jnp.concatenate([data, jnp.zeros((1,), jnp.uint32)])


_IMPL = jex_random.define_prng_impl(
    key_shape=(3,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_at_position",
    tag="fryp",
)


def at_position(key: jax.Array, position: jax.Array) -> jax.Array:
    """A key for part `position` of a batch divided evenly along its leading axis.

    Args:
      key: a key of JAX's default generator (threefry, partitionable), for the whole batch.
      position: which part, below 2**16.

    Returns:
      A key. An array (b, ...) drawn with it is rows position * b to (position + 1) * b of the array
      (B, ...) drawn with `key`, and the same holds for all keys derived from it.
    """
    data = jax.random.key_data(key)
    position = jnp.asarray(position).astype(jnp.uint32)
    return jax.random.wrap_key_data(jnp.concatenate([data, position[None]]), impl=_IMPL)
