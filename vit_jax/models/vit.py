"""Vision Transformer, DeiT and DeiT III, as timm's `VisionTransformer` (1.0.31).

Dosovitskiy et al. 2020 (2010.11929), Touvron et al. 2020 (2012.12877) and 2022 (2204.07118).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, to_pair
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import (
    kaiming_normal_fan_out,
    mimetic_kernels,
    normal,
    trunc_normal,
    uniform_fan_in,
    xavier_uniform,
    zeros,
)
from vit_jax.layers.mlp import Mlp, PreLogits, SwiGlu
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.position import grid_sinusoid_table
from vit_jax.layers.stack import stack_layers
from vit_jax.models.adaptable import PatchWeights, PositionTable
from vit_jax.models.base import Logits, Variant, VisionModel
from vit_jax.models.config import PatchesConfig, checked, optional, other_scale
from vit_jax.models.dialect import (
    HUGGINGFACE_MODULES,
    HUGGINGFACE_SIZES,
    QKV,
    Dialect,
    Name,
    layer_names,
)
from vit_jax.models.spec import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

GLOBAL_POOLS = ("token", "avg", "max", "avgmax", "")
WEIGHT_INITS = ("", "kaiming_conv", "mimetic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(PatchesConfig):
    """The fields of `VisionTransformer`; the common ones: `DesignConfig`, `PatchesConfig`.

    `drop_rate` is not timm's, which is `head_drop_rate` here.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias, qk_scale, qk_norm: see `layers.attention.Attention`.
      representation_size: width of a tanh layer before the head; None, also where it is given as 0
        or with `distilled`, means none, as in the sources. (With another pool than "token" it is
        ours alone.)
      distilled: a second class token with a head of its own. Train mode returns (class logits,
        distillation logits), eval mode their mean.
      class_token: whether there is one; without it `global_pool` cannot be "token".
      reg_tokens: register tokens, after the class token (Darcet et al. 2023, 2309.16588).
      no_embed_class: positions are added to the patches only, before the class and register tokens
        are prepended (DeiT III), instead of to all tokens after it.
      init_values: initial LayerScale; None or 0 means none, as in timm.
      swiglu: a gated MLP, as timm's `SwiGLUPacked`; of `mlp_ratio` about two thirds are its width,
        see `layers.mlp.SwiGlu`.
      global_pool: "token" (the class token), "avg", "max" or "avgmax" (over the patch tokens, the
        last norm after it), or "" (no pooling: the head at every token).
      weight_init: "", timm's default (Linear N(0, .02), class and register tokens N(0, 1e-6), the
        patch convolution as torch's), "kaiming_conv" (Linear N(0, .01), tokens N(0, .02), the
        patch convolution Kaiming-normal over fan_out), or "mimetic", which learns faster from few
        images (timm's, but for attention, see `layers.initializers.mimetic_kernels`, the other
        Linears: Xavier-uniform, and positions: sines and cosines of the grid; half a minute for
        ViT-B on two CPU cores).
    """

    mlp_ratio: float = checked(4.0, check_number, above=0)
    qkv_bias: bool = checked(True, check_bool)
    qk_scale: float | None = optional(None, check_number)
    qk_norm: bool = checked(False, check_bool)
    representation_size: int | None = optional(None, check_int, least=0)
    distilled: bool = checked(False, check_bool)
    class_token: bool = checked(True, check_bool)
    reg_tokens: int = checked(0, check_int, least=0)
    no_embed_class: bool = checked(False, check_bool)
    init_values: float | None = optional(None, check_number, free=True)
    swiglu: bool = checked(False, check_bool)
    global_pool: str = checked("token", check_choice, choices=GLOBAL_POOLS)
    weight_init: str = checked("", check_choice, free=True, choices=WEIGHT_INITS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.representation_size or self.distilled:
            object.__setattr__(self, "representation_size", None)
        object.__setattr__(self, "qk_scale", other_scale(self))
        if self.global_pool == "token" and not self.class_token:
            raise ValueError(
                "global_pool='token' needs class_token=True, got class_token=False; without a "
                "class token use 'avg', 'max', 'avgmax' or ''"
            )
        if self.distilled and (self.global_pool != "token" or self.reg_tokens):
            raise ValueError(
                "distilled=True reads the class and the distillation token: it needs "
                f"global_pool='token' and reg_tokens=0, got {self.global_pool!r} and "
                f"{self.reg_tokens}"
            )


# embed_dim, depth, num_heads
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}


def _variant(family: str, size: str, patch_size: int, img_size: int, **fields: Any) -> Variant:
    embed_dim, depth, num_heads = _SIZES[size]
    sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    # timm: ViT takes Inception's statistics and DeiT ImageNet's; the 384 forms are not cropped.
    mean, std = (HALF_MEAN, HALF_STD) if family == "vit" else (IMAGENET_MEAN, IMAGENET_STD)
    return Variant(
        {"img_size": img_size, "patch_size": patch_size, **sizes, **fields},
        Preprocessing(mean, std, crop_fraction=1.0 if img_size == 384 else 0.9),
    )


def _variants() -> dict[str, Variant]:
    """timm's names."""
    found = {}
    for size, patch, img_size in (
        *(((size, 16, 224)) for size in ("tiny", "small", "base", "large")),
        *(((size, 32, 224)) for size in ("small", "base", "large")),
        ("base", 8, 224),
        ("huge", 14, 224),
        *(((size, 16, 384)) for size in ("tiny", "small", "base", "large")),
        *(((size, 32, 384)) for size in ("base", "large")),
    ):
        found[f"vit_{size}_patch{patch}_{img_size}"] = _variant("vit", size, patch, img_size)
    for size, img_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        for infix, distilled in (("", False), ("_distilled", True)):
            found[f"deit_{size}{infix}_patch16_{img_size}"] = _variant(
                "deit", size, 16, img_size, distilled=distilled
            )
    for size, patch, img_size in (
        *((size, 16, img_size) for size in ("small", "base", "large") for img_size in (224, 384)),
        ("huge", 14, 224),
    ):
        found[f"deit3_{size}_patch{patch}_{img_size}"] = _variant(
            "deit3", size, patch, img_size, no_embed_class=True, init_values=1e-6
        )
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    for size in ("small", "base", "large", "giant"):
        plain = _variant("dinov2", size, 14, 518, init_values=1e-5, num_classes=0).fields
        plain = {**plain, "swiglu": True} if size == "giant" else plain
        registers = {"reg_tokens": 4, "no_embed_class": True}
        found[f"vit_{size}_patch14_dinov2"] = Variant(plain, preprocessing)
        found[f"vit_{size}_patch14_reg4_dinov2"] = Variant({**plain, **registers}, preprocessing)
    return found


