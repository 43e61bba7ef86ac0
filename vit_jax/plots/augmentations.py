"""A sheet of pictures in rows: what augmentation makes of images."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

COLUMNS = 6  # pictures in a row, after the image itself
_INCHES = 1.15  # of a picture

Cell = tuple[np.ndarray, str]
Row = tuple[str, Sequence[Cell]]


def draw_sheet(blocks: Sequence[tuple[str, Sequence[Row]]], out: pathlib.Path) -> None:
    """Draws the blocks next to each other, each a title over rows of pictures.

    Args:
      blocks: (title, rows); a row is (name, cells), a cell (image (H, W, C) uint8, label).
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    height = max(len(rows) for _, rows in blocks)
    across = _INCHES * (COLUMNS + 1) + 1.5
    figure = new_figure(across * len(blocks), _INCHES * 1.12 * height + 0.5)
    parts = figure.subfigures(1, len(blocks), squeeze=False)[0]
    for part, (title, rows) in zip(parts, blocks, strict=True):
        _draw_block(part, title, rows, height, across)
    save_figure(figure, out, dpi=100)


def _draw_block(
    part: "SubFigure", title: str, rows: Sequence[Row], height: int, across: float
) -> None:
    top = 0.45 / (_INCHES * 1.12 * height + 0.5)
    part.text(1.5 / across, 1 - top / 2, title, va="center", fontsize=13, weight="bold")
    grid = part.add_gridspec(
        height, COLUMNS + 1, left=1.5 / across, right=0.99, bottom=0.005, top=1 - 1.5 * top,
        wspace=0.04, hspace=0.16,
    )  # fmt: skip
    for row, (name, cells) in enumerate(rows):
        for column, (image, label) in enumerate(cells):
            axes = part.add_subplot(grid[row, column])
            axes.set_axis_off()
            show_image(axes, image)
            axes.set_title(label, fontsize=8, pad=2)
            if column == 0:
                axes.text(
                    -0.08, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=9
                )
