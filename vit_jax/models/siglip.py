"""The image tower of SigLIP, and of SigLIP 2 at a fixed size: no class token, pooling by attention.

Zhai et al. 2023 (2303.15343), Tschannen et al. 2025 (2502.14786); google-research/big_vision
(models/vit.py), transformers 5.24 (models/siglip).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from vit_jax.layers.attention_pool import AttentionPool
from vit_jax.layers.checks import check_bool, check_choice, check_number
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.mlp import ACTIVATIONS, Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.variables import freeze
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, checked
from vit_jax.models.dialect import CLIP_LAYER, QKV, Dialect, Name, layer_names
from vit_jax.models.spec import HALF_MEAN, HALF_STD, Preprocessing

POOLS = ("map", "avg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiglipConfig(PatchesConfig):
    """The fields of `Siglip`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the position table, and what data is prepared for; images of any other
    whole number of patches are taken too. Pixels after the last whole patch of `img_size` are not
    looked at, as in the sources.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      activation: of the MLP: "gelu_tanh" in the release and in transformers.
      attn_pool: whether there is a pooling by attention, see `layers.attention_pool`.
      global_pool: what the head sees: "map", the pooling by attention, or "avg", the mean of the
        tokens; the former is then kept, but not used: transformers' classifier.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "bicubic" as transformers.
    """

    num_classes: int = 0
    mlp_ratio: float = checked(4.0, check_number, above=0)
    activation: str = checked("gelu_tanh", check_choice, choices=tuple(ACTIVATIONS))
    attn_pool: bool = checked(True, check_bool)
    global_pool: str = checked("map", check_choice, choices=POOLS)
    position_resize: str = checked("bicubic", check_choice, free=True, choices=METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.global_pool == "map" and not self.attn_pool:
            raise ValueError("global_pool='map' needs attn_pool=True, got False; 'avg' does not")


# embed_dim, depth, num_heads, mlp_ratio
SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 4304 / 1152),
    "giant_opt": (1536, 40, 16, 4.0),
}


def size_fields(size: str, patch_size: int) -> dict[str, Any]:
    """The fields of a size of the release."""
    names = ("embed_dim", "depth", "num_heads", "mlp_ratio")
    return {**dict(zip(names, SIZES[size], strict=True)), "patch_size": patch_size}


def _variants() -> dict[str, Variant]:
    """Hugging Face's names of the release's fixed sizes."""
    found = {}
    for family, interpolation, sizes in (
        (
            "siglip",
            "bicubic",
            (
                ("base", 16, (224, 256, 384, 512)),
                ("large", 16, (256, 384)),
                ("so400m", 14, (224, 384)),
                ("so400m", 16, (256,)),
            ),
        ),
        (
            "siglip2",
            "bilinear",
            (
                ("base", 32, (256,)),
                ("base", 16, (224, 256, 384, 512)),
                ("large", 16, (256, 384, 512)),
                ("so400m", 14, (224, 384)),
                ("so400m", 16, (256, 384, 512)),
                ("giant_opt", 16, (256, 384)),
            ),
        ),
    ):
        preprocessing = Preprocessing(HALF_MEAN, HALF_STD, 1.0, interpolation, "squash")
        for size, patch_size, img_sizes in sizes:
            for img_size in img_sizes:
                fields = {**size_fields(size, patch_size), "img_size": img_size}
                name = f"{family}_{size}_patch{patch_size}_{img_size}"
                found[name] = Variant(fields, preprocessing)
    return found


def huggingface(architecture: str, **facts: Any) -> Dialect:
    """transformers' names in files, of either SigLIP."""
    tower, layer = "vision_model.", "encoder.layers.#"
    return Dialect(
        "huggingface",
        f"Hugging Face's {architecture}",
        r"^(?:vision_model\.)?post_layernorm\.weight$",
        [
            Name(
                "pos_embed", f"{tower}embeddings.position_embedding.weight", layout="N,D for 1,N,D"
            ),
            Name("patch_embed.proj.", f"{tower}embeddings.patch_embedding."),
            *layer_names("blocks.#.", f"{tower}{layer}.", CLIP_LAYER),
            Name("norm.", f"{tower}post_layernorm."),
            Name("attn_pool.latent", f"{tower}head.probe"),
            *(
                Name(f"attn_pool.in_proj.{leaf}", f"{tower}head.attention.in_proj_{leaf}")
                for leaf in ("weight", "bias")
            ),
            Name("attn_pool.proj.", f"{tower}head.attention.out_proj."),
            Name("attn_pool.norm.", f"{tower}head.layernorm."),
            Name("attn_pool.mlp.", f"{tower}head.mlp."),
            Name("head.", "classifier."),
        ],
        [
            (layer, "blocks.#"),
            (f"{layer}.self_attn", "blocks.#.attn"),
            (f"{layer}.mlp", "blocks.#.mlp"),
            ("head", "attn_pool"),
            ("head.mlp", "attn_pool.mlp"),
        ],
        prefixes=(tower,),
        joined=QKV,
        split=(("attn_pool.in_proj.", (("attn_pool.q.", 1), ("attn_pool.kv.", 2))),),
        positions=r"vision_model\.embeddings\.position_embedding\.weight",
        beside=("text_model", "logit_scale", "logit_bias"),
        architecture=architecture,
        values={"hidden_act": {"gelu_pytorch_tanh": "gelu_tanh"}},
        **facts,
    )


