"""What a model attends to, as heat maps over the images."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.plots.figure import COLOURS, new_figure, save_figure, show_image

_INCHES = 2.4  # of a picture
_ACROSS = 6  # pictures in a row
_BRIGHTEST = 0.98  # quantile of a map from which on it has the last colour


# Caption; weights (B, rows, columns), 1 where all get the same; (row, column) of a pixel to mark.
HeatMap = tuple[str, np.ndarray, tuple[float, float] | None]


def draw_attention(
    images: np.ndarray,
    names: Sequence[str],
    heat_maps: Sequence[HeatMap],
    title: str,
    out: pathlib.Path,
) -> None:
    """Draws each image and the heat maps over it; the maps of an image share their colours.

    Args:
      images: (B, H, W, C) uint8.
      names: what stands above each.
      heat_maps: of these images.
      title: above the picture.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    count, height, width, _ = images.shape
    columns = min(_ACROSS, 1 + len(heat_maps))
    lines = -(-(1 + len(heat_maps)) // columns)  # of an image
    figure = new_figure(
        _INCHES * columns * width / height + 1.0, (_INCHES + 0.55) * lines * count + 0.4,
        "constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    parts = figure.subfigures(count, 1, squeeze=False)[:, 0]
    for number, (part, image, name) in enumerate(zip(parts, images, names, strict=True)):
        every = part.subplots(lines, columns, squeeze=False).ravel()
        for axes in every:
            axes.set_axis_off()
        show_image(every[0], image)
        every[0].set_title(name, fontsize=9)
        # A few patches may get many times what the others get: these would be all one colour.
        most = max(float(np.quantile(weights[number], _BRIGHTEST)) for _, weights, _ in heat_maps)
        heats = []
        grey = np.asarray(image.mean(axis=2, keepdims=True), np.uint8)
        for axes, (caption, weights, mark) in zip(every[1:], heat_maps, strict=False):
            show_image(axes, grey)
            heat = axes.imshow(
                weights[number], cmap="inferno", vmin=0, vmax=most, alpha=0.65,
                interpolation="bilinear", extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )  # fmt: skip
            heats.append(heat)
            axes.set_title(caption, fontsize=9)
            if mark is not None:
                axes.plot(*mark[::-1], "+", color=COLOURS[5], markersize=12, mew=2.5)
        label = "attention (1: the same for all)"
        part.colorbar(heats[0], ax=list(every), label=label, shrink=0.9, extend="max")
    save_figure(figure, out, dpi=100)
