"""Position embeddings of one grid of patches for another, and patches of another size.

Every method is separable: a matrix for the rows, a matrix for the columns. The sources:

- "timm": `resample_abs_pos_embed` of timm 1.0.31 (layers/pos_embed.py): torch's bicubic with
  antialias, a = -0.5. timm's ViT, DeiT and DeiT III checkpoints.
- "bicubic": torch's bicubic without antialias, a = -0.75: the finetuning of DeiT (main.py), the
  official T2T-ViT (utils.py) and Hugging Face's `interpolate_pos_encoding`.
- "bilinear": torch's bilinear without antialias: models/vit.py of T2T-ViT, timm's reader of
  Google's npz files.
- "bilinear_antialias": torch's bilinear with antialias.
- "dinov2": as "bicubic", but for (new + 0.1) cells, which moves every place: DINOv2's release
  (facebookresearch/dinov2, models/vision_transformer.py, `interpolate_offset=0.1`).
- "google": `scipy.ndimage.zoom(order=1)`, of google-research/vision_transformer (checkpoint.py) and
  big_vision: linear between cells, the corner cells falling on the corner cells.

The sinusoid tables of T2T-ViT follow from their number of rows: for another size they are computed
anew (`layers.position.sinusoid_table`), not resized.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from vit_jax.layers.checks import check_choice, check_int

_FLOAT64 = np.dtype(np.float64)
METHODS = ("timm", "bicubic", "bilinear", "bilinear_antialias", "google", "dinov2")

_Elementwise = Callable[[np.ndarray], np.ndarray]


def _cubic(x: np.ndarray, a: float, to: _Elementwise) -> np.ndarray:
    """Keys' convolution kernel (1981) of parameter `a`; `to` rounds to the source's type."""
    x = np.abs(x)
    near = to(to(to((a + 2) * x - (a + 3)) * x) * x + 1)
    far = to(to(to(a * x - 5 * a) * x + 8 * a) * x - 4 * a)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0.0)


def _taps(old: int, places: np.ndarray, offsets: range, kernel: _Elementwise) -> np.ndarray:
    """Weights at the cells around each place (cell j is at j); the border is repeated."""
    matrix = np.zeros((len(places), old))
    first = np.floor(places).astype(int)
    for offset in offsets:
        cell = np.clip(first + offset, 0, old - 1)
        # One offset after the other: clipped cells coincide.
        matrix[np.arange(len(places)), cell] += kernel(places - (first + offset))
    return matrix


def _antialiased(
    old: int, places: np.ndarray, narrowing: float, kernel: _Elementwise, to: _Elementwise
) -> np.ndarray:
    """Weights of a kernel over the cells (cell j is at j + 0.5), divided by their sum."""
    distances = to(to(np.arange(old) - places[:, None]) + 0.5)
    matrix = kernel(to(distances * narrowing))
    return to(matrix / to(matrix.sum(axis=1, keepdims=True)))


def resize_matrix(old: int, new: int, method: str, dtype: np.dtype = _FLOAT64) -> np.ndarray:
    """The weights (new, old) that make `new` cells of `old` along one axis.

    torch finds them in the table's type, by fused multiply-adds: in float32 a place among 24 cells
    is off by 1e-6 of a cell, which is more than its rounding of the sums. scipy uses float64.
    """

    def to(x: np.ndarray) -> np.ndarray:
        """Rounds to `dtype`; the result is of float64 again."""
        return x.astype(dtype).astype(np.float64)

    if method == "google":
        # One new cell takes the first old one. Rounding may put the last beyond the last old one,
        # where scipy gives a row of zeros (8 -> 26, 15 -> 42 cells, ...): not repeated here, where
        # the border goes on.
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        return _taps(old, np.arange(new) * step, range(2), _triangle)
    step = float(dtype.type(1 / ((new + 0.1) / old) if method == "dinov2" else old / new))
    narrowing = float(dtype.type(1 / max(step, 1.0)))  # the kernel is as wide as the larger cell
    middles = (np.arange(new) + 0.5) * step
    if method == "timm":
        return _antialiased(old, to(middles), narrowing, lambda x: _cubic(x, -0.5, to), to)
    if method == "bilinear_antialias":
        return _antialiased(old, to(middles), narrowing, lambda x: to(_triangle(x)), to)
    places = to(middles - 0.5)
    if method in ("bicubic", "dinov2"):
        return _taps(old, places, range(-1, 3), lambda x: _cubic(to(x), -0.75, to))
    return _taps(old, places, range(2), lambda x: to(_triangle(x)))


def check_grid(name: str, grid: Sequence[int]) -> tuple[int, int]:
    """Returns (rows, columns) as plain ints, or raises ValueError."""
    try:
        rows, columns = (check_int(name, side, least=1) for side in grid)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (rows, columns), at least 1 each, got {grid!r}") from None
    return rows, columns


def resize_pos_embed(
    table: np.ndarray,
    old_grid: Sequence[int],
    new_grid: Sequence[int],
    *,
    num_prefix_tokens: int,
    method: str,
) -> np.ndarray:
    """Resizes learned position embeddings to another grid of patches.

    The weights are those of float64 for a float64 table and of float32 for any other, as torch has
    them ("google": always of float64, as scipy); their sums are of float64, rounded once to the
    table's type. (timm turns a float64 table to float32 first; here it stays exact.)

    Args:
      table: (1, P + N, D) or (P + N, D), floating point: P prefix tokens, then the patches row by
        row.
      old_grid, new_grid: (rows, columns) of the patches, N = rows * columns.
      num_prefix_tokens: P, the rows of class, distillation and register tokens, kept as they are.
      method: one of `METHODS`: see the module's docstring.

    Returns:
      A new array of the table's type and rank, for P + N' tokens; a copy where the grids are equal.

    Raises:
      ValueError: a table of another shape or type, a grid that does not fit, an unknown method.
    """
    check_choice("method", method, METHODS)
    prefix = check_int("num_prefix_tokens", num_prefix_tokens, least=0)
    (rows, columns), new = check_grid("old_grid", old_grid), check_grid("new_grid", new_grid)
    table = np.asarray(table)
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(f"wanted a position table in floating point, got {table.dtype}")
    tokens = prefix + rows * columns
    if table.ndim not in (2, 3) or table.shape[-2] != tokens or table.shape[:-2] not in ((), (1,)):
        raise ValueError(
            f"wanted a position table (1, {tokens}, D) or ({tokens}, D), {prefix} prefix tokens "
            f"and a grid of {rows}x{columns}, got {table.shape}"
        )
    if new == (rows, columns):
        return table.copy()
    dim = table.shape[-1]
    dtype = np.dtype(np.float64 if table.dtype == np.float64 else np.float32)
    kept, grid = np.split(table.reshape(tokens, dim), [prefix])
    grid = grid.astype(np.float64).reshape(rows, columns, dim)
    by_rows = resize_matrix(rows, new[0], method, dtype)
    by_columns = resize_matrix(columns, new[1], method, dtype)
    grid = np.tensordot(by_rows, grid, axes=1)  # (rows', columns, D)
    grid = np.tensordot(by_columns, grid, axes=([1], [1]))
    grid = grid.swapaxes(0, 1).reshape(-1, dim)
    resized = np.concatenate([kept, grid.astype(table.dtype)])
    return resized.reshape(*table.shape[:-2], *resized.shape)


def resample_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A convolution's kernel over patches, for patches of another size.

    The least-squares solution of: the new kernel on a patch, resized by torch's bicubic with
    antialias, gives what the old one gives on the patch. (FlexiViT, 2212.08013, section 3.4;
    `resample_patch_embed` of timm 1.0.31, layers/patch_embed.py.)

    Args:
      kernel: (O, C, h, w), floating point.
      size: (height, width) of the new one.

    Returns:
      (O, C, *size), of the kernel's type.

    Raises:
      ValueError: a kernel in integers.
    """
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(f"wanted a patch kernel in floating point, got {kernel.dtype}")
    dtype = np.dtype(np.float64 if kernel.dtype == np.float64 else np.float32)
    rows, columns = (
        np.linalg.pinv(resize_matrix(old, new, "timm", dtype).T)
        for old, new in zip(kernel.shape[2:], size, strict=True)
    )
    return np.einsum("yh,xw,ochw->ocyx", rows, columns, kernel.astype(np.float64)).astype(
        kernel.dtype
    )
