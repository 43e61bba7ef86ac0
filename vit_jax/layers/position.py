"""Fixed position tables."""

import numpy as np


def sinusoid_table(positions: int, dim: int) -> np.ndarray:
    """Sines and cosines of the positions (Vaswani et al. 2017, 1706.03762, section 3.5).

    Returns:
      (positions, dim) in float64: sin(p / 10000**(2 (j // 2) / dim)) at even j, the cosine of the
      same angle at odd j.
    """
    even = 2 * (np.arange(dim) // 2)
    angles = np.arange(positions)[:, None] / np.power(10000.0, even / dim)
    return np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles))


def grid_sinusoid_table(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Sines and cosines of the columns and of the rows of a grid, row by row (He et al. 2021, MAE).

    Args:
      grid: (rows, columns).
      dim: a multiple of 4.

    Returns:
      (rows * columns, dim) in float64, rounded to float32: in the first half the sines, then the
      cosines of c / 10000**(4 i / dim) for the column c, in the second half those of the row.
      (facebookresearch/mae, util/pos_embed.py, whose names say the opposite: its issue 18.)

    Raises:
      ValueError: another dim.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions of a grid need a width divisible by 4, got {dim}")
    frequencies = 1 / 10000.0 ** (np.arange(dim // 4) / (dim / 4))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [side[:, None] * frequencies for side in (columns, rows)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32).astype(np.float64)
