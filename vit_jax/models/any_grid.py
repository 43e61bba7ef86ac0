"""Models of patches that take images of any grid: their positions are resized at every call."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.block import Block
from vit_jax.layers.checks import to_pair
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.initializers import normal, trunc_normal, zeros
from vit_jax.layers.patch_embed import PatchEmbed, patch_grid
from vit_jax.layers.position_resize import resize_matrix
from vit_jax.layers.stack import PlainLayers, ScannedLayers, stack_layers
from vit_jax.models.adaptable import PatchWeights, PositionTable
from vit_jax.models.base import VisionModel
from vit_jax.models.config import PatchesConfig

Config = TypeVar("Config", bound=PatchesConfig)


class AnyGridModel(VisionModel[Config]):
    """A model whose images may have any whole number of patches along each side.

    Attributes:
      patch_embed: the convolution over the patches; its `grid_size` is that of `img_size`.
      num_features: width of the head's input.
      head_drop: before the head.
      pos_embed: the position table, where there is one: (1, position_rows + N, D).

    Of the class:
      position_rows: rows of the position table before those of the patches.
      head_std: standard deviation of a new head's weights.
      leaves_pixels: whether images of `img_size` may have pixels after the last whole patch, which
        are then not looked at.
    """

    takes_any_size = True
    position_rows = 1
    leaves_pixels = False
    head_std = 0.02
    patch_embed: PatchEmbed
    num_features: int
    head_drop: Dropout
    norm: nnx.LayerNorm | None
    fc_norm: nnx.LayerNorm | None = None
    pos_embed: nnx.Param

    def token(self, count: int, std: float, rngs: nnx.Rngs, width: int | None = None) -> nnx.Param:
        """Learned tokens, normal about zero: (1, count, D); `width`: another than `embed_dim`."""
        shape = (1, count, width or self.config.embed_dim)
        return nnx.Param(normal(std)(rngs.params(), shape, self.param_dtype))

    def build_patches(self, rngs: nnx.Rngs, *, use_bias: bool = True) -> PatchEmbed:
        """The convolution over the patches."""
        config, size = self.config, to_pair("patch_size", self.config.patch_size)
        if not self.leaves_pixels:
            patch_grid(self.img_size, size)
        sides = zip(self.img_size, size, strict=True)
        height, width = (max(side - side % patch, patch) for side, patch in sides)
        return PatchEmbed(
            (height, width),
            size,
            config.in_chans,
            config.embed_dim,
            patchify=config.patchify,
            use_bias=use_bias,
            **self.types,
            rngs=rngs,
        )

    def build_blocks(self, rngs: nnx.Rngs, **kind: Any) -> PlainLayers | ScannedLayers:
        """The stack of blocks; `kind`: the arguments of `Block` in which designs differ."""
        return stack_layers(self.new_blocks(rngs, **kind), scan=self.config.scan_layers)

    def new_blocks(
        self, rngs: nnx.Rngs, sizes: tuple[int, int, int] | None = None, **kind: Any
    ) -> list[Block]:
        """The blocks of `build_blocks`, one by one; `sizes`: other (width, depth, heads)."""
        config = self.config
        width, depth, num_heads = sizes or (config.embed_dim, config.depth, config.num_heads)
        kind = {"kernel_init": trunc_normal(0.02), **kind}
        return [
            Block(
                width,
                num_heads,
                qk_scale=None,
                qk_norm=False,
                norm_eps=config.norm_eps,
                drop_rate=config.drop_rate,
                attn_drop_rate=config.attn_drop_rate,
                bias_init=zeros,
                **kind,
                **self.types,
                rngs=rngs,
            )
            for _ in range(depth)
        ]

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the head; none for 0 classes."""
        self.head = nnx.data(
            nnx.Linear(
                self.num_features,
                self.num_classes,
                kernel_init=trunc_normal(self.head_std),
                **self.types,
                rngs=rngs,
            )
            if self.num_classes
            else None
        )

    def wanted_shape(self) -> str:
        """The shape of its images, in words."""
        return f"(batch, height, width, {self.in_chans})"

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless the image is a whole number of patches, or of `img_size`."""
        rows, columns = self.patch_embed.patch_size
        if (height, width) == self.img_size and height >= rows and width >= columns:
            return
        if height % rows or width % columns or not height or not width:
            raise ValueError(
                f"wanted images of a height and width divisible by patch_size, {rows}x{columns}, "
                f"got {height}x{width} pixels"
            )

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of images of so many pixels."""
        self.check_size(height, width)
        rows, columns = self.patch_embed.patch_size
        return height // rows, width // columns

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        return self.patch_embed.proj.kernel[...]

    def patch_weights(self) -> PatchWeights:
        """The convolution over the patches."""
        return PatchWeights("patch_embed.proj.weight", is_resampled=True)

    def patch_positions(self) -> jax.Array | None:
        """The learned positions of the patches of `img_size`: (N, D)."""
        return self.pos_embed[0, self.position_rows :]

    def position_table(self) -> PositionTable | None:
        """One learned table for the tokens that have positions, and the grid."""
        return PositionTable(
            "pos_embed",
            self.pos_embed.shape[1],
            self.table_grid,
            self.position_rows,
            method=self._resize_method,
        )

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that the position table is for."""
        return self.patch_embed.grid_size

    def positions(self, rows: int, columns: int, of: nnx.Variable[Any] | None = None) -> jax.Array:
        """A table, else `pos_embed`, for a grid of patches: (1, position_rows + N, D)."""
        variable = self.pos_embed if of is None else of
        table, grid = variable[...].astype(self.dtype), self.table_grid
        if (rows, columns) == grid:
            return table
        down, along = (
            jnp.asarray(resize_matrix(old, new, self._resize_method, self.matrix_dtype), self.dtype)
            for old, new in zip(grid, (rows, columns), strict=True)
        )
        patches = table[0, self.position_rows :].reshape(*grid, -1)
        resized = jnp.einsum("yh,xw,hwd->yxd", down, along, patches, precision="highest")
        resized = resized.reshape(1, rows * columns, -1)
        return jnp.concatenate([table[:, : self.position_rows], resized], axis=1)

    def repeated(self, token: nnx.Variable[Any], images: jax.Array) -> jax.Array:
        """Learned tokens for every image of a batch: (B, count, D)."""
        value = token[...].astype(self.dtype)
        return jnp.broadcast_to(value, (images.shape[0], *value.shape[1:]))

    def whole_patches(self, images: jax.Array) -> jax.Array:
        """Images in the type of the computation, without pixels after the last whole patch."""
        grid = self.token_grid(*images.shape[1:3])
        sides = zip(grid, self.patch_embed.patch_size, strict=True)
        height, width = (count * side for count, side in sides)
        return images[:, :height, :width].astype(self.dtype)

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The last norm; none where it stands behind the pooling."""
        return tokens if self.norm is None else self.norm(tokens)

    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N, D) to what `global_pool` says: (B, features), normed where `fc_norm` is."""
        pool = getattr(self.config, "global_pool", "token")
        pooled = tokens[:, 0]
        if pool != "token":
            patches = tokens[:, self.num_prefix_tokens :].mean(axis=1)
            pooled = patches if pool == "avg" else jnp.concatenate([pooled, patches], axis=-1)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Tokens of `forward_features` to logits.

        Args:
          tokens: (B, N, D).
          pre_logits: stop before the head.
          rngs: needed in train mode where the head's input is dropped.

        Returns:
          (B, num_classes); (B, features) with `pre_logits` or without a head.
        """
        x = self.head_drop(self.pooled(tokens), self.dropout_key(rngs))
        return x if pre_logits or self.head is None else self.head(x)

    @property
    def matrix_dtype(self) -> np.dtype:
        """In which a resize finds its places: float64 of a float64 model, else float32."""
        return np.dtype(np.float64 if self.dtype == jnp.float64 else np.float32)

    @property
    def _resize_method(self) -> str:
        return getattr(self.config, "position_resize", "")