# What other libraries' models have once for all.
_PLAIN = {"qk_scale": None, "no_embed_class": False, "class_token": True, "global_pool": "token"}
_PLAIN |= {"distilled": False, "reg_tokens": 0, "swiglu": False}
_HUGGINGFACE_CONFIG = {
    **HUGGINGFACE_SIZES,
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "norm_eps",
}


def _huggingface(
    architecture: str, told_by: str, names: Mapping[str, str], fields: Mapping[str, Any]
) -> Dialect:
    """transformers 4's names, which 5 writes to files too; then 5's own in memory."""
    whose = architecture.partition("For")[0]
    prefix = f"{whose.lower()}."
    attention = "attention.attention."
    rows = (
        ("norm1.", "layernorm_before.", "layernorm_before."),
        ("norm2.", "layernorm_after.", "layernorm_after."),
        ("attn.q.", f"{attention}query.", "attention.q_proj."),
        ("attn.k.", f"{attention}key.", "attention.k_proj."),
        ("attn.v.", f"{attention}value.", "attention.v_proj."),
        ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
        ("mlp.fc1.", "intermediate.dense.", "mlp.fc1."),
        ("mlp.fc2.", "output.dense.", "mlp.fc2."),
    )
    return Dialect(
        "huggingface",
        f"Hugging Face's {whose}",
        told_by,
        [
            Name("cls_token", f"{prefix}embeddings.cls_token"),
            Name("pos_embed", f"{prefix}embeddings.position_embeddings"),
            Name("patch_embed.proj.", f"{prefix}embeddings.patch_embeddings.projection."),
            *layer_names("blocks.#.", f"{prefix}encoder.layer.#.", rows, "layers.#."),
            Name("norm.", f"{prefix}layernorm."),
            Name("pre_logits.fc.", "", ("pooler.dense.",)),
            *(Name(own, theirs) for own, theirs in names.items()),
        ],
        HUGGINGFACE_MODULES,
        prefixes=("vit.", "deit."),
        joined=QKV,
        positions=r"(?:(?:vit|deit)\.)?embeddings\.position_embeddings",
        fields={**_PLAIN, **fields},
        model_type=whose.lower(),
        architecture=architecture,
        config=_HUGGINGFACE_CONFIG,
        settled={"hidden_act": "gelu"},
    )


