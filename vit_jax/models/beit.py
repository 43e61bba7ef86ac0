"""BEiT and BEiT v2: relative position biases, LayerScale, no bias of the keys, mean pooling.

Bao et al. 2021 (2106.08254), Peng et al. 2022 (2208.06366); microsoft/unilm (beit, beit2), timm
1.0.31 (models/beit.py), transformers 5.24 (models/beit). Of a model for masked pretraining the
encoder is read, with its shared biases; what predicts visual tokens is left out.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.layers.checks import check_bool, check_choice, check_number
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.relative_bias import (
    BIAS_METHODS,
    CLASS_ROWS,
    BiasedAttention,
    RelativePositionBias,
    bias_matrices,
)
from vit_jax.layers.stack import stack_layers
from vit_jax.layers.variables import Frozen
from vit_jax.models.adaptable import BiasTable, PositionTable
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, checked, optional
from vit_jax.models.dialect import (
    HUGGINGFACE_MODULES,
    HUGGINGFACE_SIZES,
    QKV,
    Dialect,
    Name,
    layer_names,
)
from vit_jax.models.spec import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocessing

POOLS = ("avg", "token")
_TABLE = "relative_position_bias_table"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeitConfig(PatchesConfig):
    """The fields of `Beit`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the tables, and what data is prepared for; images of any whole number of
    patches are taken.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias: of the queries and the values; the keys have none.
      init_values: initial LayerScale; None: none.
      use_abs_pos_emb: whether there are learned positions.
      use_rel_pos_bias: whether each block has a table of relative position biases.
      use_shared_rel_pos_bias: whether all blocks share one, beside their own if they have them.
      mask_token: whether there is one, which stands for hidden patches in pretraining: not used
        here, and never trained.
      global_pool: what the head sees: "avg", the mean of the patches, then `fc_norm`, or "token",
        the class token after `norm`. A model has one of the two norms.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "timm", or "bicubic" as transformers.
      bias_resize: how biases do, see `layers.relative_bias`: "geometric" as timm,
        "geometric_cubic" as the release, "bilinear" as transformers.
    """

    mlp_ratio: float = checked(4.0, check_number, above=0)
    qkv_bias: bool = checked(True, check_bool)
    init_values: float | None = optional(0.1, check_number, free=True)
    use_abs_pos_emb: bool = checked(False, check_bool)
    use_rel_pos_bias: bool = checked(True, check_bool)
    use_shared_rel_pos_bias: bool = checked(False, check_bool)
    mask_token: bool = checked(False, check_bool)
    global_pool: str = checked("avg", check_choice, choices=POOLS)
    position_resize: str = checked("timm", check_choice, free=True, choices=METHODS)
    bias_resize: str = checked("geometric", check_choice, free=True, choices=BIAS_METHODS)


def _variants() -> dict[str, Variant]:
    """timm's names."""
    found = {}
    half, imagenet = (HALF_MEAN, HALF_STD), (IMAGENET_MEAN, IMAGENET_STD)
    base = {"embed_dim": 768, "depth": 12, "num_heads": 12}
    large = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-5}
    for name, sizes, img_sizes, statistics, crop_fraction in (
        ("beit_base", base, (224, 384), half, 0.9),
        ("beit_large", large, (224, 384, 512), half, 0.9),
        ("beitv2_base", {**base, "init_values": 1e-5}, (224,), imagenet, 0.9),
        ("beitv2_large", large, (224,), imagenet, 0.95),
    ):
        for img_size in img_sizes:
            preprocessing = Preprocessing(*statistics, crop_fraction if img_size == 224 else 1.0)
            fields = {**sizes, "img_size": img_size}
            found[f"{name}_patch16_{img_size}"] = Variant(fields, preprocessing)
    return found