def google() -> Dialect:
    """big_vision's names in the release's files, of which the text tower is no part."""
    tower, layer, pool = "params/img/", "Transformer/encoderblock_#/", "MAPHead_0/"
    heads = [(f"{part[0]}.", f"{part}/") for part in ("query", "key", "value")]
    attention, out = "MultiHeadDotProductAttention_0/", [("proj.", "out/")]
    rows = (("norm1.", "LayerNorm_0/"), ("norm2.", "LayerNorm_1/"))
    mlp = (("mlp.fc1.", "MlpBlock_0/Dense_0/"), ("mlp.fc2.", "MlpBlock_0/Dense_1/"))
    found = [
        Name("patch_embed.proj.", f"{tower}embedding/", layout="conv"),
        Name("pos_embed", f"{tower}pos_embedding"),
        *layer_names("blocks.#.", tower + layer, (*rows, *mlp)),
        Name("norm.", f"{tower}Transformer/encoder_norm/"),
        Name("attn_pool.latent", f"{tower}{pool}probe"),
        *layer_names("attn_pool.", tower + pool, (("norm.", "LayerNorm_0/"), *mlp)),
        Name("head.", f"{tower}head/"),
    ]
    for own, theirs in (("blocks.#.attn.", layer), ("attn_pool.", pool)):
        place = f"{tower}{theirs}{attention}"
        found += layer_names(own, place, heads, layout="heads out")
        found += layer_names(own, place, out, layout="heads in")
    return Dialect(
        "google",
        "big_vision's SigLIP",
        r"^(?:params/)?img/embedding/kernel$",
        found,
        prefixes=(tower, "params/", "img/"),
        joined=(*QKV, ("attn_pool.kv.", ("attn_pool.k.", "attn_pool.v."))),
        is_flax=True,
        stack="Transformer/encoderblock",
        beside=("txt", "t", "b"),
        fields={"activation": "gelu_tanh", "norm_eps": 1e-6},
    )


CONFIG = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_ratio",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "attention_dropout": "attn_drop_rate",
    "vision_use_head": "attn_pool",
}
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "vision_use_head": True,
}


