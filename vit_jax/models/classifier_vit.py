"""The Keras-style CIFAR-100 classifier: unfolded patches, hybrid norms, an MLP head.

Seed 003, adapted there from the Keras example "Image classification with Vision Transformer".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import MultiheadAttention
from vit_jax.layers.checks import check_int, to_pair
from vit_jax.layers.dropout import Dropout, drop_path, split_key
from vit_jax.layers.initializers import normal, uniform_0_1
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.mlp import gelu
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import patch_grid
from vit_jax.layers.stack import stack_layers
from vit_jax.layers.unfold import extract_patches, window_filters
from vit_jax.models.adaptable import PatchWeights, PositionTable
from vit_jax.models.base import Logits, Variant, VisionModel
from vit_jax.models.config import PatchesConfig, Size, check_widths, checked
from vit_jax.models.spec import CIFAR100_MEAN, CIFAR100_STD, Preprocessing


class CreatePatches(nnx.Module):
    """Images (B, H, W, C) to patches (B, N, C * patch height * patch width)."""

    def __init__(self, patch_size: tuple[int, int]):
        self.patch_size = patch_size

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches features"]:
        return extract_patches(images, self.patch_size)


class PatchEmbedding(nnx.Module):
    """Patches projected, a class token before them, learned positions added to all.

    Args:
      num_patches, patch_features, embed_dim: sizes.
      class_token_batch: class tokens, one for each slot of the batch; 1 serves every slot.
    """

    def __init__(
        self,
        num_patches: int,
        patch_features: int,
        embed_dim: int,
        class_token_batch: int,
        *,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.position_emb = nnx.Embed(
            num_patches + 1,
            embed_dim,
            embedding_init=normal(1.0),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.projection_layer = torch_linear(
            patch_features, embed_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        shape = (class_token_batch, 1, embed_dim)
        self.class_parameter = nnx.Param(uniform_0_1(rngs.params(), shape, param_dtype))

    def add_positions(
        self, tokens: Float[Array, "batch patches dim"]
    ) -> Float[Array, "batch tokens dim"]:
        """Projected patches (B, N, D) to (B, N + 1, D): class token first, positions added."""
        batch, _, dim = tokens.shape
        slots = self.class_parameter.shape[0]
        if slots not in (1, batch):
            raise ValueError(
                f"this model holds a class token for each of {slots} batch slots "
                f"(class_token_batch): it takes batches of {slots} images, got {batch}"
            )
        class_token = jnp.broadcast_to(
            self.class_parameter[...].astype(self.dtype), (batch, 1, dim)
        )
        positions = self.position_emb.embedding[...].astype(self.dtype)
        return jnp.concatenate([class_token, tokens], axis=1) + jnp.expand_dims(positions, 0)

    def __call__(
        self, patches: Float[Array, "batch patches features"]
    ) -> Float[Array, "batch tokens dim"]:
        return self.add_positions(self.projection_layer(patches))


class LinearBlock(nnx.Module):
    """Linear, GELU, Dropout: one step of the feed-forward and of the head."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        drop_rate: float,
        *,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.linear = torch_linear(in_dim, out_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.drop = Dropout(drop_rate)

    def __call__(
        self, x: Float[Array, "*batch in_dim"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*batch out_dim"]:
        return self.drop(gelu(self.linear(x)), key)


def _mlp_block(in_dim: int, out_dims: tuple[int, ...], drop_rate: float, **types) -> nnx.List:
    """GELU and Dropout follow every Linear, the last one too."""
    in_dims = (in_dim, *out_dims[:-1])
    return nnx.List(
        LinearBlock(in_dim, out_dim, drop_rate, **types)
        for in_dim, out_dim in zip(in_dims, out_dims, strict=True)
    )


def _apply(blocks: nnx.List, x: jax.Array, key: jax.Array | None) -> jax.Array:
    for block, block_key in zip(blocks, split_key(key, len(blocks)), strict=True):
        x = block(x, key=block_key)
    return x


class TransformerBlock(nnx.Module):
    """y = norm_1(x + attn(norm_input(x))); the result is norm_2(y + ffn(y)).

    Args:
      embed_dim: width of a token.
      num_heads: a divisor of it.
      mlp_dim: hidden width of the feed-forward.
      norm_eps: epsilon of the three LayerNorms.
      drop_rate: dropout after the attention and after each Linear of the feed-forward.
      attn_drop_rate: dropout on the attention weights.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_dim: int,
        *,
        norm_eps: float,
        drop_rate: float,
        attn_drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layer_norm_input = layer_norm(embed_dim, norm_eps, **types)
        self.attn = MultiheadAttention(embed_dim, num_heads, attn_drop_rate=attn_drop_rate, **types)
        self.dropout_1 = Dropout(drop_rate)
        self.layer_norm_1 = layer_norm(embed_dim, norm_eps, **types)
        self.layer_norm_2 = layer_norm(embed_dim, norm_eps, **types)
        self.ffn = _mlp_block(embed_dim, (mlp_dim, embed_dim), drop_rate, **types)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        attn_key, drop_key, path1_key, ffn_key, path2_key = split_key(key, 5)
        attn = self.dropout_1(self.attn(self.layer_norm_input(x), key=attn_key), drop_key)
        x = self.layer_norm_1(x + drop_path(attn, drop_path_rate, path1_key))
        ffn = _apply(self.ffn, x, ffn_key)
        return self.layer_norm_2(x + drop_path(ffn, drop_path_rate, path2_key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTClassifierConfig(PatchesConfig):
    """The fields of `ViTClassifier`; the common ones: `DesignConfig`, `PatchesConfig`.

    The text has neither `attn_drop_rate` nor `drop_path_rate`. `drop_rate` is that of the blocks,
    `head_drop_rate` follows each Linear of the head but the last.

    Attributes:
      mlp_dim: hidden width of the feed-forward.
      mlp_head_units: widths of the head's Linears before the last, at least one.
      class_token_batch: 1, or one class token for each slot of batches of that size (the text's
        code, whose predictions depend on the slot).
    """

    img_size: Size = 72
    patch_size: Size = 6
    num_classes: int = 100
    embed_dim: int = 64
    depth: int = 8
    num_heads: int = 4
    mlp_dim: int = checked(128, check_int, least=1)
    mlp_head_units: Sequence[int] = checked((2048, 1024), check_widths)
    class_token_batch: int = checked(1, check_int, least=1)
    drop_rate: float = 0.1
    head_drop_rate: float = 0.5
    patchify: str = "unfold"


class ViTClassifier(VisionModel[ViTClassifierConfig]):
    """The Keras-style classifier for CIFAR-100 at 72x72 pixels."""

    design = "vit_classifier"
    config_class = ViTClassifierConfig
    variants: ClassVar[Mapping[str, Variant]] = {
        "vit_classifier": Variant(
            {}, Preprocessing(CIFAR100_MEAN, CIFAR100_STD, interpolation="bilinear")
        )
    }
    stem = ("patch_embedding_layer",)
    heads = ("logits_layer",)
    layers_name = "transformer_layers"
    position_name = "patch_embedding_layer.position_emb.weight"
    token_names = ("position_emb", "class_parameter")
    independent: ClassVar[Mapping[str, Any]] = {"class_token_batch": 1}
    torch_names = (
        (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),
        (r"^((?:.*\.ffn|mlp_block)\.\d+)\.linear\.", r"\1.0."),
    )

    def __init__(self, config: ViTClassifierConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        types: dict[str, Any] = {**self.types, "rngs": rngs}
        self.patch_size = to_pair("patch_size", config.patch_size)
        rows, columns = patch_grid(self.img_size, self.patch_size)
        self.create_patch_layer = CreatePatches(self.patch_size)
        self.patch_embedding_layer = PatchEmbedding(
            rows * columns,
            config.in_chans * math.prod(self.patch_size),
            config.embed_dim,
            config.class_token_batch,
            **types,
        )
        self.transformer_layers = stack_layers(
            [
                TransformerBlock(
                    config.embed_dim,
                    config.num_heads,
                    config.mlp_dim,
                    norm_eps=config.norm_eps,
                    drop_rate=config.drop_rate,
                    attn_drop_rate=config.attn_drop_rate,
                    **types,
                )
                for _ in range(config.depth)
            ],
            scan=config.scan_layers,
        )
        units = tuple(config.mlp_head_units)
        self.mlp_block = _mlp_block(config.embed_dim, units, config.head_drop_rate, **types)
        self.num_features = units[-1]
        self.build_head(rngs)

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the last Linear of the head."""
        self.logits_layer = nnx.data(
            torch_linear(self.num_features, self.num_classes, **self.types, rngs=rngs)
            if self.num_classes
            else None
        )

    @property
    def batch_slots(self) -> int:
        """Images in a batch, where it holds a class token for each of them; else 1: any number."""
        return self.config.class_token_batch

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches, which are those of its one image size."""
        self.check_size(height, width)
        return patch_grid(self.img_size, self.patch_size)

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        matrix = self.patch_embedding_layer.projection_layer.kernel[...]
        return window_filters(matrix, self.in_chans, self.patch_size)

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches: (N, D)."""
        return self.patch_embedding_layer.position_emb.embedding[1:]

    def position_table(self) -> PositionTable:
        """One learned table for the class token and the grid."""
        rows, columns = patch_grid(self.img_size, self.patch_size)
        return PositionTable(self.position_name, rows * columns + 1, (rows, columns))

    def patch_weights(self) -> PatchWeights:
        """The Linear over unfolded patches."""
        name = "patch_embedding_layer.projection_layer.weight"
        return PatchWeights(name, window=math.prod(self.patch_size))

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        return self._embed(images), self.dropout_key(rngs)

    def _embed(self, images: jax.Array) -> jax.Array:
        images = images.astype(self.dtype)
        embedding = self.patch_embedding_layer
        if self.config.patchify == "unfold":
            return embedding(self.create_patch_layer(images))
        linear = embedding.projection_layer
        assert linear.bias is not None
        kernel = self.pixel_filters().astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            images, kernel, self.patch_size, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # (B, N, D)
        return embedding.add_positions(x + linear.bias[...].astype(self.dtype).reshape(1, 1, -1))

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes), through the head's MLP at the class token.

        With `pre_logits`, the input of the last Linear (B, mlp_head_units[-1]).
        """
        x = _apply(self.mlp_block, tokens[:, 0], self.dropout_key(rngs))
        return x if pre_logits or self.logits_layer is None else self.logits_layer(x)
