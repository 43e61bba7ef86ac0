"""Images beside those that are nearest to them."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure, show_image


def plot_neighbours(
    rows: Sequence[Sequence[tuple[np.ndarray, str]]], out: str | pathlib.Path
) -> None:
    """Draws a row an image: it, then its neighbours.

    Args:
      rows: of (image (H, W, 3) or (H, W, 1) uint8, what stands under it), all of one length.
      out: a path; its suffix names the form.

    Raises:
      ValueError, OSError: see `save_figure`.
    """
    columns = len(rows[0])
    figure = new_figure(1.5 * columns, 1.75 * len(rows), "constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for places, row in zip(axes, rows, strict=True):
        for place, (image, text) in zip(places, row, strict=True):
            show_image(place, image)
            place.set_title(text, fontsize=7, y=-0.22)
            place.set_axis_off()
    save_figure(figure, out)
