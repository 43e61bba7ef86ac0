"""What the pictures have in common: a figure without a display, colours, a file."""

import io
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.storage import check_output, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The forms of a picture, and how a file of each begins.
FORMATS = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".pdf": b"%PDF", ".svg": b"<?xml"}
# Told apart by the colour-blind too (Okabe & Ito 2008, "Color universal design").
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(width: float, height: float, layout: Any = None) -> "Figure":
    """A figure of inches. No pyplot: no display is needed, and nothing global is kept."""
    # Here and not above: matplotlib takes long to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", out: str | pathlib.Path, dpi: int = 110) -> None:
    """Writes a picture, of the form that the suffix names; its folder is made if need be.

    Raises:
      ValueError: another suffix than those of `FORMATS`, or something else lies there.
      OSError: it cannot be written.
    """
    path = pathlib.Path(out) if isinstance(out, str) else out  # a path may be of object storage
    check_output(path, FORMATS)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=path.suffix[1:].lower())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, picture.getvalue())


def tiled(tiles: np.ndarray, space: int, background: float) -> np.ndarray:
    """One sheet of tiles, moved apart: quicker to draw than a picture each.

    Args:
      tiles: (rows, columns, h, w, ...).
      space: between one and the next, in pixels.
      background: what stands there.

    Returns:
      (H, W, ...) of the type of `tiles`.
    """
    rows, columns, height, width, *rest = tiles.shape
    shape = (rows * (height + space) - space, columns * (width + space) - space, *rest)
    sheet = np.full(shape, background, tiles.dtype)
    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + space), column * (width + space)
        sheet[top : top + height, left : left + width] = tiles[row, column]
    return sheet


def show_image(axes: "Axes", image: np.ndarray, **options: Any) -> None:
    """Draws (H, W, C) uint8, C being 1 or 3, without ticks; of other numbers the first channel."""
    is_colour = image.shape[2] == 3
    shown = image if is_colour else image[:, :, 0]
    axes.imshow(shown, cmap=None if is_colour else "gray", vmin=0, vmax=255, **options)
    axes.set_xticks([])
    axes.set_yticks([])