_CONFIG = {
    **HUGGINGFACE_SIZES,
    "layer_norm_eps": "norm_eps",
    "layer_scale_init_value": "init_values",
    "use_absolute_position_embeddings": "use_abs_pos_emb",
    "use_relative_position_bias": "use_rel_pos_bias",
    "use_shared_relative_position_bias": "use_shared_rel_pos_bias",
    "use_mask_token": "mask_token",
    "use_mean_pooling": "global_pool",
    "attention_probs_dropout_prob": "attn_drop_rate",
    "drop_path_rate": "drop_path_rate",
}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "layer_norm_eps": 1e-12,
    "layer_scale_init_value": 0.1,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.1,
}


def _huggingface(architecture: str, *, is_written: bool = True, **fields: Any) -> Dialect:
    """transformers 4's names, which 5 writes to files too; then 5's own in memory."""
    prefix = "" if architecture == "BeitModel" else "beit."
    attention, own_table = "attention.attention.", f"relative_position_bias.{_TABLE}"
    rows = (
        ("norm1.", "layernorm_before.", "layernorm_before."),
        ("norm2.", "layernorm_after.", "layernorm_after."),
        *(
            (
                f"attn.{part[0]}.weight",
                f"{attention}{part}.weight",
                f"attention.{part[0]}_proj.weight",
            )
            for part in ("query", "key", "value")
        ),
        *(
            (f"attn.{part[0]}_bias", f"{attention}{part}.bias", f"attention.{part[0]}_proj.bias")
            for part in ("query", "value")
        ),
        (f"attn.{_TABLE}", f"{attention}{own_table}", own_table),
        ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
        ("gamma_1", "lambda_1", "lambda_1"),
        ("gamma_2", "lambda_2", "lambda_2"),
        ("mlp.fc1.", "intermediate.dense.", "mlp.fc1."),
        ("mlp.fc2.", "output.dense.", "mlp.fc2."),
    )
    return Dialect(
        "huggingface",
        f"Hugging Face's {architecture}",
        r"^beit\.|\.lambda_1$|(?:^|\.)relative_position_bias\.|^pooler\.layernorm\.",
        [
            *(
                Name(own, f"{prefix}embeddings.{theirs}")
                for own, theirs in (
                    ("cls_token", "cls_token"),
                    ("mask_token", "mask_token"),
                    ("pos_embed", "position_embeddings"),
                    ("patch_embed.proj.", "patch_embeddings.projection."),
                )
            ),
            *layer_names("blocks.#.", f"{prefix}encoder.layer.#.", rows, "layers.#."),
            Name(
                f"rel_pos_bias.{_TABLE}",
                f"{prefix}encoder.{own_table}",
                (f"shared_position_bias.{_TABLE}",),
            ),
            Name("norm.", f"{prefix}layernorm."),
            Name("fc_norm.", f"{prefix}pooler.layernorm."),
            Name("head.", "classifier."),
        ],
        HUGGINGFACE_MODULES,
        prefixes=("beit.",),
        joined=((f"{QKV[0][0]}weight", tuple(f"{part}weight" for part in QKV[0][1])),),
        positions=r"(?:beit\.)?embeddings\.position_embeddings",
        beside=("lm_head",),
        is_written=is_written,
        fields={
            "position_resize": "bicubic",
            "bias_resize": "bilinear",
            "qkv_bias": True,
            **fields,
        },
        model_type="beit",
        architecture=architecture,
        config=_CONFIG,
        values={
            "use_mean_pooling": {True: "avg", False: "token"},
            "layer_scale_init_value": {0.0: None},
        },
        defaults=_DEFAULTS,
        settled={"hidden_act": "gelu"},
    )


