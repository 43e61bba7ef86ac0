"""Images, the labels of their pixels, and what models told of them, side by side."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.plots.figure import COLOURS, new_figure, save_figure, show_image


def plot_segmentations(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    out: str | pathlib.Path,
) -> None:
    """Draws a row an image: the image, then each map of classes with the same colours.

    Args:
      images: (N, H, W, 3) or (N, H, W, 1) uint8.
      maps: (N, H, W) classes, by title: the labels, then predictions.
      class_names: the first is the background, which is drawn grey.
      out: a path; its suffix names the form.

    Raises:
      ValueError, OSError: see `save_figure`.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    names = [*class_names]
    colours = ["0.85", *(COLOURS[n % len(COLOURS)] for n in range(len(names) - 1))]
    table = np.array([to_rgb(colour) for colour in colours])
    columns = len(maps) + 1
    figure = new_figure(1.7 * columns, 1.7 * len(images) + 0.6, "constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in zip(axes, range(len(images)), strict=True):
        show_image(row[0], images[image])
        for place, classes in zip(row[1:], maps.values(), strict=True):
            place.imshow(table[classes[image]], interpolation="nearest")
    for place, title in zip(axes[0], ["image", *maps], strict=True):
        place.set_title(title, fontsize=9)
    for place in axes.flat:
        place.set_axis_off()
    legend = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=legend, loc="outside lower center", ncols=min(6, len(names)), fontsize=8)
    save_figure(figure, out)
