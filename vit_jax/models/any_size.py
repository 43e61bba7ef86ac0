"""Models that take images of any size, as far as their position table reaches."""

from collections.abc import Sequence
from typing import Any

from vit_jax.layers.checks import check_int, to_pair
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.models.base import VisionModel


class AnySizeModel(VisionModel):
    """A model whose position table has `max_tokens` rows, of which images take the first.

    The row of a patch is its number, row by row, plus one: images of another width give the same
    place another row, as in the sources.

    Args:
      img_size: the size that data is made ready for; the model takes others too.
      patch_size: pixels, one number or (height, width).
      max_tokens: rows of the position table, the class token's counted.
      **common: of `VisionModel`.

    Raises:
      ValueError: img_size is no whole number of patches.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        max_tokens: int,
        **common: Any,
    ):
        super().__init__(img_size=img_size, **common)
        self.patch_size = to_pair("patch_size", patch_size)
        self.max_tokens = check_int("max_tokens", max_tokens, least=1)
        patch_grid(self.img_size, self.patch_size)

    def wanted_shape(self) -> str:
        """The shape of its images, in words."""
        return f"(batch, height, width, {self.in_chans})"

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless the image is a whole number of patches that the table holds."""
        patch_height, patch_width = self.patch_size
        if height % patch_height or width % patch_width or not height or not width:
            raise ValueError(
                f"wanted images of a height and width divisible by patch_size, "
                f"{patch_height}x{patch_width}, got {height}x{width} pixels"
            )
        tokens = (height // patch_height) * (width // patch_width) + 1
        if tokens > self.max_tokens:
            raise ValueError(
                f"wanted images of at most {self.max_tokens} tokens (max_tokens, the class token "
                f"counted), got {height}x{width} pixels: {tokens} tokens at patch_size "
                f"{patch_height}x{patch_width}"
            )

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of images of so many pixels."""
        self.check_size(height, width)
        return patch_grid((height, width), self.patch_size)
