"""Vision Transformer, DeiT and DeiT III, as timm's `VisionTransformer` (1.0.31).

Dosovitskiy et al. 2020 (2010.11929), Touvron et al. 2020 (2012.12877) and 2022 (2204.07118).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, to_pair
from vit_jax.layers.dropout import Dropout, drop_path_rates
from vit_jax.layers.initializers import (
    kaiming_normal_fan_out,
    normal,
    trunc_normal,
    uniform_fan_in,
    zeros,
)
from vit_jax.layers.keys import split_key
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.stack import PlainLayers, ScannedLayers, run_layers, stack_layers
from vit_jax.models.base import Logits, VisionModel

GLOBAL_POOLS = ("token", "avg", "max", "avgmax", "")
WEIGHT_INITS = ("", "kaiming_conv")


class PreLogits(nnx.Module):
    """Linear and tanh between the class token and the head: ViT's representation layer."""

    def __init__(
        self, dim: int, representation_size: int, *, kernel_init, dtype, param_dtype, rngs: nnx.Rngs
    ):
        self.fc = nnx.Linear(
            dim,
            representation_size,
            kernel_init=kernel_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch representation"]:
        return jnp.tanh(self.fc(x))


class VisionTransformer(VisionModel):
    """Vision Transformer with class, distillation and register tokens.

    Args:
      img_size: pixels, one number or (height, width).
      patch_size: the same, of a patch.
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the head the identity.
      embed_dim: width of a token.
      depth: blocks.
      num_heads: heads of each block, a divisor of `embed_dim`.
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias: see `layers.attention.Attention`.
      qk_scale: see `layers.attention.Attention`.
      qk_norm: see `layers.attention.Attention`.
      representation_size: width of a tanh layer before the head; None or 0 means none. As in the
        sources, a distilled model has none. (With another pool than "token" it is ours alone.)
      distilled: a second class token with a head of its own. Train mode returns (class logits,
        distillation logits), eval mode their mean.
      class_token: whether there is one; without it `global_pool` cannot be "token".
      reg_tokens: register tokens, after the class token (Darcet et al. 2023, 2309.16588).
      no_embed_class: positions are added to the patches only, before the class and register tokens
        are prepended (DeiT III), instead of to all tokens after it.
      init_values: initial LayerScale; None or 0 means none, as in timm.
      global_pool: "token" (the class token), "avg", "max" or "avgmax" (over the patch tokens, the
        last norm after it), or "" (no pooling: the head at every token).
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the positions, the attention's output and in the MLP (timm's own
        `drop_rate` is `head_drop_rate` here).
      attn_drop_rate: dropout on attention weights.
      drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
      head_drop_rate: dropout before the head.
      patchify: "conv" or "unfold", the same numbers: see `PatchEmbed`.
      weight_init: "", timm's default (Linear N(0, .02), class and register tokens N(0, 1e-6), the
        patch convolution as torch's), or "kaiming_conv" (Linear N(0, .01), tokens N(0, .02), the
        patch convolution Kaiming-normal over fan_out), the initialisation of seed 004's text.
      remat: "none", "blocks" or "dots": see `run_layers`.
      scan_layers: keeps the blocks stacked and scans over them.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    stem = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed")

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        qk_norm: bool = False,
        representation_size: int | None = None,
        distilled: bool = False,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        init_values: float | None = None,
        global_pool: str = "token",
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        patchify: str = "conv",
        weight_init: str = "",
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
        types = self.types
        reg_tokens = check_int("reg_tokens", reg_tokens, least=0)
        representation_size = check_int("representation_size", representation_size or 0, least=0)
        mlp_ratio = check_number("mlp_ratio", mlp_ratio, above=0)
        init_values = None if init_values is None else check_number("init_values", init_values)
        for name, value in (
            ("qkv_bias", qkv_bias),
            ("qk_norm", qk_norm),
            ("distilled", distilled),
            ("class_token", class_token),
            ("no_embed_class", no_embed_class),
        ):
            check_bool(name, value)
        check_choice("global_pool", global_pool, GLOBAL_POOLS)
        if global_pool == "token" and not class_token:
            raise ValueError(
                "global_pool='token' needs class_token=True, got class_token=False; without a "
                "class token use 'avg', 'max', 'avgmax' or ''"
            )
        if distilled and (global_pool != "token" or reg_tokens):
            raise ValueError(
                "distilled=True reads the class and the distillation token: it needs "
                f"global_pool='token' and reg_tokens=0, got {global_pool!r} and {reg_tokens}"
            )
        is_timm = check_choice("weight_init", weight_init, WEIGHT_INITS) != "kaiming_conv"
        self._linear_init = trunc_normal(0.02 if is_timm else 0.01)
        self.distilled = distilled
        self.no_embed_class = no_embed_class
        self.global_pool = global_pool

        def token(count: int, std: float) -> nnx.Param:
            shape = (1, count, embed_dim)
            return nnx.Param(normal(std)(rngs.params(), shape, self.param_dtype))

        self.patch_embed = PatchEmbed(
            self.img_size,
            to_pair("patch_size", patch_size),
            in_chans,
            embed_dim,
            patchify=patchify,
            kernel_init=uniform_fan_in if is_timm else kaiming_normal_fan_out,
            bias_init=None if is_timm else zeros,
            **types,
            rngs=rngs,
        )
        token_std = 1e-6 if is_timm else 0.02
        self.cls_token = token(1, token_std) if class_token else None
        self.dist_token = token(1, 0.02) if distilled else None
        self.reg_token = token(reg_tokens, token_std) if reg_tokens else None
        self.prefix_tokens = (
            *["class"] * class_token,
            *["distillation"] * distilled,
            *["register"] * reg_tokens,
        )
        positions = self.patch_embed.num_patches + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = token(positions, 0.02)
        self.pos_drop = Dropout(drop_rate)
        self.blocks = stack_layers(
            [
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    qk_norm=qk_norm,
                    init_values=init_values,
                    norm_eps=norm_eps,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    kernel_init=self._linear_init,
                    bias_init=zeros,
                    **types,
                    rngs=rngs,
                )
                for _ in range(depth)
            ],
            scan=scan_layers,
        )
        pools_patches = global_pool in ("avg", "max", "avgmax")
        last_norm = layer_norm(embed_dim, norm_eps, **types, rngs=rngs)
        self.norm = None if pools_patches else last_norm
        self.fc_norm = last_norm if pools_patches else None
        width = 0 if distilled else representation_size
        self.num_features = width or embed_dim
        self.pre_logits = (
            PreLogits(embed_dim, width, kernel_init=self._linear_init, **types, rngs=rngs)
            if width
            else None
        )
        self.head_drop = Dropout(head_drop_rate)
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the head, and the distillation head, by new ones.

        Args:
          num_classes: width of the logits; 0 makes the heads the identity.
          rngs: stream "params".
        """
        num_classes = check_int("num_classes", num_classes, least=0)

        def head() -> nnx.Linear | None:
            if num_classes == 0:
                return None
            return nnx.Linear(
                self.num_features,
                num_classes,
                kernel_init=self._linear_init,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                rngs=rngs,
            )

        self.num_classes = num_classes
        self.head = nnx.data(head())
        self.head_dist = nnx.data(head() if self.distilled else None)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches, which are those of its one image size."""
        self.check_size(height, width)
        return self.patch_embed.grid_size

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        return self.patch_embed.proj.kernel[...]

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches: (N, D)."""
        return self.pos_embed[0, -self.patch_embed.num_patches :]

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of blocks."""
        return self.blocks

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        return self.pos_drop(self._embed(images), drop_key), blocks_key

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The last norm, where it does not stand behind the pooling."""
        return tokens if self.norm is None else self.norm(tokens)

    def _embed(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) to tokens (B, N, D) with positions, before dropout."""
        patches = self.patch_embed(images.astype(self.dtype))
        batch, _, dim = patches.shape
        positions = self.pos_embed[...].astype(self.dtype)
        prefix = [
            jnp.broadcast_to(token[...].astype(self.dtype), (batch, token.shape[1], dim))
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        if self.no_embed_class:
            return jnp.concatenate([*prefix, patches + positions], axis=1)
        return jnp.concatenate([*prefix, patches], axis=1) + positions

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D): class, distillation, register tokens, then patches row by row; after the last
          norm, or before it where `global_pool` moves it behind the pooling ("avg", "max",
          "avgmax"), as timm.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing.
        """
        x, key = self.embed(images, rngs)
        x = run_layers(
            self.blocks, x, drop_path_rates=self.drop_path_rates, key=key, remat=self.remat
        )
        return self.last_norm(x)

    def _pool(self, tokens: jax.Array) -> jax.Array:
        if self.global_pool == "":
            return tokens
        if self.global_pool == "token":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        if self.global_pool == "avg":
            return patches.mean(axis=1)
        if self.global_pool == "max":
            return patches.max(axis=1)
        return 0.5 * (patches.max(axis=1) + patches.mean(axis=1))

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Logits:
        """Tokens of `forward_features` to logits.

        Args:
          tokens: (B, N, D).
          pre_logits: stop before the head; a distilled model gives the mean of its two tokens.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, num_classes), a pair of them from a distilled model in train mode, and
          (B, N, num_classes) with global_pool "". With `pre_logits` always one array, (B, features)
          or (B, N, features).
        """
        class_key, dist_key = split_key(self.dropout_key(rngs), 2)
        if self.distilled:
            x = self.head_drop(tokens[:, 0], class_key)
            x_dist = self.head_drop(tokens[:, 1], dist_key)
            if pre_logits:
                return (x + x_dist) / 2
            if self.head is not None and self.head_dist is not None:
                x, x_dist = self.head(x), self.head_dist(x_dist)
            return (x + x_dist) / 2 if self.deterministic else (x, x_dist)
        x = self._pool(tokens)
        if self.fc_norm is not None:
            x = self.fc_norm(x)
        if self.pre_logits is not None:
            x = self.pre_logits(x)
        x = self.head_drop(x, class_key)
        return x if pre_logits or self.head is None else self.head(x)
