"""SigLIP 2's tower of flexible sizes: images of their own aspect, as padded rows of patches.

Tschannen et al. 2025 (2502.14786, "NaFlex"); google-research/big_vision (naflex_vit),
transformers 5.24 (models/siglip2).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vit_jax.layers.checks import check_choice, check_int, to_pair
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.unfold import cut_patches
from vit_jax.models.adaptable import PatchWeights
from vit_jax.models.base import Variant
from vit_jax.models.config import Size, checked
from vit_jax.models.siglip import CONFIG, DEFAULTS, Siglip, SiglipConfig, dialects, size_fields
from vit_jax.models.spec import HALF_MEAN, HALF_STD, Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipNaflexConfig(SiglipConfig):
    """The fields of `SiglipNaflex`; the others: `SiglipConfig`.

    `img_size` is what data is prepared for where images are given as such.

    Attributes:
      num_patches: rows of the position table, a square number.
    """

    img_size: Size = 256
    position_resize: str = checked("bilinear_antialias", check_choice, free=True, choices=METHODS)
    num_patches: int = checked(256, check_int, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isqrt(self.num_patches) ** 2 != self.num_patches:
            raise ValueError(f"num_patches must be a square number, got {self.num_patches}")


class PatchLinear(nnx.Module):
    """A Linear over the pixels of a patch: row by row, the channels of a pixel beside each other.

    Args:
      patch_size: (height, width) in pixels.
      grid_size: rows and columns of patches of the model's own image size.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        grid_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.patch_size, self.grid_size = patch_size, grid_size
        self.num_patches = grid_size[0] * grid_size[1]
        self.proj = torch_linear(
            in_chans * patch_size[0] * patch_size[1],
            embed_dim,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        return self.proj(cut_patches(images, self.patch_size))


def naflex_size(
    height: int, width: int, patch_size: int = 16, max_num_patches: int = 256
) -> tuple[int, int]:
    """The size that an image is resized to: about its own aspect, of whole patches.

    The largest factor, to 1e-5, at which no more than `max_num_patches` of the rounded-up sides are
    needed, found by halving: the search of big_vision and transformers, step by step.
    """

    def sides(scale: float) -> tuple[int, int]:
        rows, columns = (max(math.ceil(side * scale / patch_size), 1) for side in (height, width))
        return rows * patch_size, columns * patch_size

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = sides(middle)
        if (rows / patch_size) * (columns / patch_size) <= max_num_patches:
            low = middle
        else:
            high = middle
    return sides(low)


def pack_images(
    images: Sequence[np.ndarray], patch_size: int = 16, max_num_patches: int = 256
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised images of their own sizes to what `SiglipNaflex.forward_patches` takes.

    Args:
      images: (H, W, C) each, H and W of whole patches: see `naflex_size`.

    Returns:
      patches (B, max_num_patches, patch_size ** 2 * C), the mask of those that are filled, and rows
      and columns of each image (B, 2).

    Raises:
      ValueError: no images; one that is no whole number of patches, or has too many.
    """
    if not images:
        raise ValueError("wanted at least one image, got none")
    packed, shapes = [], []
    for image in images:
        rows, columns = patch_grid(image.shape[:2], (patch_size, patch_size))
        if rows * columns > max_num_patches:
            raise ValueError(
                f"wanted at most {max_num_patches} patches an image, got {rows}x{columns}"
            )
        patches = cut_patches(image[None], (patch_size, patch_size))[0]
        packed.append(np.pad(patches, ((0, max_num_patches - len(patches)), (0, 0))))
        shapes.append((rows, columns))
    mask = np.arange(max_num_patches)[None] < np.prod(shapes, axis=1)[:, None]
    return np.stack(packed), mask, np.asarray(shapes, np.int32)


def _variants() -> dict[str, Variant]:
    """Hugging Face's names."""
    preprocessing = Preprocessing(HALF_MEAN, HALF_STD, 1.0, "bilinear", "squash")
    return {
        f"siglip2_{size}_patch16_naflex": Variant(size_fields(size, 16), preprocessing)
        for size in ("base", "so400m")
    }


class SiglipNaflex(Siglip[SiglipNaflexConfig]):
    """SigLIP 2's tower for images of any size.

    Called with images of one size it is a `Siglip` whose positions are resized to them. Batches of
    images of several sizes go through `forward_patches`, then `forward_head` with their mask.
    """

    design = "siglip_naflex"
    config_class = SiglipNaflexConfig
    variants = _variants()
    leaves_pixels = False
    dialects = dialects(
        "Siglip2",
        "siglip2",
        {**CONFIG, "num_patches": "num_patches"},
        {**DEFAULTS, "num_patches": 256},
    )

    def build_patches(self, rngs: nnx.Rngs, *, use_bias: bool = True) -> Any:
        """The Linear over the patches."""
        del use_bias
        config, size = self.config, to_pair("patch_size", self.config.patch_size)
        grid = patch_grid(self.img_size, size)
        return PatchLinear(size, grid, config.in_chans, config.embed_dim, **self.types, rngs=rngs)

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        side = math.isqrt(self.config.num_patches)
        return side, side

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        kernel = self.patch_embed.proj.kernel[...]
        return kernel.reshape(*self.patch_embed.patch_size, self.in_chans, -1)

    def patch_weights(self) -> PatchWeights:
        """The Linear over the patches."""
        window = math.prod(self.patch_embed.patch_size)
        return PatchWeights("patch_embed.proj.weight", window=window, is_interleaved=True)

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches of `img_size`: (N, D)."""
        return self.positions(*self.token_grid(*self.img_size))[0]

    def forward_patches(
        self,
        patches: jax.Array | np.ndarray,
        mask: jax.Array | np.ndarray,
        shapes: jax.Array | np.ndarray,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch patches dim"]:
        """Padded patches of images of several sizes to tokens after the last norm.

        Args:
          patches: (B, N, patch height * width * C), row by row, then padding: see `pack_images`,
            or transformers' `pixel_values`.
          mask: which are not padding; transformers' `pixel_attention_mask`.
          shapes: rows and columns of each image's patches; transformers' `spatial_shapes`.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D); the tokens of padding are of no use.

        Raises:
          ValueError: arrays of other shapes; `rngs` missing.
        """
        pixels, given = self.patch_embed.proj.in_features, tuple(map(jnp.shape, (mask, shapes)))
        batch, count, *width = (*jnp.shape(patches), *(0,) * 2)[:3]
        if jnp.ndim(patches) != 3 or width != [pixels] or given != ((batch, count), (batch, 2)):
            raise ValueError(
                f"wanted patches (B, N, {pixels}), mask (B, N) and shapes (B, 2), got "
                f"{jnp.shape(patches)}, {given[0]} and {given[1]}"
            )
        tokens = self.patch_embed.proj(jnp.asarray(patches, self.dtype))
        tokens = tokens + self._positions_of(jnp.asarray(shapes), count)
        mask = jnp.asarray(mask).astype(bool)
        return self.last_norm(self.run_blocks(tokens, self.dropout_key(rngs), mask))

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        mask: jax.Array | np.ndarray | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """As `Siglip.forward_head`; `mask`: of `forward_patches`, which tokens are not padding."""
        if mask is not None:
            mask = jnp.asarray(mask).astype(bool)
        x = self.head_drop(self.pooled(tokens, mask), self.dropout_key(rngs))
        return x if pre_logits or self.head is None else self.head(x)

    def pooled(
        self, tokens: jax.Array, mask: Bool[Array, "batch tokens"] | None = None
    ) -> jax.Array:
        """Tokens (B, N, D) to the image's embedding: (B, D)."""
        if self.config.global_pool == "map" and self.attn_pool is not None:
            return self.attn_pool(tokens, mask)
        if mask is None:
            return tokens.mean(axis=1)
        kept = mask.astype(tokens.dtype)[:, :, None]
        return (tokens * kept).sum(axis=1) / kept.sum(axis=1)

    def _positions_of(self, shapes: jax.Array, count: int) -> jax.Array:
        """The position table resized to each image's grid: (B, count, D).

        Bilinear with antialias, its weights by their formula: sizes may be traced. Padding has the
        position of the first patch, as in the sources.
        """
        wide = jnp.promote_types(self.dtype, jnp.float32)
        side = self.table_grid[0]
        sizes = shapes.astype(wide)[:, None]  # (B, 1, 2)
        number = jnp.arange(count, dtype=wide).reshape(1, count)
        row = jnp.floor(number / sizes[..., 1])
        place = jnp.stack([row, number - row * sizes[..., 1]], axis=-1)  # (B, count, 2)
        is_filled = number < sizes.prod(axis=-1)
        place = jnp.where(is_filled[..., None], place, 0)
        step = side / sizes
        reach = jnp.maximum(step, 1)
        middle = (place + 0.5) * step - 0.5
        cells = jnp.arange(side, dtype=wide).reshape(1, 1, 1, side)
        weights = jnp.maximum(1 - jnp.abs(cells - middle[..., None]) / reach[..., None], 0)
        weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(self.dtype)
        table = self.pos_embed[...].astype(self.dtype).reshape(side, side, -1)
        return jnp.einsum(
            "bnh,bnw,hwd->bnd", weights[:, :, 0], weights[:, :, 1], table, precision="highest"
        )
