"""The walkthrough ViT of seed 000: a patch matrix, a class token, PyTorch's own encoder.

The text is a script over tensors; what it never says (sizes for real images, that the patch matrix
is trained, that attention runs over tokens) is stated at the fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_bool, check_choice, check_int
from vit_jax.layers.dropout import Dropout, drop_path_rates
from vit_jax.layers.encoder_layer import TransformerEncoder
from vit_jax.layers.initializers import normal
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.patch_embed import PATCHIFY
from vit_jax.layers.stack import PlainLayers, ScannedLayers
from vit_jax.layers.unfold import extract_patches, window_filters
from vit_jax.models.any_size import AnySizeModel
from vit_jax.models.base import Logits


class PatchProjection(nnx.Module):
    """Patches times one matrix (C * height * width, D), without a bias.

    Args:
      patch_size: (height, width) in pixels.
      in_chans: channels of the image.
      embed_dim: width of a token.
      patchify: "unfold" (im2col, then the matrix) or "conv" (the same numbers as a convolution).
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        patchify: str,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.patchify = check_choice("patchify", patchify, PATCHIFY)
        self.dtype = dtype
        # Not a Linear's kernel: the source keeps it as (in, out) too.
        shape = (in_chans * patch_size[0] * patch_size[1], embed_dim)
        self.weight = nnx.Param(normal(1.0)(rngs.params(), shape, param_dtype))

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        images, weight = images.astype(self.dtype), self.weight[...].astype(self.dtype)
        if self.patchify == "unfold":
            return jnp.matmul(extract_patches(images, self.patch_size), weight)
        kernel = window_filters(weight, self.in_chans, self.patch_size)
        x = jax.lax.conv_general_dilated(
            images, kernel, self.patch_size, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x.reshape(x.shape[0], -1, x.shape[-1])  # (B, N, D)


class TokenEmbedding(nnx.Module):
    """A class token before the patches, then the first rows of the position table added.

    Args:
      embed_dim, max_tokens: sizes.
      class_token_batch: class tokens, one for each slot of the batch; 1 serves every slot.
    """

    def __init__(
        self,
        embed_dim: int,
        max_tokens: int,
        class_token_batch: int,
        *,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        init = normal(1.0)
        self.cls_token_embedding = nnx.Param(
            init(rngs.params(), (class_token_batch, 1, embed_dim), param_dtype)
        )
        self.position_embedding_table = nnx.Param(
            init(rngs.params(), (max_tokens, embed_dim), param_dtype)
        )

    def __call__(
        self, patches: Float[Array, "batch patches dim"]
    ) -> Float[Array, "batch tokens dim"]:
        batch, _, dim = patches.shape
        slots = self.cls_token_embedding.shape[0]
        if slots not in (1, batch):
            raise ValueError(
                f"this model holds a class token for each of {slots} batch slots "
                f"(class_token_batch): it takes batches of {slots} images, got {batch}"
            )
        class_token = jnp.broadcast_to(
            self.cls_token_embedding[...].astype(self.dtype), (batch, 1, dim)
        )
        tokens = jnp.concatenate([class_token, patches], axis=1)
        positions = self.position_embedding_table[: tokens.shape[1]].astype(self.dtype)
        return tokens + jnp.expand_dims(positions, 0)


class EncoderViT(AnySizeModel):
    """The walkthrough ViT of seed 000 over `torch.nn.TransformerEncoder`: post-norm, ReLU.

    No LayerNorm follows the encoder. The text's sizes are a toy's (8x8 images, patch 4, width 8, 6
    layers of 8 heads, feed-forward 2048, 16 rows of positions, 10 classes); the defaults here are
    sizes to train with at 32x32.

    Args:
      img_size: pixels, one number or (height, width); images of any other whole number of patches
        are taken too, up to `max_tokens`.
      patch_size: pixels, one number or (height, width).
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the last Linear the identity.
      embed_dim: width of a token.
      num_heads: a divisor of it.
      depth: layers.
      mlp_dim: hidden width of the feed-forward.
      max_tokens: rows of the position table; the class token takes the first.
      class_token_batch: 1, or one class token for each slot of batches of that size (the text's
        code, whose predictions depend on the slot).
      batch_first: False is the text's code: PyTorch's encoder then attends across the batch, and
        the logits do not depend on the images.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the attention, inside the feed-forward and after it.
      attn_drop_rate: dropout on the attention weights; None means drop_rate, as in PyTorch.
      drop_path_rate: stochastic depth of the last layer; linear from 0 at the first (the text has
        none).
      head_drop_rate: dropout before the last Linear (the text has none).
      patchify: "unfold" or "conv", the text's two forms; the same numbers.
      remat: "none", "blocks" or "dots": see `run_layers`.
      scan_layers: keeps the layers stacked and scans over them.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    stem = ("patch_embed", "token_embedding")
    torch_names = (
        (r"^patch_embed\.", ""),
        (r"^token_embedding\.cls", "cls"),
        (r"^token_embedding\.position", "positon"),  # so spelt in the text
        (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),
    )
    # The text is a script: these are its variables, the patches in both of their forms.
    torch_stages: ClassVar[Mapping[str, str]] = {
        "naive": "patch_embed",
        "conv": "patch_embed",
        "tokens": "token_embedding",
    }

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 256,
        depth: int = 6,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        max_tokens: int = 257,
        class_token_batch: int = 1,
        batch_first: bool = True,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.1,
        attn_drop_rate: float | None = None,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        patchify: str = "unfold",
        remat: str = "none",
        scan_layers: bool = False,
        dtype: Dtype | str = jnp.float32,
        param_dtype: Dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attn_drop_rate = drop_rate if attn_drop_rate is None else attn_drop_rate
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            max_tokens=max_tokens,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm_eps=norm_eps,
            remat=remat,
            scan_layers=scan_layers,
            drop_rates={
                "drop_rate": drop_rate,
                "attn_drop_rate": attn_drop_rate,
                "head_drop_rate": head_drop_rate,
            },
            drop_path_rates=drop_path_rates(drop_path_rate, depth),
            dtype=dtype,
            param_dtype=param_dtype,
        )
        types: dict[str, Any] = {**self.types, "rngs": rngs}
        self.patch_embed = PatchProjection(
            self.patch_size, self.in_chans, self.embed_dim, patchify=patchify, **types
        )
        self.token_embedding = TokenEmbedding(
            self.embed_dim,
            self.max_tokens,
            check_int("class_token_batch", class_token_batch, least=1),
            **types,
        )
        self.transformer_encoder = TransformerEncoder(
            depth,
            scan=self.scan_layers,
            dim=self.embed_dim,
            num_heads=self.num_heads,
            mlp_dim=check_int("mlp_dim", mlp_dim, least=1),
            batch_first=check_bool("batch_first", batch_first),
            norm_eps=self.norm_eps,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            **types,
        )
        self.head_drop = Dropout(head_drop_rate)
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the last Linear by a new one; 0 classes make it the identity."""
        num_classes = self.num_classes = check_int("num_classes", num_classes, least=0)
        self.linear_layer = nnx.data(
            torch_linear(self.embed_dim, num_classes, **self.types, rngs=rngs)
            if num_classes
            else None
        )

    def pixel_filters(self) -> jax.Array:
        """The matrix of the patches: (height, width, C, D)."""
        return window_filters(self.patch_embed.weight[...], self.in_chans, self.patch_size)

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches of an image of `img_size`: (N, D)."""
        rows, columns = self.token_grid(*self.img_size)
        return self.token_embedding.position_embedding_table[1 : 1 + rows * columns]

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of the encoder's layers."""
        return self.transformer_encoder.layers

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first layer, and the key of the layers' dropouts."""
        self.check_images(images)
        return self.token_embedding(self.patch_embed(images)), self.dropout_key(rngs)

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised, of any whole number of patches that
            `max_tokens` holds.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D): the class token, then patches row by row, after the last layer's norm.

        Raises:
          ValueError: images of another layout or type, or that `max_tokens` does not hold; `rngs`
            missing; a batch that is not `class_token_batch` where that is above 1.
        """
        x, key = self.embed(images, rngs)
        return self.transformer_encoder(
            x, drop_path_rates=self.drop_path_rates, remat=self.remat, key=key
        )

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes); with `pre_logits` the class token (B, D)."""
        x = self.head_drop(tokens[:, 0], self.dropout_key(rngs))
        return x if pre_logits or self.linear_layer is None else self.linear_layer(x)
