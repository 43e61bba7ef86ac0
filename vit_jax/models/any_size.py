"""Models that take images of any size, as far as their position table reaches."""

import dataclasses
from typing import TypeVar

from vit_jax.layers.checks import check_int, check_rate, to_pair
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.models.adaptable import PositionTable
from vit_jax.models.base import VisionModel
from vit_jax.models.config import PatchesConfig, Size, checked, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnySizeConfig(PatchesConfig):
    """The fields of an `AnySizeModel`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is the size that data is prepared for; any other whole number of patches that
    `max_tokens` holds is taken too. The texts have neither `drop_path_rate` nor `head_drop_rate`.

    Attributes:
      mlp_dim: hidden width of the feed-forward.
      max_tokens: rows of the position table; the class token takes the first.
      attn_drop_rate: dropout on the attention weights; None means `drop_rate`.
    """

    img_size: Size = 32
    patch_size: Size = 4
    num_classes: int = 10
    num_heads: int = 8
    depth: int = 6
    norm_eps: float = 1e-5
    drop_rate: float = 0.1
    attn_drop_rate: float | None = optional(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, check_rate, free=True
    )
    mlp_dim: int = checked(2048, check_int, least=1)
    max_tokens: int = checked(257, check_int, free=True, least=1)

    @property
    def attention_drop_rate(self) -> float:
        """Dropout on the attention weights."""
        return self.drop_rate if self.attn_drop_rate is None else self.attn_drop_rate

    def drop_rates(self) -> tuple[float, ...]:
        """The rates of all dropouts but stochastic depth."""
        return (self.drop_rate, self.attention_drop_rate, self.head_drop_rate)


Config = TypeVar("Config", bound=AnySizeConfig)


class AnySizeModel(VisionModel[Config]):
    """A model whose position table has `max_tokens` rows, of which images take the first.

    The row of a patch is its number, row by row, plus one: images of another width give the same
    place another row, as in the sources.

    Raises:
      ValueError: img_size is no whole number of patches.
    """

    takes_any_size = True

    def __init__(self, config: Config):
        super().__init__(config)
        self.patch_size = to_pair("patch_size", config.patch_size)
        patch_grid(self.img_size, self.patch_size)

    @property
    def max_tokens(self) -> int:
        """Rows of the position table."""
        return self.config.max_tokens

    def position_table(self) -> PositionTable:
        """A table of numbered rows, without a grid."""
        return PositionTable(self.position_name, self.max_tokens, None)

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
