"""The image tower of CLIP: a norm before the blocks, QuickGELU, a projection to the texts' space.

Radford et al. 2021 (2103.00020); openai/CLIP (clip/model.py), transformers 5.24 (models/clip),
OpenCLIP's towers with the exact GELU.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.layers.checks import check_choice, check_int, check_number
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.initializers import normal
from vit_jax.layers.mlp import ACTIVATIONS, Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.variables import freeze
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, Size, checked, optional
from vit_jax.models.dialect import CLIP_LAYER, HUGGINGFACE_SIZES, QKV, Dialect, Name, layer_names
from vit_jax.models.spec import Preprocessing

POOLS = ("token", "avg")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(PatchesConfig):
    """The fields of `Clip`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the position table, and what data is prepared for; images of any other
    whole number of patches are taken too.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      activation: of the MLP: "quick_gelu" (OpenAI's weights), or "gelu" (most of OpenCLIP's).
      projection_dim: width of the image's embedding, which a Linear without bias makes of the class
        token; None: the token itself.
      global_pool: what the head sees: "token", the normed class token, or "avg", the mean of the
        patches before the last norm, which is then not used: transformers' classifier.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "bicubic" as transformers, "timm" (antialiased) as OpenCLIP.
    """

    patch_size: Size = 32
    num_classes: int = 0
    norm_eps: float = 1e-5
    mlp_ratio: float = checked(4.0, check_number, above=0)
    activation: str = checked("quick_gelu", check_choice, choices=tuple(ACTIVATIONS))
    projection_dim: int | None = optional(None, check_int, least=1)
    global_pool: str = checked("token", check_choice, choices=POOLS)
    position_resize: str = checked("bicubic", check_choice, free=True, choices=METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.global_pool == "avg" and self.projection_dim is not None:
            raise ValueError(
                "projection_dim is of the class token: global_pool='avg' needs None, got "
                f"{self.projection_dim}"
            )


def _variants() -> dict[str, Variant]:
    """Those of OpenAI under Hugging Face's names; with "_gelu" those of LAION."""
    found = {}
    for name, embed_dim, depth, num_heads, mlp_ratio, patch_size, projection_dim in (
        ("base_patch32", 768, 12, 12, 4.0, 32, 512),
        ("base_patch16", 768, 12, 12, 4.0, 16, 512),
        ("large_patch14", 1024, 24, 16, 4.0, 14, 768),
        ("huge_patch14", 1280, 32, 16, 4.0, 14, 1024),
        ("giant_patch14", 1408, 40, 16, 6144 / 1408, 14, 1024),
        ("bigg_patch14", 1664, 48, 16, 8192 / 1664, 14, 1280),
    ):
        fields = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        fields |= {"mlp_ratio": mlp_ratio, "patch_size": patch_size}
        fields |= {"projection_dim": projection_dim}
        preprocessing = Preprocessing(_MEAN, _STD)
        if embed_dim <= 1024:
            found[f"clip_vit_{name}"] = Variant(fields, preprocessing)
        if name == "large_patch14":
            found[f"clip_vit_{name}_336"] = Variant({**fields, "img_size": 336}, preprocessing)
        found[f"clip_vit_{name}_gelu"] = Variant({**fields, "activation": "gelu"}, preprocessing)
    return found


def _huggingface(architecture: str, **facts: Any) -> Dialect:
    """transformers' names in files, "pre_layrnorm" as they spell it."""
    tower, layer = "vision_model.", "encoder.layers.#"
    return Dialect(
        "huggingface",
        f"Hugging Face's {architecture}",
        r"(?:^|\.)pre_layrnorm\.weight$",
        [
            Name("cls_token", f"{tower}embeddings.class_embedding", layout="D for 1,1,D"),
            Name(
                "pos_embed", f"{tower}embeddings.position_embedding.weight", layout="N,D for 1,N,D"
            ),
            Name("patch_embed.proj.", f"{tower}embeddings.patch_embedding."),
            Name("norm_pre.", f"{tower}pre_layrnorm."),
            *layer_names("blocks.#.", f"{tower}{layer}.", CLIP_LAYER),
            Name("norm.", f"{tower}post_layernorm."),
            Name("projection.", "visual_projection."),
            Name("head.", "classifier."),
        ],
        [
            (layer, "blocks.#"),
            (f"{layer}.self_attn", "blocks.#.attn"),
            (f"{layer}.mlp", "blocks.#.mlp"),
            ("post_layernorm", ""),  # of the class token alone, here of all
        ],
        prefixes=(tower,),
        joined=QKV,
        positions=r"vision_model\.embeddings\.position_embedding\.weight",
        beside=("text_model", "text_projection", "logit_scale"),
        architecture=architecture,
        **{"config": _CONFIG, "defaults": _DEFAULTS, **facts},
    )


