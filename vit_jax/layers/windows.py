"""Windows of a feature map, and how far two of their tokens lie from each other.

Liu et al. 2021 (2103.14030) and 2022 (2111.09883); microsoft/Swin-Transformer (models/), timm
1.0.31 (models/swin_transformer*.py).
"""

from typing import Any

import numpy as np


def window_partition(x: Any, window: tuple[int, int]) -> Any:
    """Cuts maps into windows, image by image, row by row.

    Args:
      x: (B, rows, columns, D), of JAX or NumPy.
      window: rows and columns of one.

    Returns:
      (B * windows, tokens of a window, D).
    """
    batch, rows, columns, dim = x.shape
    down, along = rows // window[0], columns // window[1]
    x = x.reshape(batch, down, window[0], along, window[1], dim)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window[0] * window[1], dim)


def window_merge(windows: Any, window: tuple[int, int], size: tuple[int, int]) -> Any:
    """Undoes `window_partition`, of JAX or NumPy; `size`: rows and columns of the maps."""
    down, along = size[0] // window[0], size[1] // window[1]
    x = windows.reshape(-1, down, along, *window, windows.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *size, windows.shape[-1])


def shift_regions(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> np.ndarray:
    """Which tokens of a window of a shifted map were neighbours before: those of one number.

    Returns:
      (windows, tokens) whole numbers.
    """
    rows, columns = (
        (np.arange(side) >= side - extent).astype(np.int32) + (np.arange(side) >= side - moved)
        for side, extent, moved in zip(size, window, shift, strict=True)
    )
    regions = rows[:, None] * 3 + columns
    return window_partition(regions[None, :, :, None], window)[..., 0]


def log_coordinates(window: tuple[int, int], trained: tuple[int, int]) -> np.ndarray:
    """Distances of two tokens on Swin V2's logarithmic scale, in float32 as the sources hold them.

    Args:
      window: rows and columns.
      trained: those of the window that has the distances up to 1 before the logarithm.

    Returns:
      (1, 2 rows - 1, 2 columns - 1, 2).
    """
    axes = [_log_distances(side, widest) for side, widest in zip(window, trained, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)[None]


def _log_distances(side: int, widest: int) -> np.ndarray:
    distances = np.arange(1 - side, side, dtype=np.float32)
    distances = distances / np.float32(max(widest - 1, 1)) * np.float32(8)
    # PyTorch's logarithm of a float32 is the rounded exact one; NumPy's is not always.
    logarithms = np.log2((np.abs(distances) + np.float32(1)).astype(np.float64))
    return np.sign(distances) * logarithms.astype(np.float32) / np.float32(3)
