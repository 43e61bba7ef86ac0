"""The first layer's filters and their principal components (Dosovitskiy et al. 2020, figure 7)."""

import math
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

_SHOWN, _COLUMNS = 28, 7  # of each block
_INCHES = 0.75  # the height of a filter


def principal_components(filters: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading principal components of filters.

    Args:
      filters: (D, height, width, C).
      count: how many at most.

    Returns:
      The components (count, height, width, C), of length one, and the share of the filters'
      variance that each explains.
    """
    matrix = filters.reshape(len(filters), -1)
    _, values, components = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    count = min(count, len(components))
    shares = values**2 / max(np.sum(values**2), np.finfo(np.float64).tiny)
    return components[:count].reshape(count, *filters.shape[1:]), shares[:count]


def draw_filters(filters: np.ndarray, title: str, out: pathlib.Path) -> None:
    """Draws the leading principal components, and the filters that weigh most.

    Args:
      filters: (D, height, width, C): with three channels as colours, else the channels side by
        side. Each is scaled by itself; grey is zero.
      title: above the picture.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    components, shares = principal_components(filters, _SHOWN)
    norms = np.sqrt(np.sum(filters**2, axis=(1, 2, 3)))
    largest = np.argsort(-norms, kind="stable")[:_SHOWN]
    _, height, width, channels = filters.shape
    blocks = (
        (
            f"{len(components)} leading principal components: {100 * shares.sum():.0f}% of the "
            "variance",
            components,
        ),
        (f"{len(largest)} of {len(filters)} filters, the largest first", filters[largest]),
    )
    wide = _INCHES * width / height * (1 if channels == 3 else channels)
    rows = math.ceil(len(largest) / _COLUMNS)
    figure = new_figure(2 * (_COLUMNS * wide * 1.08 + 0.3), rows * _INCHES * 1.08 + 1.0)
    figure.suptitle(f"{title}: {height} x {width} x {channels}, grey is zero", fontsize=11)
    parts = figure.subfigures(1, 2, squeeze=False)[0]
    for part, (caption, shown) in zip(parts, blocks, strict=True):
        _draw_block(part, caption, shown, rows)
    save_figure(figure, out, dpi=100)


def _draw_block(part: "SubFigure", caption: str, shown: np.ndarray, rows: int) -> None:
    tall = rows * _INCHES * 1.08 + 1.0
    part.text(0.5, 1 - 0.6 / tall, caption, ha="center", va="center", fontsize=10)
    grid = part.add_gridspec(
        rows, _COLUMNS, left=0.03, right=0.97, bottom=0.1 / tall, top=1 - 0.8 / tall,
        wspace=0.08, hspace=0.08,
    )  # fmt: skip
    for number, one in enumerate(shown):
        axes = part.add_subplot(grid[number // _COLUMNS, number % _COLUMNS])
        show_image(axes, as_picture(one))
        axes.set_axis_off()


def as_picture(one: np.ndarray) -> np.ndarray:
    """A filter (height, width, C) as bytes around grey: colours, or the channels side by side."""
    scale = np.abs(one).max() or 1.0
    picture = np.round(127.5 + 127.5 * one / scale).astype(np.uint8)
    if picture.shape[2] == 3:
        return picture
    return np.concatenate(list(np.moveaxis(picture, 2, 0)), axis=1)[:, :, None]
