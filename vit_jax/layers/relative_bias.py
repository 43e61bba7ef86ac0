"""Relative position biases: of a grid of patches, as BEiT's, or of a window, as Swin's.

Bao et al. 2021 (2106.08254), Liu et al. 2021 (2103.14030). A table holds a number for each head and
each offset from one token of a grid to another, (2h - 1)(2w - 1) rows for a grid of h x w; where a
class token stands before them, three more rows hold those from it to them, from them to it, and
from it to itself.

For another grid the offsets are resized. The sources disagree:

- "geometric": timm 1.0.31 (layers/pos_embed_rel.py), for both: linear between places that grow
  geometrically with their distance from the middle, so that near offsets keep their values.
- "geometric_cubic": microsoft/unilm (beit/run_class_finetuning.py): a cubic spline through the same
  places, of scipy's `interp2d`.
- "bilinear": transformers 5.24 (models/beit), at every call: torch's bilinear without antialias.
- "bicubic": microsoft/Swin-Transformer (utils.py): torch's bicubic without antialias.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention, scaled_products
from vit_jax.layers.checks import check_choice
from vit_jax.layers.position_resize import check_grid, resize_matrix

Grid = tuple[int, int]
BIAS_METHODS = ("geometric", "geometric_cubic", "bilinear", "bicubic")
CLASS_ROWS = 3  # of a class token
_SPLINE_SIDE = 3  # a cubic spline needs four places; a side of 2 has three


def table_rows(grid: Grid, class_rows: int = 0) -> int:
    """Rows of the table of a grid; `class_rows`: `CLASS_ROWS` with a class token, else 0."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + class_rows


