"""DINOv3's Vision Transformers: rotary positions, register tokens, images of any size.

Siméoni et al. 2025 (2508.10104); facebookresearch/dinov3 (models/vision_transformer.py,
hub/backbones.py), transformers 5.24 (models/dinov3_vit). In training the coordinates are drawn once
a step, for all blocks alike, as transformers does; the release draws them for each block.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.mlp import GatedMlp, Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.rotary import (
    ROUNDINGS,
    RotaryAttention,
    augmented,
    frequencies,
    patch_coordinates,
    rotations,
)
from vit_jax.layers.variables import Frozen
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, checked, optional
from vit_jax.models.dialect import HUGGINGFACE_SIZES, Dialect, Name, layer_names
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

POOLS = ("token", "avg", "token_avg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov3Config(PatchesConfig):
    """The fields of `Dinov3`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is what data is prepared for where nothing else is said; images of any whole number
    of patches are taken.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`; of the gated one that of its gate.
      swiglu: the gated MLP, see `layers.mlp.GatedMlp`.
      qkv_bias: of the queries and the values; the keys have none.
      init_values: initial LayerScale.
      reg_tokens: register ("storage") tokens, between the class token and the patches.
      mask_token: whether there is one, which stands for hidden patches in pretraining: not used
        here, and never trained.
      global_pool: what the head sees: "token", the class token, "avg", the mean of the patches, or
        "token_avg", both.
      rope_theta: base of the periods of the rotary positions.
      rope_rounding: see `layers.rotary.frequencies`.
      rope_shift, rope_jitter, rope_rescale: in train mode, see `layers.rotary.augmented`; None
        leaves it out.
    """

    num_classes: int = 0
    norm_eps: float = 1e-5
    mlp_ratio: float = checked(4.0, check_number, above=0)
    swiglu: bool = checked(False, check_bool)
    qkv_bias: bool = checked(True, check_bool)
    init_values: float | None = optional(1e-5, check_number, free=True)
    reg_tokens: int = checked(4, check_int, least=0)
    mask_token: bool = checked(True, check_bool)
    global_pool: str = checked("token", check_choice, choices=POOLS)
    rope_theta: float = checked(100.0, check_number, above=0)
    rope_rounding: str = checked("float32", check_choice, choices=ROUNDINGS)
    rope_shift: float | None = optional(None, check_number, free=True, above=0)
    rope_jitter: float | None = optional(None, check_number, free=True, above=1)
    rope_rescale: float | None = optional(2.0, check_number, free=True, above=1)

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of each block: the same in all of them, as transformers has it."""
        return (self.drop_path_rate,) * self.depth

    @property
    def is_augmented(self) -> bool:
        """Whether positions are drawn in train mode."""
        return any(x is not None for x in (self.rope_shift, self.rope_jitter, self.rope_rescale))


def _variants() -> dict[str, Variant]:
    """The release's names."""
    preprocessing = Preprocessing(
        IMAGENET_MEAN, IMAGENET_STD, 1.0, "bilinear", "squash", size=(256, 256)
    )
    found = {}
    for name, embed_dim, depth, num_heads, fields in (
        ("s16", 384, 12, 6, {}),
        ("s16plus", 384, 12, 6, {"swiglu": True}),
        ("b16", 768, 12, 12, {}),
        ("l16", 1024, 24, 16, {}),
        ("h16plus", 1280, 32, 20, {"swiglu": True}),
        ("7b16", 4096, 40, 32, {"swiglu": True, "mlp_ratio": 2.0, "qkv_bias": False}),
    ):
        sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        found[f"dinov3_vit{name}"] = Variant({**sizes, **fields}, preprocessing)
    return found


def _huggingface(swiglu: bool) -> Dialect:
    """transformers' names in files; then its own in memory (5.24)."""
    if swiglu:
        mlp = (("w1.", "gate_proj."), ("w2.", "up_proj."), ("w3.", "down_proj."))
    else:
        mlp = (("fc1.", "up_proj."), ("fc2.", "down_proj."))
    rows = (
        ("norm1.", "norm1."),
        ("norm2.", "norm2."),
        *((f"attn.{part}.weight", f"attention.{part}_proj.weight") for part in "qkv"),
        *((f"attn.{part}_bias", f"attention.{part}_proj.bias") for part in "qv"),
        ("attn.proj.", "attention.o_proj."),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        *((f"mlp.{own}", f"mlp.{theirs}") for own, theirs in mlp),
    )
    rows = [(own, theirs, theirs) for own, theirs in rows]
    return Dialect(
        "huggingface",
        "Hugging Face's DINOv3ViT",
        # Their own "embeddings.patch_embeddings" is the convolution itself.
        r"^(?:model\.)?layer\.\d+\.mlp\.gate_proj\."
        if swiglu
        else r"^embeddings\.patch_embeddings\.weight$",
        [
            Name("cls_token", "embeddings.cls_token"),
            Name("storage_tokens", "embeddings.register_tokens"),
            Name("mask_token", "embeddings.mask_token", layout="1,1,D for 1,D"),
            Name("patch_embed.proj.", "embeddings.patch_embeddings."),
            *layer_names("blocks.#.", "layer.#.", rows, "model.layer.#."),
            Name("norm.", "norm."),
        ],
        [
            ("model.layer.#", "blocks.#"),
            ("model.layer.#.attention", "blocks.#.attn"),
            ("model.layer.#.mlp", "blocks.#.mlp"),
            ("model.layer.#.layer_scale1", "blocks.#.ls1"),
            ("model.layer.#.layer_scale2", "blocks.#.ls2"),
        ],
        joined=(
            ("blocks.#.attn.qkv.weight", tuple(f"blocks.#.attn.{part}.weight" for part in "qkv")),
        ),
        empty={"storage_tokens": (1, 0, "embed_dim")},
        fields={"num_classes": 0, "swiglu": swiglu, "mask_token": True, "rope_rounding": "float32"},
        model_type="dinov3_vit",
        architecture="DINOv3ViTModel",
        config={
            **HUGGINGFACE_SIZES,
            "query_bias": "qkv_bias",
            "value_bias": "qkv_bias",
            "layer_norm_eps": "norm_eps",
            "layerscale_value": "init_values",
            "use_gated_mlp": "swiglu",
            "num_register_tokens": "reg_tokens",
            "rope_theta": "rope_theta",
            "pos_embed_shift": "rope_shift",
            "pos_embed_jitter": "rope_jitter",
            "pos_embed_rescale": "rope_rescale",
            "drop_path_rate": "drop_path_rate",
            "attention_dropout": "attn_drop_rate",
        },
        defaults={
            "hidden_act": "gelu",
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
            "query_bias": True,
            "value_bias": True,
            "layer_norm_eps": 1e-5,
            "layerscale_value": 1.0,
            "use_gated_mlp": False,
            "num_register_tokens": 0,
            "rope_theta": 100.0,
            "pos_embed_shift": None,
            "pos_embed_jitter": None,
            "pos_embed_rescale": 2.0,
            "drop_path_rate": 0.0,
            "attention_dropout": 0.0,
        },
        settled={
            "hidden_act": "silu" if swiglu else "gelu",
            "key_bias": False,
            "proj_bias": True,
            "mlp_bias": True,
        },
    )


_ROPE = "rope_embed.periods"


def _rounding_told_by(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How the release's table of periods is rounded.

    Raises:
      ValueError: it is no table of a model here.
    """
    periods = np.asarray(arrays[_ROPE], np.float64)
    if periods.ndim == 1 and periods.size:
        for rounding in ("float32", "bfloat16"):
            wanted = 1 / frequencies(4 * periods.size, 100.0, rounding)
            if np.abs(periods / wanted - 1).max() < _SAME_PERIOD:
                return {"rope_rounding": rounding}
    raise ValueError(f"{_ROPE}: wanted periods from 1 to 100, of float32 or bfloat16")


# bfloat16 differs by up to 4e-3, and two ways to round to float32 by 2e-7.
_SAME_PERIOD = 1e-6


def _release() -> Dialect:
    """The release's own names where they are not those of the arrays here."""
    bias = "blocks.#.attn.qkv.bias"
    return Dialect(
        "release",
        "DINOv3's release",
        rf"^{re.escape(_ROPE)}$",
        [Name(bias, bias), Name(f"{bias}_mask", f"{bias}_mask")],
        split=((bias, tuple((f"blocks.#.attn.{part}_bias", 1) for part in "qkv")),),
        masked=((bias, f"{bias}_mask"),),
        zero=("blocks.#.attn.k_bias",),
        tells=_rounding_told_by,
        beside=("rope_embed", "local_cls_norm"),
        is_written=False,
    )


def _timm(swiglu: bool) -> Dialect:
    """timm's names (1.0.31, its class Eva)."""
    mlp = ("fc1_g.", "fc1_x.", "fc2.") if swiglu else ("fc1.", "fc2.")
    own = ("w1.", "w2.", "w3.") if swiglu else ("fc1.", "fc2.")
    rows = (
        *((name, name) for name in ("norm1.", "norm2.", "attn.")),
        ("ls1.gamma", "gamma_1"),
        ("ls2.gamma", "gamma_2"),
        *((f"mlp.{mine}", f"mlp.{theirs}") for mine, theirs in zip(own, mlp, strict=True)),
    )
    return Dialect(
        "timm",
        "timm's DINOv3",
        ("^reg_token$", r"^blocks\.\d+\.gamma_1$", rf"^blocks\.\d+\.mlp\.{mlp[0]}"),
        [
            Name("cls_token", "cls_token"),
            Name("storage_tokens", "reg_token"),
            *(Name(name, name) for name in ("patch_embed.", "norm.", "head.")),
            *layer_names("blocks.#.", "blocks.#.", rows),
        ],
        fields={"swiglu": swiglu, "mask_token": False, "rope_rounding": "timm"},
        tells=lambda arrays: {"rope_rounding": "timm"},
    )


def _timm_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Those without biases of queries and values, and with "_qkvb" those with them."""
    found = {}
    for theirs, own in (
        ("small", "s16"),
        ("small_plus", "s16plus"),
        ("base", "b16"),
        ("large", "l16"),
        ("huge_plus", "h16plus"),
        ("7b", "7b16"),
    ):
        for suffix in ("", "_qkvb")[: 1 if theirs == "7b" else 2]:
            fields = {"qkv_bias": bool(suffix), "mask_token": False, "global_pool": "avg"}
            fields |= {"rope_rounding": "timm", "rope_rescale": None, "img_size": 256}
            found[f"vit_{theirs}_patch16_dinov3{suffix}"] = f"dinov3_vit{own}", fields
    return found


class Dinov3(AnyGridModel[Dinov3Config]):
    """A Vision Transformer whose queries and keys are turned by their place in the image."""

    design = "dinov3"
    config_class = Dinov3Config
    variants = _variants()
    stem = ("patch_embed", "cls_token", "reg_token")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "storage_tokens"
    token_names = ("cls_token", "storage_tokens", "mask_token")
    dialects = (
        _huggingface(swiglu=True),
        _huggingface(swiglu=False),
        _release(),
        _timm(swiglu=True),
        _timm(swiglu=False),
    )
    timm_names = _timm_names()
    torch_names = ((r"^reg_token$", "storage_tokens"),)

    def __init__(self, config: Dinov3Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim = config.embed_dim
        self.patch_embed = self.build_patches(rngs)
        self.cls_token = self.token(1, 0.02, rngs)
        self.reg_token = self.token(config.reg_tokens, 0.02, rngs) if config.reg_tokens else None
        self.mask_token = (
            Frozen(jnp.zeros((1, embed_dim), self.param_dtype)) if config.mask_token else None
        )
        self.prefix_tokens = ("class", *["register"] * config.reg_tokens)
        self.blocks = self.build_blocks(
            rngs,
            attention=functools.partial(RotaryAttention, k_bias=False),
            mlp=GatedMlp if config.swiglu else Mlp,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            init_values=config.init_values,
        )
        self.norm = layer_norm(embed_dim, config.norm_eps, **self.types, rngs=rngs)
        self.num_features = embed_dim * (2 if config.global_pool == "token_avg" else 1)
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    @property
    def uses_dropout(self) -> bool:
        """Whether anything is drawn in train mode: dropouts, or positions."""
        return super().uses_dropout or self.config.is_augmented

    def patch_positions(self) -> None:
        """None: positions are not learned."""

    def position_table(self) -> None:
        """None: positions are computed for every image."""

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Which tokens and biases there are, and whether the MLP is gated."""
        registers, head = shapes.get("storage_tokens", ()), shapes.get("head.weight", ())
        told: dict[str, Any] = {"mask_token": "mask_token" in shapes}
        told["reg_tokens"] = registers[1] if len(registers) == 3 else 0
        if "blocks.0.norm1.weight" in shapes:
            told["qkv_bias"] = "blocks.0.attn.q_bias" in shapes
            told["swiglu"] = "blocks.0.mlp.w1.weight" in shapes
        width = shapes.get("cls_token", (0,))[-1]
        if len(head) == 2 and head[1] == 2 * width:
            told["global_pool"] = "token_avg"
        return told

    def embed(
        self, images: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None, *tuple[jax.Array, ...]]:
        """Images to the tokens of the first block, the dropouts' key, the table of rotations."""
        self.check_images(images)
        grid = self.token_grid(*images.shape[1:3])
        rope_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        tokens = [self.repeated(self.cls_token, images)]
        if self.reg_token is not None:
            tokens.append(self.repeated(self.reg_token, images))
        tokens.append(self.patch_embed(images.astype(self.dtype)))
        return jnp.concatenate(tokens, axis=1), blocks_key, self._rotations(*grid, rope_key)

    def _rotations(self, rows: int, columns: int, key: jax.Array | None) -> jax.Array:
        config, coordinates = self.config, jnp.asarray(patch_coordinates(rows, columns))
        if key is not None:
            coordinates = augmented(
                coordinates,
                key,
                shift=config.rope_shift,
                jitter=config.rope_jitter,
                rescale=config.rope_rescale,
            )
        head_dim = config.embed_dim // config.num_heads
        return rotations(
            coordinates,
            frequencies(head_dim, config.rope_theta, config.rope_rounding),
            self.dtype,
            config.rope_rounding,
        )
