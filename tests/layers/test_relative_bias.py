"""Tables of relative position biases beside timm, PyTorch and scipy."""

import functools
import itertools

import numpy as np
import pytest
import torch
from scipy import interpolate

from tests.models.timm_models import timm_models
from tests.weights.designs import assert_close
from vit_jax.layers.relative_bias import (
    BIAS_METHODS,
    CLASS_ROWS,
    relative_index,
    resize_bias_table,
    square_grid,
    table_rows,
)

with_class = functools.partial(resize_bias_table, class_rows=CLASS_ROWS)


def test_the_row_of_a_pair_is_that_of_its_distance() -> None:
    index = relative_index((3, 5))
    assert index.shape == (15, 15)
    assert (index[0, 14], index[14, 0], index[7, 7]) == (0, 44, 22)
    assert index[5, 0] == (1 + 2) * 9 + 4  # the query a row below the key
    assert len(np.unique(index)) == 45


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4)])
def test_the_row_of_a_pair_with_a_class_token_is_timms(grid: tuple[int, int]) -> None:
    want = timm_models("beit").gen_relative_position_index(grid).numpy()
    np.testing.assert_array_equal(relative_index(grid, CLASS_ROWS), want)


@pytest.mark.parametrize("class_rows", [0, CLASS_ROWS])
def test_square_grids(class_rows: int) -> None:
    for grid in ((1, 1), (3, 3), (7, 7)):
        assert square_grid(table_rows(grid, class_rows), class_rows) == grid
    for rows in (0, 36, 45):  # 36: of no grid; 45: of 3x5
        assert square_grid(rows + class_rows, class_rows) is None


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple")  # of timm
@pytest.mark.parametrize("new", [(4, 4), (9, 9), (5, 12)])
@pytest.mark.parametrize("method", ["bicubic", "geometric"])
def test_biases_for_another_window(
    method: str, new: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's bicubic, and as timm does it, here without its float32."""
    table = np.random.default_rng(0).normal(size=(13 * 13, 3))
    got = resize_bias_table(table, (7, 7), new, method=method)
    rows, columns = (2 * side - 1 for side in new)
    if method == "bicubic":
        grid = torch.tensor(table.T.reshape(1, 3, 13, 13))
        want = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic")
        want = want.reshape(3, -1).T
    else:
        resize = timm_models("swin_transformer").resize_rel_pos_bias_table
        shape = (rows * columns, 3)
        rounded = resize(torch.tensor(table), new, shape)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            want = resize(torch.tensor(table), new, shape)
        finally:
            torch.set_default_dtype(torch.float32)
        single = resize_bias_table(table.astype(np.float32), (7, 7), new, method=method)
        np.testing.assert_allclose(single, rounded.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-12)
    assert got.shape == (rows * columns, 3)


def test_biases_that_stay_and_biases_that_are_none() -> None:
    table = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    for method in BIAS_METHODS:
        same = resize_bias_table(table, (3, 3), (3, 3), method=method)
        np.testing.assert_array_equal(same, table)
        assert same is not table
    with pytest.raises(ValueError, match=r"wanted a table .*\(49, heads\), .*4x4, got \(25, 2\)"):
        resize_bias_table(table, (4, 4), (3, 3), method="geometric")
    with pytest.raises(ValueError, match=r"bias_resize must be one of .*got 'cubic'"):
        resize_bias_table(table, (3, 3), (3, 3), method="cubic")
    with pytest.raises(ValueError, match="biases in floating point, got int64"):
        resize_bias_table(np.zeros((25, 2), np.int64), (3, 3), (4, 4), method="geometric")
    with pytest.raises(ValueError, match=r"at least 3 tokens along each side, got 2"):
        with_class(np.zeros((12, 1)), (2, 2), (3, 3), method="geometric_cubic")
    with pytest.raises(ValueError, match=r"wanted a table .* \(12, heads\), .*got \(13, 1\)"):
        with_class(np.zeros((13, 1)), (2, 2), (3, 3), method="geometric")


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
def test_tables_with_a_class_token_are_timms_and_unilms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """unilm: scipy's interp2d, which is this spline; of square grids."""
    resize = timm_models("beit").resize_rel_pos_bias_table
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    for old, new in itertools.permutations(((4, 4), (7, 7), (3, 5), (2, 6)), 2):
        table = np.random.default_rng(0).normal(size=(table_rows(old, CLASS_ROWS), 3))
        torch.set_default_dtype(torch.float64)
        try:
            want = resize(torch.tensor(table), new, (table_rows(new, CLASS_ROWS), 3), old).numpy()
        finally:
            torch.set_default_dtype(torch.float32)
        assert_close(with_class(table, old, new, method="geometric"), want)
    for old, new in ((4, 7), (7, 4), (14, 24)):
        table = np.random.default_rng(0).normal(size=(table_rows((old, old), CLASS_ROWS), 2))
        places = geometric_places(2 * old - 1, 2 * new - 1)
        wanted = np.arange(-(new - 1), new)
        want = [
            interpolate.RectBivariateSpline(places, places, head.reshape(len(places), -1))(
                wanted, wanted
            ).ravel()
            for head in table[:-3].T
        ]
        got = with_class(table, (old, old), (new, new), method="geometric_cubic")
        assert_close(got[:-3], np.stack(want, axis=1))
        np.testing.assert_array_equal(got[-3:], table[-3:])


def geometric_places(old: int, new: int) -> list[float]:
    """unilm's rule, step by step."""
    left, right, ratio = 1.01, 1.5, 0.0
    while right - left > 1e-6:
        ratio = (left + right) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            right = ratio
        else:
            left = ratio
    places, at = [], 1.0
    for number in range(old // 2):
        places.append(at)
        at += ratio ** (number + 1)
    return [-place for place in reversed(places)] + [0.0, *places]
