"""Random keys that know which rows of the batch they draw for.

Under `jit` a dropout mask is drawn for the global batch and divided like it. A device of `pmap`, or
one part of an accumulated batch, sees its own rows alone. With these keys it draws exactly its rows
of the global mask, so that all give the same numbers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as jex_random

_TYPES = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
MAX_ROWS = 2**16


def _like_threefry(derive: Callable[..., Any], data: jax.Array, argument: Any) -> jax.Array:
    """Derives keys as JAX's own generator does; the first row goes along."""
    derived = jax.random.key_data(derive(jax.random.wrap_key_data(data[:2]), argument))
    first = jnp.broadcast_to(data[2], (*derived.shape[:-1], 1))
    return jnp.concatenate([derived, first], axis=-1)


def _split(data: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _like_threefry(jax.random.split, data, shape)


def _fold_in(data: jax.Array, value: jax.Array | int) -> jax.Array:
    return _like_threefry(jax.random.fold_in, data, value)


def _bit_numbers(
    first: jax.Array, rows: int, stride: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """The numbers of the bits to draw, each as two uint32 (high, low) of shape (rows, size / rows).

    JAX numbers the bits of a draw in C order: row r of p elements has r * p, r * p + 1, ...
    """
    if size % rows:
        raise ValueError(
            f"a draw of {size} numbers cannot be divided between {rows} rows of a batch"
        )
    per_row = size // rows
    if per_row >= 2**32:
        raise ValueError(f"a draw of {per_row:,} numbers a row: wanted fewer than 2^32")
    row = first + jnp.uint32(stride) * jax.lax.iota(jnp.uint32, rows)
    # A row is below 2**16, so that the products fit their words.
    middle = row * jnp.uint32(per_row >> 16)
    low = row * jnp.uint32(per_row & 0xFFFF)
    start = low + (middle << 16)
    high = (middle >> 16) + (start < low).astype(jnp.uint32)
    numbers = start[:, None] + jax.lax.iota(jnp.uint32, per_row)[None]
    return high[:, None] + (numbers < start[:, None]).astype(jnp.uint32), numbers


def _threefry(
    key: tuple[jax.Array, jax.Array], high: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011, "Parallel random numbers"), JAX's generator.

    Its rounds stand one behind the other, so that XLA makes one loop of them and of what follows.
    JAX's own form for CPUs is a loop over the rounds that writes all numbers in each.
    """
    words = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    high, low = high + words[0], low + words[1]
    for group in range(1, 6):
        for by in _ROTATIONS[(group - 1) % 2]:
            high = high + low
            low = ((low << jnp.uint32(by)) | (low >> jnp.uint32(32 - by))) ^ high
        high = high + words[group % 3]
        low = low + words[(group + 1) % 3] + jnp.uint32(group)
    return high, low


def _random_bits(
    rows: int, stride: int, data: jax.Array, bit_width: int, shape: tuple[int, ...]
) -> jax.Array:
    high, low = _bit_numbers(data[2], rows, stride, math.prod(shape))
    bits_1, bits_2 = _threefry((data[0], data[1]), high, low)
    kind = _TYPES[bit_width]
    if bit_width == 64:
        bits = (bits_1.astype(kind) << jnp.asarray(32, kind)) | bits_2.astype(kind)
    else:
        bits = (bits_1 ^ bits_2).astype(kind)
    return bits.reshape(shape)


def _seed(seed: jax.Array) -> jax.Array:
    data = jax.random.key_data(jax.random.key(seed))
    return jnp.concatenate([data, jnp.zeros((1,), jnp.uint32)])


@functools.cache
def _implementation(rows: int, stride: int) -> Any:
    return jex_random.define_prng_impl(
        key_shape=(3,),
        seed=_seed,
        split=_split,
        random_bits=functools.partial(_random_bits, rows, stride),
        fold_in=_fold_in,
        name=f"threefry2x32_of_{rows}_rows_by_{stride}",
        tag=f"fry{rows}by{stride}",
    )


def key_of_rows(key: jax.Array, first: jax.Array | int, rows: int, stride: int = 1) -> jax.Array:
    """A key for some rows of a batch: `first`, `first + stride`, ..., `rows` of them.

    Args:
      key: a key of JAX's default generator (threefry, partitionable), for the whole batch.
      first: the first row; all rows are below 2**16.
      rows: how many.
      stride: from one to the next.

    Returns:
      A key. An array (rows, ...) drawn with it is `whole[first : first + rows * stride : stride]`
      of the array drawn with `key`, and the same holds for all keys derived from it. What is drawn
      has to have the batch as its leading axis, alone or merged with axes after it. With `first` 0
      and `rows` 1 all of any draw is that one row: what `key` itself draws.
    """
    data = jax.random.key_data(key)
    first = jnp.asarray(first).astype(jnp.uint32)
    impl = _implementation(rows, stride)
    return jax.random.wrap_key_data(jnp.concatenate([data, first[None]]), impl=impl)