def _openai() -> Dialect:
    """The names of OpenAI's archives and of OpenCLIP, whose other tower is the texts'."""
    tower, layer = "visual.", "visual.transformer.resblocks.#."
    rows = (
        ("norm1.", "ln_1."),
        *((f"attn.qkv.{leaf}", f"attn.in_proj_{leaf}") for leaf in ("weight", "bias")),
        ("attn.proj.", "attn.out_proj."),
        ("norm2.", "ln_2."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    )
    texts = ("transformer", "token_embedding", "positional_embedding", "ln_final")
    return Dialect(
        "openai",
        "OpenAI's CLIP",
        r"^visual\.transformer\.resblocks\.\d+\.attn\.in_proj_weight$",
        [
            Name("cls_token", f"{tower}class_embedding", layout="D for 1,1,D"),
            Name("pos_embed", f"{tower}positional_embedding", layout="N,D for 1,N,D"),
            Name("patch_embed.proj.", f"{tower}conv1."),
            Name("norm_pre.", f"{tower}ln_pre."),
            *layer_names("blocks.#.", layer, rows),
            Name("norm.", f"{tower}ln_post."),
            Name("projection.weight", f"{tower}proj", layout="D,E for E,D"),
        ],
        [
            (layer.removesuffix("."), "blocks.#"),
            (f"{layer}attn", "blocks.#.attn"),
            (f"{layer}mlp", "blocks.#.mlp"),
        ],
        beside=(*texts, "text_projection", "logit_scale", "logit_bias", *_ARCHIVE),
        is_written=False,
    )


# Sizes that OpenAI's archives hold as arrays.
_ARCHIVE = ("input_resolution", "context_length", "vocab_size")
_CONFIG = {
    **HUGGINGFACE_SIZES,
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "attention_dropout": "attn_drop_rate",
}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
_TOWER = {"num_classes": 0, "global_pool": "token"}
_CLASSIFIER = {"projection_dim": None, "global_pool": "avg"}
_DIALECTS = (
    _huggingface(
        "CLIPVisionModel", model_type="clip_vision_model", fields={**_TOWER, "projection_dim": None}
    ),
    _huggingface(
        "CLIPVisionModelWithProjection",
        model_type="clip_vision_model",
        config={**_CONFIG, "projection_dim": "projection_dim"},
        defaults={**_DEFAULTS, "projection_dim": 512},
        fields=_TOWER,
    ),
    # The width of its projection stands elsewhere: the weights tell it.
    _huggingface(
        "CLIPModel", model_type="clip", section="vision_config", is_written=False, fields=_TOWER
    ),
    _huggingface(
        "CLIPForImageClassification",
        model_type="clip",
        section="vision_config",
        fields=_CLASSIFIER,
    ),
    _openai(),
)


def _timm_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Its projection is their head, and ours then."""
    found = {}
    for size, own, plain, quick in (
        ("base_patch32", "base_patch32", (224, 256, 384, 448), (224,)),
        ("base_patch16", "base_patch16", (224, 384), (224,)),
        ("large_patch14", "large_patch14", (224, 336), (224, 336)),
        ("huge_patch14", "huge_patch14", (224, 336, 378), (224, 378)),
        ("giant_patch14", "giant_patch14", (224,), ()),
        ("gigantic_patch14", "bigg_patch14", (224, 378), (224,)),
    ):
        for infix, activation, sides in (
            ("clip", "gelu", plain),
            ("clip_quickgelu", "quick_gelu", quick),
        ):
            fields = {"activation": activation, "projection_dim": None, "position_resize": "timm"}
            for side in sides:
                name = f"vit_{size}_{infix}_{side}"
                found[name] = f"clip_vit_{own}_gelu", {**fields, "img_size": side}
    return found


class Clip(AnyGridModel[ClipConfig]):
    """CLIP's image tower: `model(images)` is the image's embedding, before it is scaled to 1."""

    design = "clip"
    config_class = ClipConfig
    variants = _variants()
    stem = ("patch_embed", "cls_token", "pos_embed", "norm_pre")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token")
    leaves_pixels = True
    dialects = _DIALECTS
    timm_names = _timm_names()

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_embed = self.build_patches(rngs, use_bias=False)
        self.cls_token = self.token(1, embed_dim**-0.5, rngs)
        self.pos_embed = self.token(self.patch_embed.num_patches + 1, embed_dim**-0.5, rngs)
        self.norm_pre = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.blocks = self.build_blocks(
            rngs,
            mlp=functools.partial(Mlp, activation=ACTIVATIONS[config.activation]),
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            init_values=None,
        )
        self.norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        if config.global_pool == "avg":
            freeze(self.norm)
        self.projection = (
            nnx.Linear(
                embed_dim,
                config.projection_dim,
                use_bias=False,
                kernel_init=normal(embed_dim**-0.5),
                **types,
                rngs=rngs,
            )
            if config.projection_dim
            else None
        )
        self.num_features = config.projection_dim or embed_dim
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The width of the projection; None where there is none."""
        projection = shapes.get("projection.weight", ())
        return {"projection_dim": projection[0] if len(projection) == 2 else None}

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        rows, columns = self.token_grid(*images.shape[1:3])
        patches = self.patch_embed(self.whole_patches(images))
        tokens = jnp.concatenate([self.repeated(self.cls_token, images), patches], axis=1)
        return self.norm_pre(tokens + self.positions(rows, columns)), self.dropout_key(rngs)

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The last norm; none where the head sees the mean of the patches."""
        return tokens if self.config.global_pool == "avg" else super().last_norm(tokens)

    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N, D) to the image's embedding: (B, features)."""
        x = super().pooled(tokens)
        return x if self.projection is None else self.projection(x)
