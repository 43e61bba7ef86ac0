"""Position embeddings resized as PyTorch, timm and scipy do it."""

import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage  # a dependency of JAX

from tests import golden
from tests.golden import weights
from vit_jax.layers.position_resize import METHODS, resize_pos_embed

TORCH = {
    "timm": {"mode": "bicubic", "antialias": True},
    "bicubic": {"mode": "bicubic", "antialias": False},
    "bilinear": {"mode": "bilinear", "antialias": False},
    "bilinear_antialias": {"mode": "bilinear", "antialias": True},
    "dinov2": {"mode": "bicubic", "antialias": False},
}
GRIDS = [
    ((14, 14), (24, 24)),
    ((24, 24), (14, 14)),
    ((14, 14), (7, 7)),
    ((14, 14), (37, 16)),
    ((12, 5), (3, 11)),  # down and up at once
    ((9, 7), (9, 20)),  # one axis alone
    ((3, 3), (40, 2)),
    ((1, 1), (4, 3)),
    ((6, 5), (1, 1)),
    ((1, 6), (6, 1)),
    ((2, 2), (3, 3)),
    ((30, 30), (4, 13)),  # kernels over many cells
    ((5, 8), (5, 8)),
]


def _table(grid: tuple[int, int], dtype, prefix: int = 0, dim: int = 5) -> np.ndarray:
    shape = (1, prefix + grid[0] * grid[1], dim)
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def _torch(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], method: str):
    grid = torch.from_numpy(table).reshape(1, *old, -1).permute(0, 3, 1, 2)
    size: dict = {"size": new}
    if method == "dinov2":
        size = {"scale_factor": tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))}
    grid = torch.nn.functional.interpolate(grid, **size, align_corners=False, **TORCH[method])
    return grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).numpy()


@pytest.mark.parametrize("method", TORCH)
def test_as_torch(method):
    """Float64 to rounding; float32 to the rounding of torch's sums (of up to 200 products).

    (The places of the cells, in float32, alone move it by up to 4e-6: they are torch's too.)
    """
    tolerances = {np.float64: 1e-13, np.float32: 1e-6}
    for (old, new), (dtype, atol) in itertools.product(GRIDS, tolerances.items()):
        table = _table(old, dtype)
        got = resize_pos_embed(table, old, new, num_prefix_tokens=0, method=method)
        assert got.dtype == dtype
        want = table if old == new else _torch(table, old, new, method)
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=f"{old} to {new}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_scipy(dtype):
    atol = 1e-13 if dtype == np.float64 else 2.4e-7  # one rounding of a number below 4
    for old, new in GRIDS:
        table = _table(old, dtype)
        zoom = (new[0] / old[0], new[1] / old[1], 1)  # google-research/vision_transformer
        want = ndimage.zoom(table.reshape(*old, -1), zoom, order=1).reshape(1, new[0] * new[1], -1)
        got = resize_pos_embed(table, old, new, num_prefix_tokens=0, method="google")
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=f"{old} to {new}")


def test_the_zeros_that_scipy_appends_are_not_repeated():
    """25 * (7 / 25) rounds to more than 7: scipy takes its last cell for one outside the grid."""
    table = _table((8, 1), np.float64)
    want = ndimage.zoom(table.reshape(8, 1, -1), (26 / 8, 1, 1), order=1).reshape(26, -1)
    got = resize_pos_embed(table, (8, 1), (26, 1), num_prefix_tokens=0, method="google")[0]
    np.testing.assert_allclose(got[:-1], want[:-1], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(want[-1], 0)
    np.testing.assert_array_equal(got[-1], table[0, -1])


FIXTURE = {
    "t2t_bicubic": "bicubic",
    "timm_bicubic_antialias": "timm",
    "timm_bicubic_noantialias": "bicubic",
    "vitpy_bilinear": "bilinear",
}
FOLDER = Path(golden.__file__).parent
SPEC = json.loads((FOLDER / "prim_pos_embed_resize.json").read_text())


@pytest.mark.parametrize("name", [name for name, _, _ in SPEC["npz_arrays"]])
def test_golden(name):
    """The stored answers are float64's; those of float32 are within 1e-6 of them."""
    source, _, size = name.rpartition("_")
    new = tuple(map(int, size.split("x")))
    table = weights.make_param("pos_embed", (1, 197, 3), SPEC["param_seed"])
    with np.load(FOLDER / "prim_pos_embed_resize.npz") as stored:
        want = stored[name]
    for dtype, atol in ((np.float64, 1e-12), (np.float32, 1e-6)):
        got = resize_pos_embed(
            table.astype(dtype), (14, 14), new, num_prefix_tokens=1, method=FIXTURE[source]
        )
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_prefix_tokens_are_kept(method, prefix):
    table = _table((4, 6), np.float32, prefix)
    before = table.copy()
    got = resize_pos_embed(table, (4, 6), (7, 3), num_prefix_tokens=prefix, method=method)
    assert got.shape == (1, prefix + 21, 5)
    np.testing.assert_array_equal(got[:, :prefix], table[:, :prefix])
    patches = resize_pos_embed(
        table[:, prefix:], (4, 6), (7, 3), num_prefix_tokens=0, method=method
    )
    np.testing.assert_array_equal(got[:, prefix:], patches)
    flat = resize_pos_embed(table[0], (4, 6), (7, 3), num_prefix_tokens=prefix, method=method)
    np.testing.assert_array_equal(flat, got[0])
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_grid_is_a_copy(method):
    table = _table((4, 6), np.float32, 1)
    got = resize_pos_embed(table, (4, 6), (4, 6), num_prefix_tokens=1, method=method)
    np.testing.assert_array_equal(got, table)
    assert not np.shares_memory(got, table)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_goes_through_float32(dtype):
    """As in timm, but for the halves where float32 has rounded already."""
    table = _table((4, 4), np.float32, 1).astype(dtype)
    got = resize_pos_embed(table, (4, 4), (6, 6), num_prefix_tokens=1, method="timm")
    assert got.dtype == dtype
    wide = resize_pos_embed(
        table.astype(np.float32), (4, 4), (6, 6), num_prefix_tokens=1, method="timm"
    )
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float32), wide, rtol=0.51 * eps, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "cubic"}, r"method must be one of \('timm', .*got 'cubic'"),
        ({"old_grid": (4, 5)}, r"\(1, 21, D\) or \(21, D\), 1 prefix tokens and a grid of 4x5, "),
        ({"num_prefix_tokens": 2}, r"\(1, 18, D\).*got \(1, 17, 5\)"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens must be an int of at least 0, got -1"),
        (
            {"new_grid": (0, 3)},
            r"new_grid must be \(rows, columns\), at least 1 each, got \(0, 3\)",
        ),
        ({"new_grid": (3,)}, r"new_grid must be \(rows, columns\).*got \(3,\)"),
        ({"table": np.zeros((2, 17, 5))}, r"got \(2, 17, 5\)"),
        ({"table": np.zeros(17)}, r"got \(17,\)"),
        ({"table": np.zeros((17, 5), int)}, "floating point, got int64"),
    ],
)
def test_mistakes(change, message):
    good = {
        "table": _table((4, 4), np.float32, 1),
        "old_grid": (4, 4),
        "new_grid": (5, 5),
        "num_prefix_tokens": 1,
        "method": "timm",
    }
    resize_pos_embed(**good)
    with pytest.raises(ValueError, match=message):
        resize_pos_embed(**{**good, **change})
