"""Images, what a model was shown of them, and what it made of that."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure


def draw_reconstructions(
    images: np.ndarray,
    masked: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    out: str | pathlib.Path,
) -> None:
    """Draws a row an image: what is shown of it, what is made of that, the image itself.

    Args:
      images, masked, predicted: (B, H, W, C), from 0 to 1.
      names: what stands beside each.
      out: a path; its suffix names the form.

    Raises:
      ValueError, OSError: see `save_figure`.
    """
    figure = new_figure(6.6, 2.2 * len(images) + 0.3, "constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    for row, name, *pictures in zip(axes, names, masked, predicted, images, strict=True):
        for place, picture in zip(row, pictures, strict=True):
            place.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        row[0].set_ylabel(name, fontsize=8)
    for place, title in zip(axes[0], ("shown", "reconstructed", "image"), strict=True):
        place.set_title(title, fontsize=10)
    save_figure(figure, out)
