"""Any changed bit, and any exchanged values, change the fingerprint."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.weights.fingerprint import fingerprint

DTYPES = ["float32", "bfloat16", "int32", "uint8", "bool"]


def array(dtype: str) -> np.ndarray:
    return np.asarray(jnp.asarray(np.random.default_rng(0).integers(0, 2, (5, 7)), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
    start = array(dtype)
    prints = {int(fingerprint([jnp.asarray(start)])[0])}
    raw = start.view(np.uint8)
    bits = 1 if dtype == "bool" else 8
    for place in range(raw.size):
        for bit in range(bits):
            changed = raw.copy()
            changed.flat[place] ^= 1 << bit
            prints.add(int(fingerprint([jnp.asarray(changed.view(start.dtype))])[0]))
    assert len(prints) == 1 + raw.size * bits


def test_float64(x64):
    values = np.linspace(0, 1, 9)
    changed = values.copy()
    changed.view(np.uint8)[3] ^= 1  # the low word of the first number
    assert fingerprint([jnp.asarray(values)])[0] != fingerprint([jnp.asarray(changed)])[0]


def test_places_count():
    values = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    prints = [int(fingerprint([jnp.asarray(v)])[0]) for v in (values, values.T, values[::-1])]
    assert len(set(prints)) == 3
    assert int(fingerprint([jnp.zeros((4,))])[0]) != int(fingerprint([jnp.zeros((5,))])[0])


def test_one_for_each_array_in_order():
    both = fingerprint([jnp.ones(3), jnp.zeros(2)])
    assert both.dtype == jnp.uint32
    np.testing.assert_array_equal(both[::-1], fingerprint([jnp.zeros(2), jnp.ones(3)]))