class Beit(AnyGridModel[BeitConfig]):
    """A Vision Transformer whose attention adds a learned bias for each offset of two patches."""

    design = "beit"
    config_class = BeitConfig
    variants = _variants()
    stem = ("patch_embed", "cls_token", "pos_embed", "rel_pos_bias")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "blocks.0.gamma_1"
    token_names = ("pos_embed", "cls_token", "mask_token")
    head_std = 0.001 * 0.02
    dialects = (
        _huggingface("BeitModel", num_classes=0),
        _huggingface(
            "BeitForMaskedImageModeling", is_written=False, num_classes=0, global_pool="token"
        ),
        _huggingface("BeitForImageClassification"),
    )
    torch_names = (
        (r"\.ls([12])\.gamma$", r".gamma_\1"),
        (r"\.attn\.bias\.relative", ".attn.relative"),
    )

    def __init__(self, config: BeitConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_embed = self.build_patches(rngs)
        self.cls_token = self.token(1, 0.02, rngs)
        self.mask_token = (
            Frozen(jnp.zeros((1, 1, embed_dim), self.param_dtype)) if config.mask_token else None
        )
        if config.use_abs_pos_emb:
            self.pos_embed = self.token(self.patch_embed.num_patches + 1, 0.02, rngs)
        self.pos_drop = Dropout(config.drop_rate)
        self.rel_pos_bias = (
            RelativePositionBias(self.table_grid, config.num_heads, **types)
            if config.use_shared_rel_pos_bias
            else None
        )
        self.blocks = self._blocks(rngs)
        norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        pools_patches = config.global_pool == "avg"
        self.norm, self.fc_norm = (None, norm) if pools_patches else (norm, None)
        self.num_features = embed_dim
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    def _blocks(self, rngs: nnx.Rngs) -> Any:
        """The blocks; what they add starts the smaller, the later they stand."""
        config = self.config
        grid = self.table_grid if config.use_rel_pos_bias else None
        blocks = self.new_blocks(
            rngs,
            attention=functools.partial(BiasedAttention, grid=grid),
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            init_values=config.init_values,
        )
        for number, block in enumerate(blocks, start=1):
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.kernel.set_value(linear.kernel[...] / math.sqrt(2 * number))
        return stack_layers(blocks, scan=config.scan_layers)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Which positions, biases, tokens and norms there are."""
        told: dict[str, Any] = {
            "use_abs_pos_emb": "pos_embed" in shapes,
            "use_shared_rel_pos_bias": f"rel_pos_bias.{_TABLE}" in shapes,
            "mask_token": "mask_token" in shapes,
        }
        if "blocks.0.norm1.weight" in shapes:
            told["use_rel_pos_bias"] = f"blocks.0.attn.{_TABLE}" in shapes
            told["qkv_bias"] = "blocks.0.attn.q_bias" in shapes
        norms = {"norm.weight": "token", "fc_norm.weight": "avg"}
        told.update(("global_pool", pool) for name, pool in norms.items() if name in shapes)
        return told

    def patch_positions(self) -> jax.Array | None:
        """The learned positions of the patches of `img_size`, (N, D); None where there are none."""
        return super().patch_positions() if self.config.use_abs_pos_emb else None

    def position_table(self) -> PositionTable | None:
        """One learned table for the class token and the grid, where there is one."""
        return super().position_table() if self.config.use_abs_pos_emb else None

    def bias_tables(self) -> list[BiasTable]:
        """The table that all blocks share, then that of each block, where there are such."""
        config = self.config
        names = [f"rel_pos_bias.{_TABLE}"] if config.use_shared_rel_pos_bias else []
        if config.use_rel_pos_bias:
            names += [f"blocks.{number}.attn.{_TABLE}" for number in range(config.depth)]
        facts = self.table_grid, config.bias_resize, CLASS_ROWS
        return [BiasTable(name, *facts) for name in names]

    def embed(
        self, images: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None, *tuple[jax.Array, ...]]:
        """Images to the tokens of the first block, the dropouts' key, and the grid's biases."""
        self.check_images(images)
        grid = self.token_grid(*images.shape[1:3])
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        patches = self.patch_embed(images.astype(self.dtype))
        tokens = jnp.concatenate([self.repeated(self.cls_token, images), patches], axis=1)
        if self.config.use_abs_pos_emb:
            tokens = tokens + self.positions(*grid)
        dtype = self.matrix_dtype
        matrices = tuple(
            jnp.asarray(matrix, dtype)
            for matrix in bias_matrices(self.table_grid, grid, self.config.bias_resize, dtype)
        )
        shared = () if self.rel_pos_bias is None else (self.rel_pos_bias(*matrices),)
        return self.pos_drop(tokens, drop_key), blocks_key, *matrices, *shared