def dialects(
    prefix: str, model_type: str, config: Mapping[str, str], defaults: Mapping[str, Any]
) -> tuple[Dialect, ...]:
    """Of the tower alone, with its pooling or without; of the whole model; of the classifier."""
    facts: dict[str, Any] = {"config": config, "defaults": defaults}
    tower = {**facts, "model_type": f"{model_type}_vision_model"}
    whole = {**facts, "model_type": model_type, "section": "vision_config"}
    pooled = {"num_classes": 0, "global_pool": "map", "attn_pool": True}
    bare = {"num_classes": 0, "global_pool": "avg", "attn_pool": False}
    return (
        huggingface(f"{prefix}VisionModel", fields=pooled, **tower),
        huggingface(f"{prefix}VisionModel", fields=bare, **tower),
        huggingface(f"{prefix}Model", fields=pooled, is_written=False, **whole),
        huggingface(f"{prefix}Model", fields=bare, is_written=False, **whole),
        huggingface(f"{prefix}ForImageClassification", fields={"global_pool": "avg"}, **whole),
    )


def _timm_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Those that pool by attention, and with "gap" those without it. Some have the exact GELU."""
    found, variants = {}, _variants()
    for size, patch_size, sides, activation in (
        ("base", 32, (256,), "gelu_tanh"),
        ("base", 16, (224, 256, 384, 512), "gelu"),
        ("large", 16, (256, 384), "gelu"),
        ("large", 16, (512,), "gelu_tanh"),
        ("so400m", 14, (224, 378, 384), "gelu"),
        ("so400m", 16, (256, 384, 512), "gelu_tanh"),
        ("giant_opt", 16, (256, 384), "gelu_tanh"),
    ):
        for side in sides:
            own = f"{size}_patch{patch_size}_{384 if side == 378 else side}"
            name = f"siglip_{own}" if f"siglip_{own}" in variants else f"siglip2_{own}"
            fields = {"activation": activation, "img_size": side, "position_resize": "timm"}
            theirs = f"vit_{size.replace('_', '')}_patch{patch_size}_siglip"
            found[f"{theirs}_{side}"] = name, fields
            bare = {"global_pool": "avg", "attn_pool": False}
            found[f"{theirs}_gap_{side}"] = name, {**fields, **bare}
    return found


Config = TypeVar("Config", bound=SiglipConfig)


class Siglip(AnyGridModel[Config]):
    """SigLIP's image tower: `model(images)` is the image's embedding, before it is scaled to 1."""

    design = "siglip"
    config_class = SiglipConfig
    variants = _variants()
    stem = ("patch_embed", "pos_embed")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "latent")
    prefix_tokens = ()
    position_rows = 0
    leaves_pixels = True
    dialects = (
        *dialects(
            "Siglip",
            "siglip",
            {**CONFIG, "image_size": "img_size"},
            {**DEFAULTS, "image_size": 224},
        ),
        google(),
    )
    timm_names = _timm_names()

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        activation = ACTIVATIONS[config.activation]
        self.patch_embed = self.build_patches(rngs)
        self.pos_embed = self.token(math.prod(self.table_grid), embed_dim**-0.5, rngs)
        self.blocks = self.build_blocks(
            rngs,
            mlp=functools.partial(Mlp, activation=activation),
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            init_values=None,
        )
        self.norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.attn_pool = (
            AttentionPool(
                embed_dim,
                config.num_heads,
                int(embed_dim * config.mlp_ratio),
                norm_eps=config.norm_eps,
                activation=activation,
                kernel_init=trunc_normal(0.02),
                bias_init=zeros,
                **types,
                rngs=rngs,
            )
            if config.attn_pool
            else None
        )
        if self.attn_pool is not None and config.global_pool == "avg":
            freeze(self.attn_pool)
        self.num_features = embed_dim
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Whether there is a pooling by attention."""
        is_there = "attn_pool.latent" in shapes
        return {"attn_pool": is_there, **({} if is_there else {"global_pool": "avg"})}

    def embed(
        self, images: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None, *tuple[jax.Array, ...]]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        rows, columns = self.token_grid(*images.shape[1:3])
        patches = self.patch_embed(self.whole_patches(images))
        return patches + self.positions(rows, columns), self.dropout_key(rngs)

    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens (B, N, D) to the image's embedding: (B, D)."""
        if self.config.global_pool == "map" and self.attn_pool is not None:
            return self.attn_pool(tokens)
        return tokens.mean(axis=1)