def square_grid(rows: int, class_rows: int = 0) -> Grid | None:
    """The square grid whose table has so many rows; None: there is none."""
    side = math.isqrt(max(rows - class_rows, 0))
    is_square = side % 2 == 1 and side * side == rows - class_rows
    return ((side + 1) // 2, (side + 1) // 2) if is_square else None


def relative_index(grid: Grid, class_rows: int = 0) -> np.ndarray:
    """The row of the table for each pair of a query and a key: (N, N), whole numbers.

    N counts the class token, the first, where there are `class_rows`.
    """
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij")).reshape(2, -1)
    down, along = places[:, :, None] - places[:, None, :]
    offsets = (down + grid[0] - 1) * (2 * grid[1] - 1) + along + grid[1] - 1
    if not class_rows:
        return offsets.astype(np.int32)
    index = np.full((len(offsets) + 1,) * 2, table_rows(grid), np.int32)
    index[1:, 1:] = offsets
    index[1:, 0] += 1
    index[0, 0] += 2
    return index


def _geometric_places(old: int, new: int) -> np.ndarray:
    """Where `old` cells lie among `new` ones, of which the middle one is at 0; both are odd.

    At 1, 1 + q, 1 + q + q^2, ... on either side; q, at least 1.01 and at most 1.5, is found by
    bisection so that the last one lies at the border, as the sources find it.
    """
    reach, low, high = old // 2, 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**reach) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    right = np.cumsum(ratio ** np.arange(reach))
    return np.concatenate([-right[::-1], [0.0], right])


def _bias_matrix(old: int, new: int, method: str, dtype: np.dtype) -> np.ndarray:
    """The weights (2 new - 1, 2 old - 1) that make the offsets of `new` tokens along an axis."""
    old_cells, new_cells = 2 * old - 1, 2 * new - 1
    if method in ("bilinear", "bicubic"):
        return resize_matrix(old_cells, new_cells, method, dtype)
    places, wanted = _geometric_places(old_cells, new_cells), np.arange(1 - new, new)
    if method == "geometric":
        places = places.astype(dtype)
        return np.stack([np.interp(wanted, places, cell) for cell in np.eye(old_cells)], axis=1)
    if old < _SPLINE_SIDE:
        raise ValueError(
            f"bias_resize 'geometric_cubic' needs a grid of at least {_SPLINE_SIDE} tokens along "
            f"each side, got {old}"
        )
    from scipy import interpolate

    spline = interpolate.make_interp_spline(places, np.eye(old_cells), k=3)
    return spline(np.clip(wanted, places[0], places[-1]))


def bias_matrices(
    old_grid: Grid, new_grid: Grid, method: str, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The weights for the rows and for the columns of the offsets of another grid.

    Where the grids are equal they are identities: no source resizes then.

    Args:
      old_grid, new_grid: (rows, columns).
      method: one of `BIAS_METHODS`.
      dtype: of the table, in which torch finds the places; the spline's are of float64.

    Raises:
      ValueError: an unknown method; a side of less than 3 tokens for the spline.
    """
    check_choice("bias_resize", method, BIAS_METHODS)
    if old_grid == new_grid:
        rows, columns = (np.eye(2 * side - 1) for side in old_grid)
        return rows, columns
    down, along = (
        _bias_matrix(old, new, method, dtype) for old, new in zip(old_grid, new_grid, strict=True)
    )
    return down, along


def resize_bias_table(
    table: np.ndarray,
    old_grid: Sequence[int],
    new_grid: Sequence[int],
    *,
    method: str,
    class_rows: int = 0,
) -> np.ndarray:
    """A table for another grid; a copy where the grids are equal.

    Args:
      table: (rows, heads), floating point.
      old_grid, new_grid: (rows, columns) of the tokens.
      method: one of `BIAS_METHODS`.
      class_rows: of a class token, kept as they are: see `table_rows`.

    Returns:
      (rows, heads), of the table's type; the sums are of float64. (timm's are of float32.)

    Raises:
      ValueError: a table that is not of the old grid, or in integers; see `bias_matrices`.
    """
    check_choice("bias_resize", method, BIAS_METHODS)
    old, new = check_grid("old_grid", old_grid), check_grid("new_grid", new_grid)
    table = np.asarray(table)
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(f"wanted a table of relative biases in floating point, got {table.dtype}")
    if table.ndim != 2 or len(table) != table_rows(old, class_rows):
        raise ValueError(
            f"wanted a table of relative biases ({table_rows(old, class_rows)}, heads), of a grid "
            f"of {old[0]}x{old[1]}, got {table.shape}"
        )
    if old == new:
        return table.copy()
    dtype = np.dtype(np.float64 if table.dtype == np.float64 else np.float32)
    down, along = bias_matrices(old, new, method, dtype)
    offsets, kept = np.split(table, [table_rows(old)])
    offsets = offsets.reshape(len(down.T), len(along.T), -1).astype(np.float64)
    offsets = np.einsum("yh,xw,hwn->yxn", down, along, offsets).reshape(-1, table.shape[1])
    return np.concatenate([offsets.astype(table.dtype), kept])


def pair_biases(
    table: Float[Array, "offsets heads"], grid: Grid, class_rows: int = 0
) -> Float[Array, "1 heads tokens tokens"]:
    """What is added to the scores of every pair of tokens of the grid that the table is of."""
    return table[relative_index(grid, class_rows)].transpose(2, 0, 1)[None]


def position_bias(
    table: Float[Array, "offsets heads"],
    down: Float[Array, "new_rows rows"],
    along: Float[Array, "new_columns columns"],
) -> Float[Array, "1 heads tokens tokens"]:
    """What is added to the scores of every pair of tokens of an image, the class token first.

    Args:
      table: of the model's own grid, (2h - 1)(2w - 1) + 3 rows.
      down, along: of `bias_matrices`, for the grid of the image; where they are square this is the
        model's own, and the table is taken as it is.
    """
    if any(matrix.shape[0] != matrix.shape[1] for matrix in (down, along)):
        offsets = table[:-CLASS_ROWS].reshape(down.shape[1], along.shape[1], -1)
        offsets = jnp.einsum("yh,xw,hwn->yxn", down, along, offsets, precision="highest")
        offsets = offsets.reshape(-1, table.shape[1])
        table = jnp.concatenate([offsets, table[-CLASS_ROWS:]])
    grid = ((down.shape[0] + 1) // 2, (along.shape[0] + 1) // 2)
    return pair_biases(table, grid, CLASS_ROWS)


class RelativePositionBias(nnx.Module):
    """A table of relative position biases with those of a class token, zeros at first.

    Args:
      grid: rows and columns of the patches.
      num_heads: of the attention.
    """

    def __init__(self, grid: Grid, num_heads: int, *, dtype: Dtype, param_dtype: Dtype):
        self.dtype = jnp.promote_types(dtype, jnp.float32)  # as the scores
        shape = (table_rows(grid, CLASS_ROWS), num_heads)
        self.relative_position_bias_table = nnx.Param(jnp.zeros(shape, param_dtype))

    def __call__(self, down: jax.Array, along: jax.Array) -> Float[Array, "1 heads tokens tokens"]:
        """See `position_bias`."""
        table = self.relative_position_bias_table[...].astype(self.dtype)
        return position_bias(table, down, along)


class BiasedAttention(Attention):
    """Attention without a bias of the keys, whose scores get the biases of a table, or given ones.

    Args:
      grid: rows and columns of the patches that its own table is for; None: it has none.
      dim, num_heads, **kind: see `Attention`.
    """

    def __init__(self, dim: int, num_heads: int, *, grid: Grid | None, **kind: Any):
        super().__init__(dim, num_heads, k_bias=False, **kind)
        types = {name: kind[name] for name in ("dtype", "param_dtype")}
        self.bias = RelativePositionBias(grid, num_heads, **types) if grid else None

    def scores(self, q: jax.Array, k: jax.Array, *context: jax.Array) -> jax.Array:
        """See `Attention.scores`; `context`: see `score_bias`."""
        products, bias = scaled_products(q, k, self.scale, self.form), self.score_bias(*context)
        return products if bias is None else products + bias

    def score_bias(
        self, down: jax.Array, along: jax.Array, *shared: jax.Array
    ) -> Float[Array, "1 heads tokens tokens"] | None:
        """The sum of its own biases and of those that all blocks share; None: there are none.

        Args:
          down, along: see `position_bias`.
          *shared: (1, heads, N, N), or none.
        """
        biases = [*shared] if self.bias is None else [self.bias(down, along), *shared]
        return functools.reduce(operator.add, biases) if biases else None
