"""Swin Transformer: attention inside of shifted windows, in stages of fewer and wider tokens.

Liu et al. 2021 (2103.14030); microsoft/Swin-Transformer (models/swin_transformer.py), timm 1.0.31
(models/swin_transformer.py), transformers 5.24 (models/swin).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.layers.window_attention import WindowAttention
from vit_jax.models.adaptable import BiasTable
from vit_jax.models.base import Variant
from vit_jax.models.dialect import Dialect, Name, layer_names
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vit_jax.models.swin_base import SwinConfig, SwinModel

_STAGES = range(8)  # more than any published model has


def huggingface(
    name: str,
    architecture: str,
    told_by: str,
    attention: Sequence[tuple[str, ...]],
    joined: tuple[str, tuple[str, ...]],
    **facts: Any,
) -> Dialect:
    """transformers' names of Swin and Swin V2, with a head or without.

    Args:
      name: "swin" or "swinv2".
      architecture: their class.
      told_by, joined: see `Dialect`.
      attention: the names inside of an attention, theirs after "attention.".
      facts: the rest of the dialect; `config` and `defaults` are added to those of both.
    """
    has_head = architecture.endswith("ForImageClassification")
    prefix = f"{name}." if has_head else ""
    stages, block = f"{prefix}encoder.layers.", "encoder.layers.#.blocks.#"
    rows = (
        ("norm1.", "layernorm_before.", "layernorm_before."),
        ("norm2.", "layernorm_after.", "layernorm_after."),
        *(
            (f"attn.{own}", *(f"attention.{their}" for their in theirs))
            for own, *theirs in attention
        ),
        ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
        ("mlp.fc1.", "intermediate.dense.", "mlp.fc1."),
        ("mlp.fc2.", "output.dense.", "mlp.fc2."),
    )
    merging = "{}.downsample."
    return Dialect(
        "huggingface",
        f"Hugging Face's {architecture}",
        told_by,
        [
            Name("patch_embed.proj.", f"{prefix}embeddings.patch_embeddings.projection."),
            Name("patch_embed.norm.", f"{prefix}embeddings.norm."),
            *layer_names("layers.#.blocks.#.", f"{prefix}{block}.", rows, f"{block}."),
            *(
                Name(f"layers.{merging.format(i + 1)}", f"{stages}{merging.format(i)}")
                for i in _STAGES
            ),
            Name("norm.", f"{prefix}layernorm."),
            Name("head.fc.", "classifier."),
        ],
        [
            (block, "layers.#.blocks.#"),
            (f"{block}.attention", "layers.#.blocks.#.attn"),
            (f"{block}.mlp", "layers.#.blocks.#.mlp"),
            *((f"encoder.layers.{i}.downsample", f"layers.{i + 1}.downsample") for i in _STAGES),
        ],
        prefixes=(f"{name}.",),
        joined=(joined,),
        positions=rf"(?:{name}\.)?embeddings\.norm\.weight",
        model_type=name,
        architecture=architecture,
        scalars=("window_size",),
        **{
            **facts,
            "fields": {**facts.get("fields", {}), **({} if has_head else {"num_classes": 0})},
            "config": {**_CONFIG, **facts.get("config", {})},
            "defaults": {**_DEFAULTS, **facts.get("defaults", {})},
        },
        settled={"hidden_act": "gelu", "use_absolute_embeddings": False},
    )


_CONFIG = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "layer_norm_eps": "norm_eps",
    "drop_path_rate": "drop_path_rate",
}
_DEFAULTS = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "layer_norm_eps": 1e-5,
    "drop_path_rate": 0.1,
}


def release() -> Dialect:
    """The release's names: mergings end a stage, where they start the next one here."""
    return Dialect(
        "microsoft",
        "the release's Swin",
        r"^layers\.0\.downsample\.reduction\.weight$",
        [
            *(Name(f"layers.{i + 1}.downsample.", f"layers.{i}.downsample.") for i in _STAGES),
            Name("head.fc.", "head."),
        ],
        is_written=False,
    )


def swin_sizes() -> dict[str, dict[str, Any]]:
    """The fields of the sizes that both Swins have."""
    found = {}
    for name, embed_dim, blocks, heads in (
        ("tiny", 96, 6, 3),
        ("small", 96, 18, 3),
        ("base", 128, 18, 4),
        ("large", 192, 18, 6),
    ):
        num_heads = tuple(heads * 2**stage for stage in range(4))
        depths = (2, 2, blocks, 2)
        found[name] = {"embed_dim": embed_dim, "depths": depths, "num_heads": num_heads}
    return found


def swin_variant(size: str, img_size: int, window_size: int, **fields: Any) -> Variant:
    """A size at a resolution, with timm's preprocessing: all of an image from 384 pixels on."""
    crop = 1.0 if img_size >= 384 else 0.9
    own = {**swin_sizes()[size], "img_size": img_size, "window_size": window_size, **fields}
    return Variant(own, Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=crop))


def _variants() -> dict[str, Variant]:
    names = {f"swin_{size}_patch4_window7_224": (size, 224, 7) for size in swin_sizes()}
    names |= {f"swin_{size}_patch4_window12_384": (size, 384, 12) for size in ("base", "large")}
    return {name: swin_variant(*facts) for name, facts in names.items()}


_PARTS = tuple(f"layers.#.blocks.#.attn.{part}." for part in "qkv")
_HUGGINGFACE = functools.partial(
    huggingface,
    "swin",
    told_by=r"encoder\.layers\.\d+\.blocks\.\d+\.layernorm_before\.weight$",
    attention=(
        ("q.", "self.query.", "q_proj."),
        ("k.", "self.key.", "k_proj."),
        ("v.", "self.value.", "v_proj."),
        (
            "relative_position_bias_table",
            "self.relative_position_bias_table",
            "relative_position_bias.relative_position_bias_table",
        ),
    ),
    joined=("layers.#.blocks.#.attn.qkv.", _PARTS),
    fields={"window_rule": "swin"},
)


class Swin(SwinModel[SwinConfig]):
    """Swin Transformer: norms before, a learned table of biases in every block."""

    design = "swin"
    config_class = SwinConfig
    variants = _variants()
    norms_after = False
    token_names = ("relative_position_bias_table",)
    dialects = (
        _HUGGINGFACE(architecture="SwinModel"),
        _HUGGINGFACE(architecture="SwinForImageClassification"),
        release(),
    )

    def attention_of(self, stage: int) -> Callable[..., WindowAttention]:
        """What builds the attention of a stage's blocks."""
        del stage
        return WindowAttention

    def bias_tables(self) -> list[BiasTable]:
        """The table of each block."""
        return [
            BiasTable(
                f"layers.{stage}.blocks.{number}.attn.relative_position_bias_table",
                block.windowing.window,
                self.config.bias_resize,
            )
            for stage, number, block in self.blocks()
        ]