def _torchvision() -> Dialect:
    layer = "encoder.layers.encoder_layer_#."
    rows = (
        ("norm1.", "ln_1."),
        ("norm2.", "ln_2."),
        ("attn.qkv.weight", "self_attention.in_proj_weight"),
        ("attn.qkv.bias", "self_attention.in_proj_bias"),
        ("attn.proj.", "self_attention.out_proj."),
        ("mlp.fc1.", "mlp.0.", "mlp.linear_1."),
        ("mlp.fc2.", "mlp.3.", "mlp.linear_2."),
    )
    return Dialect(
        "torchvision",
        "torchvision's ViT",
        r"^conv_proj\.weight$",
        [
            Name("cls_token", "class_token"),
            Name("patch_embed.proj.", "conv_proj."),
            Name("pos_embed", "encoder.pos_embedding"),
            *layer_names("blocks.#.", layer, rows, layer),
            Name("norm.", "encoder.ln."),
            Name("pre_logits.fc.", "heads.pre_logits."),
            Name("head.", "heads.head."),
        ],
        [
            ("encoder.dropout", "pos_drop"),
            (layer.rstrip("."), "blocks.#"),
            (f"{layer}self_attention", "blocks.#.attn"),
            (f"{layer}mlp", "blocks.#.mlp"),
        ],
        positions=r"encoder\.pos_embedding",
        is_written=False,
    )


def _google() -> Dialect:
    """google-research/vision_transformer's names, which are written; then big_vision's."""
    block, attention = "Transformer/encoderblock_#/", "MultiHeadDotProductAttention_"
    rows = (
        ("norm1.", "LayerNorm_0/"),
        ("norm2.", "LayerNorm_2/", "LayerNorm_1/"),
        ("mlp.fc1.", "MlpBlock_3/Dense_0/", "MlpBlock_0/Dense_0/"),
        ("mlp.fc2.", "MlpBlock_3/Dense_1/", "MlpBlock_0/Dense_1/"),
    )
    heads = [(f"{part[0]}.", f"{part}/", f"{part}/") for part in ("query", "key", "value")]
    out, own, big = [("proj.", "out/", "out/")], "blocks.#.", f"{block}{attention}0/"
    return Dialect(
        "google",
        "Google's ViT",
        r"^(?:params/)?embedding/kernel$",
        [
            Name("cls_token", "cls"),
            Name("patch_embed.proj.", "embedding/", layout="conv"),
            Name("pos_embed", "Transformer/posembed_input/pos_embedding", ("pos_embedding",)),
            *layer_names(own, block, rows, block),
            *layer_names(f"{own}attn.", f"{block}{attention}1/", heads, big, "heads out"),
            *layer_names(f"{own}attn.", f"{block}{attention}1/", out, big, "heads in"),
            Name("norm.", "Transformer/encoder_norm/"),
            Name("pre_logits.fc.", "pre_logits/"),
            Name("head.", "head/"),
        ],
        prefixes=("params/",),
        joined=QKV,
        is_flax=True,
        stack="Transformer/encoderblock",
        beside=("opt", "optimizer", "chrono"),
        fields={**_PLAIN, "norm_eps": 1e-6},
    )


_TOKEN = "deit.embeddings.distillation_token"
_DIALECTS = (
    _huggingface(
        "DeiTForImageClassificationWithTeacher",
        r"(?:^|\.)distillation_classifier\.weight$",
        {
            "dist_token": _TOKEN,
            "head.": "cls_classifier.",
            "head_dist.": "distillation_classifier.",
        },
        {"distilled": True},
    ),
    # Without a head of its own the distillation token is a register.
    _huggingface(
        "DeiTForImageClassification",
        r"embeddings\.distillation_token$",
        {"reg_token": _TOKEN, "head.": "classifier."},
        {"reg_tokens": 1},
    ),
    _huggingface(
        "ViTForImageClassification",
        r"embeddings\.patch_embeddings\.projection\.weight$",
        {"head.": "classifier."},
        {},
    ),
    _torchvision(),
    _google(),
)


