"""The soft splits of T2T-ViT: what their overlapping windows are, on an image.

Yuan et al. 2021 (2101.11986), section 3.1, figure 3.
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vit_jax.plots.figure import COLOURS, new_figure, save_figure, show_image, tiled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = 5  # tokens along each side of the part that is drawn large
_INCHES = 4.2


class Windows(Protocol):
    """One soft split: see `vit_jax.layers.soft_splits.SoftSplitWindows`."""

    @property
    def kernel(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def covered(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def start(self) -> int: ...
    def box(self, row: int, column: int) -> tuple[int, int, int, int]: ...


def draw_soft_splits(
    image: np.ndarray, splits: Sequence[Windows], token_dim: int, title: str, out: pathlib.Path
) -> None:
    """Draws for each soft split the grid of tokens on the image, and windows of it apart.

    Above, every token is a dot at its centre, with what two neighbours cover outlined; below, what
    a few tokens cover, cut out one beside the other: they share the pixels at their edges.

    Args:
      image: (H, W, C) uint8 of the model's size.
      splits: the three soft splits of its size.
      token_dim: width of the tokens that the second and third split unfold.
      title: above the picture.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    height, width, channels = image.shape
    figure = new_figure(
        3 * _INCHES * max(1.0, width / height), 1.25 * _INCHES + _INCHES + 0.6, "constrained"
    )
    figure.suptitle(f"{title}: the tokens as dots, and what two neighbours cover", fontsize=12)
    grid = figure.add_gridspec(2, 3)
    dims = (channels, token_dim, token_dim)
    for number, (split, dim) in enumerate(zip(splits, dims, strict=True)):
        axes = figure.add_subplot(grid[0, number])
        rows, columns = split.grid
        what = "pixels" if number == 0 else f"tokens of split {number}"
        axes.set_title(
            f"soft split {number + 1}: windows of {split.kernel} x {split.kernel} {what},\n"
            f"stride {split.stride}, padding {split.padding}: {split.kernel}² x {dim} = "
            f"{split.kernel**2 * dim} values each\n"
            f"{rows} x {columns} = {rows * columns} tokens",
            fontsize=10,
        )
        _draw_grid(axes, image, split)
        axes = figure.add_subplot(grid[1, number])
        sheet = windows_apart(image, split, _SHOWN)
        show_image(axes, sheet)
        axes.set_title(
            f"{min(_SHOWN, rows)} x {min(_SHOWN, columns)} of them: each covers {split.covered} x "
            f"{split.covered} pixels,\nof which {max(0, split.covered - split.step)} along a side "
            "are the next one's too",
            fontsize=10,
        )
        axes.set_frame_on(False)
    save_figure(figure, out, dpi=100)


def _draw_grid(axes: "Axes", image: np.ndarray, split: Windows) -> None:
    from matplotlib.patches import Rectangle

    show_image(axes, image)
    height, width, _ = image.shape
    rows, columns = split.grid
    middle = split.start + (split.covered - 1) / 2
    y, x = np.mgrid[:rows, :columns] * split.step + middle
    axes.scatter(x.ravel(), y.ravel(), s=20 / max(rows, columns), c="white", linewidths=0)
    for neighbour, (colour, style) in enumerate(((COLOURS[1], "-"), (COLOURS[5], "--"))):
        top, left, tall, wide = split.box(rows // 2, columns // 2 + neighbour)
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), wide, tall,
                fill=False, edgecolor=colour, linestyle=style, linewidth=1.8,
            )
        )  # fmt: skip
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_xlabel("pixels")
    axes.set_xticks([0, width // 2, width])
    axes.set_yticks([0, height // 2, height])


def windows_apart(image: np.ndarray, split: Windows, count: int) -> np.ndarray:
    """What tokens in the middle cover, cut out of the image with white between; padding is black.

    Args:
      image: (H, W, C) uint8.
      split: whose tokens.
      count: rows and columns of tokens at most.
    """
    rows, columns = (min(count, side) for side in split.grid)
    first_row, first_column = (
        (side - n) // 2 for side, n in zip(split.grid, (rows, columns), strict=True)
    )
    larger = -(-32 // split.covered)  # one window of few pixels still is some on paper
    margin = split.covered
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    windows = np.empty((rows, columns, margin, margin, image.shape[2]), np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left, tall, wide = split.box(first_row + row, first_column + column)
        windows[row, column] = padded[margin + top :, margin + left :][:tall, :wide]
    windows = windows.repeat(larger, axis=2).repeat(larger, axis=3)
    return tiled(windows, max(2, split.covered * larger // 8), 255)
