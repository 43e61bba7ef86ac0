"""The CIFAR-100 classifier of seed 003: unfolded patches, hybrid norms, an MLP head.

Adapted there from the Keras example "Image classification with Vision Transformer".
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.attention import MultiheadAttention
from vit_jax.layers.checks import check_choice, check_int, to_pair
from vit_jax.layers.dropout import Dropout, drop_path, drop_path_rates
from vit_jax.layers.initializers import normal, uniform_0_1
from vit_jax.layers.keys import split_key
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.mlp import gelu
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PATCHIFY, patch_grid
from vit_jax.layers.stack import PlainLayers, ScannedLayers, run_layers, stack_layers
from vit_jax.layers.unfold import extract_patches, window_filters
from vit_jax.models.base import Logits, VisionModel


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


class ViTClassifier(VisionModel):
    """The 72x72 classifier of seed 003.

    Args:
      img_size: pixels, one number or (height, width).
      patch_size: the same, of a patch.
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the last Linear the identity.
      embed_dim: width of a token.
      num_heads: a divisor of it.
      depth: blocks.
      mlp_dim: hidden width of the feed-forward.
      mlp_head_units: widths of the head's Linears before the last, at least one.
      class_token_batch: 1, or one class token for each slot of batches of that size (the text's
        code, whose predictions depend on the slot).
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout in the blocks.
      head_drop_rate: after each Linear of the head but the last.
      attn_drop_rate: dropout on attention weights (the text has none).
      drop_path_rate: stochastic depth of the last block; linear from 0 at the first (the text has
        none).
      patchify: "unfold" (im2col, then the Linear) or "conv" (the same numbers as a convolution).
      remat: "none", "blocks" or "dots": see `run_layers`.
      scan_layers: keeps the blocks stacked and scans over them.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    stem = ("patch_embedding_layer",)
    torch_names = (
        (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),
        (r"^((?:.*\.ffn|mlp_block)\.\d+)\.linear\.", r"\1.0."),
    )

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 72,
        patch_size: int | Sequence[int] = 6,
        in_chans: int = 3,
        num_classes: int = 100,
        embed_dim: int = 64,
        depth: int = 8,
        num_heads: int = 4,
        mlp_dim: int = 128,
        mlp_head_units: Sequence[int] = (2048, 1024),
        class_token_batch: int = 1,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.1,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.5,
        patchify: str = "unfold",
        remat: str = "none",
        scan_layers: bool = False,
        dtype: Dtype | str = jnp.float32,
        param_dtype: Dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            img_size=img_size,
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
        mlp_dim = check_int("mlp_dim", mlp_dim, least=1)
        class_token_batch = check_int("class_token_batch", class_token_batch, least=1)
        head_units = tuple(mlp_head_units) if np.ndim(mlp_head_units) else ()
        if not head_units:
            raise ValueError(
                f"mlp_head_units must be a sequence of at least one width, got {mlp_head_units!r}"
            )
        head_units = tuple(check_int("mlp_head_units", width, least=1) for width in head_units)
        self.patch_size = to_pair("patch_size", patch_size)
        rows, columns = patch_grid(self.img_size, self.patch_size)
        self.patchify = check_choice("patchify", patchify, PATCHIFY)
        self.create_patch_layer = CreatePatches(self.patch_size)
        self.patch_embedding_layer = PatchEmbedding(
            rows * columns,
            in_chans * self.patch_size[0] * self.patch_size[1],
            embed_dim,
            class_token_batch,
            **types,
        )
        self.transformer_layers = stack_layers(
            [
                TransformerBlock(
                    embed_dim,
                    num_heads,
                    mlp_dim,
                    norm_eps=norm_eps,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    **types,
                )
                for _ in range(depth)
            ],
            scan=scan_layers,
        )
        self.mlp_block = _mlp_block(embed_dim, head_units, head_drop_rate, **types)
        self.num_features = head_units[-1]
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the last Linear of the head by a new one; 0 classes make it the identity."""
        num_classes = self.num_classes = check_int("num_classes", num_classes, least=0)
        self.logits_layer = nnx.data(
            torch_linear(self.num_features, num_classes, **self.types, rngs=rngs)
            if num_classes
            else None
        )

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

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of blocks."""
        return self.transformer_layers

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        return self._embed(images), self.dropout_key(rngs)

    def _embed(self, images: jax.Array) -> jax.Array:
        images = images.astype(self.dtype)
        embedding = self.patch_embedding_layer
        if self.patchify == "unfold":
            return embedding(self.create_patch_layer(images))
        linear = embedding.projection_layer
        assert linear.bias is not None
        kernel = self.pixel_filters().astype(self.dtype)
        x = jax.lax.conv_general_dilated(
            images, kernel, self.patch_size, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # (B, N, D)
        return embedding.add_positions(x + linear.bias[...].astype(self.dtype).reshape(1, 1, -1))

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D): the class token, then patches row by row, after the last block's norm.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing; a batch that is not
            `class_token_batch` where that is above 1.
        """
        x, key = self.embed(images, rngs)
        return run_layers(
            self.transformer_layers,
            x,
            drop_path_rates=self.drop_path_rates,
            key=key,
            remat=self.remat,
        )

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