class VisionTransformer(VisionModel[VisionTransformerConfig]):
    """Vision Transformer with class, distillation and register tokens."""

    design = "vit"
    config_class = VisionTransformerConfig
    variants = _variants()
    stem = ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed")
    heads = ("head", "head_dist")
    before_head = ("pre_logits.fc",)
    head_tokens = ("dist_token", "reg_token")
    head_fields = ("representation_size", "distilled", "reg_tokens")
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token", "dist_token", "reg_token")
    dialects = _DIALECTS
    torch_names = ((r"(?<=\.mlp\.)w12(?=\.)", "fc1"), (r"(?<=\.mlp\.)w3(?=\.)", "fc2"))

    def __init__(self, config: VisionTransformerConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        is_timm = config.weight_init != "kaiming_conv"
        token_std = 1e-6 if is_timm else 0.02
        is_mimetic = config.weight_init == "mimetic"
        kernel_init = xavier_uniform if is_mimetic else trunc_normal(0.02 if is_timm else 0.01)
        self._kernel_init = kernel_init

        def token(count: int, std: float) -> nnx.Param:
            shape = (1, count, embed_dim)
            return nnx.Param(normal(std)(rngs.params(), shape, self.param_dtype))

        self.patch_embed = PatchEmbed(
            self.img_size,
            to_pair("patch_size", config.patch_size),
            config.in_chans,
            embed_dim,
            patchify=config.patchify,
            kernel_init=uniform_fan_in if is_timm else kaiming_normal_fan_out,
            bias_init=None if is_timm else zeros,
            **types,
            rngs=rngs,
        )
        self.cls_token = token(1, token_std) if config.class_token else None
        self.dist_token = token(1, 0.02) if config.distilled else None
        self.heads = ("head", "head_dist") if config.distilled else ("head",)
        self.reg_token = token(config.reg_tokens, token_std) if config.reg_tokens else None
        self.prefix_tokens = (
            *["class"] * config.class_token,
            *["distillation"] * config.distilled,
            *["register"] * config.reg_tokens,
        )
        prefix = 0 if config.no_embed_class else self.num_prefix_tokens
        self.pos_embed = token(self.patch_embed.num_patches + prefix, 0.02)
        self.pos_drop = Dropout(config.drop_rate)
        blocks = [
            Block(
                embed_dim,
                config.num_heads,
                mlp=SwiGlu if config.swiglu else Mlp,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                qk_scale=config.qk_scale,
                qk_norm=config.qk_norm,
                init_values=config.init_values,
                norm_eps=config.norm_eps,
                drop_rate=config.drop_rate,
                attn_drop_rate=config.attn_drop_rate,
                kernel_init=kernel_init,
                bias_init=zeros,
                **types,
                rngs=rngs,
            )
            for _ in range(config.depth)
        ]
        if is_mimetic:
            self._begin_mimetic(blocks, prefix, rngs)
        self.blocks = stack_layers(blocks, scan=config.scan_layers)
        pools_patches = config.global_pool in ("avg", "max", "avgmax")
        last_norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.norm = None if pools_patches else last_norm
        self.fc_norm = last_norm if pools_patches else None
        width = config.representation_size or 0
        self.num_features = width or embed_dim
        self.pre_logits = (
            PreLogits(embed_dim, width, kernel_init=kernel_init, **types, rngs=rngs)
            if width
            else None
        )
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    def _begin_mimetic(self, blocks: list[Block], prefix: int, rngs: nnx.Rngs) -> None:
        """Sets the attention of all blocks, and the positions: zeros for the first `prefix`."""
        width, heads, dtype = self.config.embed_dim, self.config.num_heads, self.param_dtype
        table = grid_sinusoid_table(self.patch_embed.grid_size, width)
        self.pos_embed[...] = jnp.pad(table, ((prefix, 0), (0, 0)))[None].astype(dtype)
        for block in blocks:
            qkv, proj = mimetic_kernels(rngs.params(), width, heads, dtype)
            block.attn.qkv.kernel[...], block.attn.proj.kernel[...] = qkv, proj

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the head, and the distillation head."""

        def head() -> nnx.Linear | None:
            if self.num_classes == 0:
                return None
            return nnx.Linear(
                self.num_features,
                self.num_classes,
                kernel_init=self._kernel_init,
                **self.types,
                rngs=rngs,
            )

        self.head = nnx.data(head())
        self.head_dist = nnx.data(head() if self.config.distilled else None)

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

    def position_table(self) -> PositionTable:
        """One learned table for the class tokens and the grid."""
        prefix = 0 if self.config.no_embed_class else self.num_prefix_tokens
        return PositionTable(
            self.position_name, self.pos_embed.shape[1], self.patch_embed.grid_size, prefix
        )

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The width of the representation layer, the tokens, and whether the MLP is gated."""
        width, registers = shapes.get("pre_logits.fc.bias", ()), shapes.get("reg_token", ())
        told: dict[str, Any] = {"representation_size": width[0]} if len(width) == 1 else {}
        if len(registers) == 3:
            told["reg_tokens"] = registers[1]
        wide, narrow = (shapes.get(f"blocks.0.mlp.{layer}.weight", ()) for layer in ("fc1", "fc2"))
        if len(wide) == len(narrow) == 2:
            told["swiglu"] = wide[0] == 2 * narrow[1]
        return told | ({"distilled": True} if "dist_token" in shapes else {})

    def patch_weights(self) -> PatchWeights:
        """The convolution over the patches."""
        return PatchWeights("patch_embed.proj.weight", is_resampled=True)

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        return self.pos_drop(self._embed(images), drop_key), blocks_key

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The last norm; none where `global_pool` moves it behind the pooling, as timm."""
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
        if self.config.no_embed_class:
            return jnp.concatenate([*prefix, patches + positions], axis=1)
        return jnp.concatenate([*prefix, patches], axis=1) + positions

    def _pool(self, tokens: jax.Array) -> jax.Array:
        if self.config.global_pool == "":
            return tokens
        if self.config.global_pool == "token":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        if self.config.global_pool == "avg":
            return patches.mean(axis=1)
        if self.config.global_pool == "max":
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
        if self.config.distilled:
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
