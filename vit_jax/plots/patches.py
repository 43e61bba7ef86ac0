"""An image beside the patches that a ViT cuts it into."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure, show_image, tiled

_INCHES = 3.4  # of a picture


def draw_patches(
    images: np.ndarray, names: Sequence[str], patch_size: tuple[int, int], out: pathlib.Path
) -> None:
    """Draws each image and, beside it, its patches with space between, row by row.

    Args:
      images: (B, H, W, C) uint8.
      names: what stands above each.
      patch_size: (height, width) in pixels, of which the images are whole numbers.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    _, height, width, _ = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    across = _INCHES * width / height
    figure = new_figure(2 * across + 0.5, (_INCHES + 0.5) * len(images), "constrained")
    grid = figure.add_gridspec(len(images), 2)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        axes = figure.add_subplot(grid[number, 0])
        show_image(axes, image)
        axes.set_title(f"{name}: {height} x {width} pixels", fontsize=10)
        axes = figure.add_subplot(grid[number, 1])
        show_image(axes, apart(image, patch_size))
        axes.set_title(
            f"{rows * columns} patches ({rows} x {columns}) of {patch_size[0]} x {patch_size[1]} "
            "pixels",
            fontsize=10,
        )
        axes.set_frame_on(False)
    save_figure(figure, out, dpi=100)


def apart(image: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    """The patches of an image (H, W, C) uint8 at their places, moved apart, with white between.

    The space is a fifth of a patch; the pixels are made larger where that is less than one of them.
    """
    height, width = patch_size
    larger = max(1, -(-5 // min(patch_size)))
    channels = image.shape[2]
    rows, columns = image.shape[0] // height, image.shape[1] // width
    patches = image.reshape(rows, height, columns, width, channels).swapaxes(1, 2)
    patches = patches.repeat(larger, axis=2).repeat(larger, axis=3)
    return tiled(patches, min(height, width) * larger // 5, 255)
