"""A part's draws are that part of the whole draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.training import position_keys
from vit_jax.training.position_keys import at_position

KEY = jax.random.key(3)


def derived(key: jax.Array) -> jax.Array:
    """As a model derives keys: a stream, folds, splits."""
    return jax.random.split(jax.random.fold_in(nnx.Rngs(dropout=key).dropout(), 5), 3)[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parts_of_uniform_draws(dtype):
    whole = jax.random.uniform(derived(KEY), (8, 3, 5), dtype)
    for part in range(4):
        key = derived(at_position(KEY, jnp.int32(part)))
        drawn = jax.random.uniform(key, (2, 3, 5), dtype)
        np.testing.assert_array_equal(drawn, whole[2 * part : 2 * part + 2])


def test_float64_draws(x64):
    whole = jax.random.uniform(KEY, (4, 3), jnp.float64)
    drawn = jax.random.uniform(at_position(KEY, jnp.int32(1)), (2, 3), jnp.float64)
    np.testing.assert_array_equal(drawn, whole[2:])


def test_under_jit_and_scan():
    @jax.jit
    def layers(key: jax.Array, rows: int = 2) -> jax.Array:
        keys = jax.random.split(key, 3)
        return jax.lax.scan(lambda _, k: (0, jax.random.bernoulli(k, 0.3, (2, 4))), 0, keys)[1]

    whole = jnp.stack([jax.random.bernoulli(k, 0.3, (6, 4)) for k in jax.random.split(KEY, 3)])
    np.testing.assert_array_equal(layers(at_position(KEY, jnp.int32(2))), whole[:, 4:6])


@pytest.mark.parametrize(("position", "size"), [(40_000, 300_000), (65_535, 262_144), (3, 2**20)])
def test_numbers_of_bits_past_32_bits(position, size, monkeypatch):
    """The counters of a draw far into a sequence, which no test could make in full."""
    seen = {}

    class Threefry:
        @staticmethod
        def bind(key_1, key_2, high, low):
            seen.update(high=np.asarray(high), low=np.asarray(low))
            return high, low

    monkeypatch.setattr(position_keys.jex_random, "threefry2x32_p", Threefry)
    data = jnp.asarray([1, 2, position], jnp.uint32)
    position_keys._random_bits(data, 32, (size,))
    counts = (seen["high"].astype(np.uint64) << np.uint64(32)) | seen["low"]
    np.testing.assert_array_equal(counts, position * size + np.arange(size, dtype=np.uint64))
