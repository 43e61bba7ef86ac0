"""The draws of some rows are those rows of the whole draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.training.row_keys import _bit_numbers, key_of_rows

KEY = jax.random.key(3)


def derived(key: jax.Array) -> jax.Array:
    """As a model derives keys: a stream, folds, splits."""
    return jax.random.split(jax.random.fold_in(nnx.Rngs(dropout=key).dropout(), 5), 3)[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contiguous_rows_of_uniform_draws(dtype):
    whole = jax.random.uniform(derived(KEY), (8, 3, 5), dtype)
    for part in range(4):
        key = derived(key_of_rows(KEY, jnp.int32(2 * part), 2))
        drawn = jax.random.uniform(key, (2, 3, 5), dtype)
        np.testing.assert_array_equal(drawn, whole[2 * part : 2 * part + 2])


@pytest.mark.parametrize("first", [0, 1, 2])
def test_rows_with_a_stride(first):
    whole = jax.random.uniform(derived(KEY), (12, 5))
    drawn = jax.random.uniform(derived(key_of_rows(KEY, first, 4, 3)), (4, 5))
    np.testing.assert_array_equal(drawn, whole[first::3])


def test_rows_merged_with_the_axis_after_them():
    whole = jax.random.uniform(KEY, (6, 4, 3)).reshape(24, 3)
    drawn = jax.random.uniform(key_of_rows(KEY, 1, 3, 2), (12, 3))
    np.testing.assert_array_equal(drawn, whole.reshape(6, 4, 3)[1::2].reshape(12, 3))


def test_float64_draws(x64):
    whole = jax.random.uniform(KEY, (4, 3), jnp.float64)
    drawn = jax.random.uniform(key_of_rows(KEY, 2, 2), (2, 3), jnp.float64)
    np.testing.assert_array_equal(drawn, whole[2:])


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.bits(key, (3, 5), jnp.uint8),
        lambda key: jax.random.normal(key, (70_000,), jnp.float32),
        lambda key: jax.random.bernoulli(key, 0.1, (4, 1, 1)),
        lambda key: jax.random.permutation(key, 17),
    ],
)
def test_the_whole_as_one_row(draw):
    np.testing.assert_array_equal(draw(derived(key_of_rows(KEY, 0, 1))), draw(derived(KEY)))


def test_a_draw_past_32_bits_is_refused():
    with pytest.raises(ValueError, match="4,294,967,296 numbers a row: wanted fewer than 2\\^32"):
        jax.eval_shape(lambda first: _bit_numbers(first, 1, 1, 2**32), jnp.uint32(0))


def test_under_jit_and_scan():
    @jax.jit
    def layers(key: jax.Array, rows: int = 2) -> jax.Array:
        keys = jax.random.split(key, 3)
        return jax.lax.scan(lambda _, k: (0, jax.random.bernoulli(k, 0.3, (2, 4))), 0, keys)[1]

    whole = jnp.stack([jax.random.bernoulli(k, 0.3, (6, 4)) for k in jax.random.split(KEY, 3)])
    np.testing.assert_array_equal(layers(key_of_rows(KEY, jnp.int32(4), 2)), whole[:, 4:6])


@pytest.mark.parametrize(
    ("first", "rows", "stride", "per_row"),
    [(40_000, 3, 2, 300_000), (65_530, 2, 5, 262_144), (3, 1, 1, 2**20), (9, 4, 7, 65_537)],
)
def test_numbers_of_bits_past_32_bits(first, rows, stride, per_row):
    """The counters of a draw far into a sequence, which no test could make in full."""
    bit_numbers = jax.jit(_bit_numbers, static_argnums=(1, 2, 3))
    high, low = bit_numbers(jnp.uint32(first), rows, stride, rows * per_row)
    found = (np.asarray(high).astype(np.uint64) << np.uint64(32)) | np.asarray(low)
    at = first + stride * np.arange(rows, dtype=np.uint64)
    wanted = at[:, None] * np.uint64(per_row) + np.arange(per_row, dtype=np.uint64)
    np.testing.assert_array_equal(found, wanted)


def test_a_draw_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="5 numbers cannot be divided between 2 rows"):
        jax.random.uniform(key_of_rows(KEY, 0, 2), (5,))
