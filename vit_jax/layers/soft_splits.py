"""The soft splits of T2T-ViT: what their overlapping windows cover of an image.

Yuan et al. 2021 (2101.11986), section 3.1, figure 3.
"""

import dataclasses

from vit_jax.layers.tokens_to_token import GEOMETRY, token_grids


@dataclasses.dataclass(frozen=True)
class SoftSplitWindows:
    """One soft split, in pixels of the image.

    Attributes:
      kernel, stride, padding: of its windows, in tokens of the split before it (first: pixels).
      grid: rows and columns of its tokens.
      covered: pixels along a side that a token sees through this split and those before it.
      step: pixels from one token to the next.
      start: first pixel of the first token; below 0 is padding.
    """

    kernel: int
    stride: int
    padding: int
    grid: tuple[int, int]
    covered: int
    step: int
    start: int

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels of what a token covers."""
        top, left = (self.start + self.step * at for at in (row, column))
        return top, left, self.covered, self.covered


def soft_split_windows(img_size: tuple[int, int]) -> list[SoftSplitWindows]:
    """The three soft splits of an image of (height, width)."""
    windows, covered, step, start = [], 1, 1, 0
    for (kernel, stride, padding), grid in zip(GEOMETRY, token_grids(img_size), strict=True):
        start -= padding * step
        covered += (kernel - 1) * step
        step *= stride
        windows.append(SoftSplitWindows(kernel, stride, padding, grid, covered, step, start))
    return windows
