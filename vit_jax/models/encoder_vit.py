"""The walkthrough ViT of seed 000: a patch matrix, a class token, PyTorch's own encoder.

The text is a script over tensors; what it never says (sizes for real images, that the patch matrix
is trained, that attention runs over tokens) is stated at the fields.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_bool, check_choice, check_int
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.encoder_layer import TransformerEncoder
from vit_jax.layers.initializers import normal
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.patch_embed import PATCHIFY
from vit_jax.layers.unfold import extract_patches, window_filters
from vit_jax.models.adaptable import PatchWeights
from vit_jax.models.any_size import AnySizeConfig, AnySizeModel
from vit_jax.models.base import Logits, Variant
from vit_jax.models.config import checked
from vit_jax.models.spec import HALF_MEAN, HALF_STD, Preprocessing


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderViTConfig(AnySizeConfig):
    """The fields of `EncoderViT`; the common ones: `DesignConfig` to `AnySizeConfig`.

    The text's sizes are a toy's (8x8 images, patch 4, width 8, 6 layers of 8 heads, feed-forward
    2048, 16 rows of positions, 10 classes); the defaults here are sizes to train with at 32x32.

    Attributes:
      class_token_batch: 1, or one class token for each slot of batches of that size (the text's
        code, whose predictions depend on the slot).
      batch_first: False is the text's code: PyTorch's encoder then attends across the batch, and
        the logits do not depend on the images.
    """

    embed_dim: int = 256
    class_token_batch: int = checked(1, check_int, least=1)
    batch_first: bool = checked(True, check_bool)
    patchify: str = "unfold"


class EncoderViT(AnySizeModel[EncoderViTConfig]):
    """The walkthrough ViT of seed 000 over `torch.nn.TransformerEncoder`: post-norm, ReLU.

    No LayerNorm follows the encoder.
    """

    design = "vit_encoder"
    config_class = EncoderViTConfig
    # The text normalises nothing: 0..1 becomes -1..1.
    variants: ClassVar[Mapping[str, Variant]] = {
        "vit_encoder": Variant({}, Preprocessing(HALF_MEAN, HALF_STD, interpolation="bilinear"))
    }
    stem = ("patch_embed", "token_embedding")
    heads = ("linear_layer",)
    layers_name = "transformer_encoder.layers"
    position_name = "positon_embedding_table"  # so spelt in the text
    token_names = ("positon_embedding_table", "cls_token")
    independent: ClassVar[Mapping[str, Any]] = {"batch_first": True, "class_token_batch": 1}
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

    def __init__(self, config: EncoderViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        types: dict[str, Any] = {**self.types, "rngs": rngs}
        self.patch_embed = PatchProjection(
            self.patch_size, config.in_chans, config.embed_dim, patchify=config.patchify, **types
        )
        self.token_embedding = TokenEmbedding(
            config.embed_dim, config.max_tokens, config.class_token_batch, **types
        )
        self.transformer_encoder = TransformerEncoder(
            config.depth,
            scan=config.scan_layers,
            dim=config.embed_dim,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            batch_first=config.batch_first,
            norm_eps=config.norm_eps,
            drop_rate=config.drop_rate,
            attn_drop_rate=config.attention_drop_rate,
            **types,
        )
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the last Linear."""
        self.linear_layer = nnx.data(
            torch_linear(self.config.embed_dim, self.num_classes, **self.types, rngs=rngs)
            if self.num_classes
            else None
        )

    @property
    def batch_slots(self) -> int:
        """Images in a batch, where it holds a class token for each of them; else 1: any number."""
        return self.config.class_token_batch

    def patch_weights(self) -> PatchWeights:
        """The matrix over unfolded patches, which the source keeps as (in, out)."""
        return PatchWeights("weight", axis=0, window=math.prod(self.patch_size))

    def pixel_filters(self) -> jax.Array:
        """The matrix of the patches: (height, width, C, D)."""
        return window_filters(self.patch_embed.weight[...], self.in_chans, self.patch_size)

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches of an image of `img_size`: (N, D)."""
        rows, columns = self.token_grid(*self.img_size)
        return self.token_embedding.position_embedding_table[1 : 1 + rows * columns]

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first layer, and the key of the layers' dropouts."""
        self.check_images(images)
        return self.token_embedding(self.patch_embed(images)), self.dropout_key(rngs)

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens, after the last layer's norm: see `VisionModel`."""
        x, key = self.embed(images, rngs)
        return self.transformer_encoder(
            x, drop_path_rates=self.drop_path_rates, remat=self.config.remat, key=key
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
