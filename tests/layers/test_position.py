"""The sinusoid table."""

import numpy as np
import pytest

from tests import golden
from vit_jax.layers.position import sinusoid_table

TABLES = golden.load("prim_sinusoid").arrays


@pytest.mark.parametrize("name", TABLES)
def test_sinusoid(name: str) -> None:
    """Float64 to rounding; the float32 tables of PyTorch bit by bit."""
    positions, dim = map(int, name.split("_")[1].split("x"))
    table = sinusoid_table(positions, dim)
    assert table.shape == (positions, dim)
    if name.startswith("rows"):
        table = table[[0, 1, 2, 97, positions - 1]]
    if name.endswith("float64"):
        np.testing.assert_allclose(table, TABLES[name], rtol=0, atol=1e-15)
    else:
        np.testing.assert_array_equal(table.astype(np.float32), TABLES[name])
