"""How alike the learned positions of a model's patches are (Dosovitskiy et al. 2020, figure 7)."""

import pathlib

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure, tiled


def draw_positions(similarity: np.ndarray, title: str, out: pathlib.Path) -> None:
    """Draws a map of cosines for each patch, at the place of that patch.

    Args:
      similarity: (rows, columns, rows, columns), the cosine between any two patches.
      title: above the picture.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    rows, columns = similarity.shape[:2]
    others = similarity.reshape(rows * columns, -1)[~np.eye(rows * columns, dtype=bool)]
    largest = float(np.abs(others).max(initial=0.0)) or 1.0
    figure = new_figure(7.2, 6.4 * rows / columns + 0.4, "constrained")
    axes = figure.add_subplot()
    # Each patch is wholly like itself: the colours are for the others.
    sheet = tiled(similarity, 1, np.nan)
    image = axes.imshow(sheet, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    every = max(1, -(-max(rows, columns) // 16))  # labels that do not touch
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        shown = np.arange(0, count, every)
        axis.set_ticks(shown * (count + 1) + (count - 1) / 2, [str(i + 1) for i in shown])
        axis.set_tick_params(length=0)
    axes.set_frame_on(False)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    axes.set_title(title, fontsize=11)
    label = "cosine similarity to the other patches"
    figure.colorbar(image, ax=axes, extend="max", label=label, shrink=0.8)
    save_figure(figure, out)
