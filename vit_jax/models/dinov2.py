"""DINOv2, with and without registers: backbones that images of any size go through.

Oquab et al. 2023 (2304.07193), Darcet et al. 2023 (2309.16588); facebookresearch/dinov2
(models/vision_transformer.py, hub/backbones.py). Stochastic depth drops examples one by one, where
the release above a rate of 0.1 computes a part of the batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.mlp import Mlp, SwiGlu
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.variables import Frozen
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, Size, checked, optional
from vit_jax.models.dialect import QKV, Dialect, Name, layer_names
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

POOLS = ("token", "token_avg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dinov2Config(PatchesConfig):
    """The fields of `Dinov2`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the position table, and what data is prepared for where nothing else is
    said; images of any whole number of patches are taken.

    Attributes:
      mlp_ratio: hidden width of the MLP over `embed_dim`; of the gated one about two thirds of it.
      swiglu: the gated MLP of the giant, see `layers.mlp.SwiGlu`.
      qkv_bias: see `layers.attention.Attention`.
      init_values: initial LayerScale.
      reg_tokens: register tokens, between the class token and the patches, without positions.
      mask_token: whether there is one, which stands for hidden patches in pretraining: not used
        here, and never trained.
      global_pool: what the head sees: "token", the class token, or "token_avg", beside it the mean
        of the patches.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "dinov2" as the release without registers, "timm" (antialiased)
        as the release with them and as timm, "bicubic" as transformers without registers.
    """

    img_size: Size = 518
    patch_size: Size = 14
    num_classes: int = 0
    mlp_ratio: float = checked(4.0, check_number, above=0)
    swiglu: bool = checked(False, check_bool)
    qkv_bias: bool = checked(True, check_bool)
    init_values: float | None = optional(1.0, check_number, free=True)
    reg_tokens: int = checked(0, check_int, least=0)
    mask_token: bool = checked(True, check_bool)
    global_pool: str = checked("token", check_choice, choices=POOLS)
    position_resize: str = checked("dinov2", check_choice, free=True, choices=METHODS)


def _variants() -> dict[str, Variant]:
    """The release's names."""
    preprocessing = Preprocessing(
        IMAGENET_MEAN, IMAGENET_STD, crop_fraction=224 / 256, size=(224, 224)
    )
    found = {}
    for letter, embed_dim, depth, num_heads, swiglu in (
        ("s", 384, 12, 6, False),
        ("b", 768, 12, 12, False),
        ("l", 1024, 24, 16, False),
        ("g", 1536, 40, 24, True),
    ):
        sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "swiglu": swiglu}
        registers = {"reg_tokens": 4, "position_resize": "timm"}
        found[f"dinov2_vit{letter}14"] = Variant(sizes, preprocessing)
        found[f"dinov2_vit{letter}14_reg"] = Variant({**sizes, **registers}, preprocessing)
    return found


def _huggingface(
    whose: str, architecture: str, told_by: str, has_head: bool, **fields: Any
) -> Dialect:
    """transformers' names in files; then its own in memory (5.24)."""
    model_type = "dinov2_with_registers" if "Registers" in architecture else "dinov2"
    prefix = f"{model_type}." if has_head else ""
    rows = (
        ("norm1.", "norm1."),
        ("norm2.", "norm2."),
        ("attn.q.", "attention.attention.query.", "attention.q_proj."),
        ("attn.k.", "attention.attention.key.", "attention.k_proj."),
        ("attn.v.", "attention.attention.value.", "attention.v_proj."),
        ("attn.proj.", "attention.output.dense.", "attention.o_proj."),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.fc1.", "mlp.fc1."),
        ("mlp.fc2.", "mlp.fc2."),
        ("mlp.w12.", "mlp.weights_in."),
        ("mlp.w3.", "mlp.weights_out.", "mlp.down_proj."),
    )
    layer = f"{prefix}encoder.layer.#."
    return Dialect(
        "huggingface",
        f"Hugging Face's {whose}",
        told_by,
        [
            *(
                Name(own, f"{prefix}embeddings.{theirs}")
                for own, theirs in (
                    ("cls_token", "cls_token"),
                    ("mask_token", "mask_token"),
                    ("register_tokens", "register_tokens"),
                    ("pos_embed", "position_embeddings"),
                    ("patch_embed.proj.", "patch_embeddings.projection."),
                )
            ),
            *layer_names("blocks.#.", layer, rows, "encoder.layer.#."),
            Name("blocks.#.mlp.gate.", "", ("encoder.layer.#.mlp.gate_proj.",)),
            Name("blocks.#.mlp.up.", "", ("encoder.layer.#.mlp.up_proj.",)),
            Name("norm.", f"{prefix}layernorm."),
            Name("head.", "classifier."),
        ],
        [
            ("embeddings.patch_embeddings", "patch_embed"),
            ("encoder.layer.#", "blocks.#"),
            ("encoder.layer.#.attention", "blocks.#.attn"),
            ("encoder.layer.#.mlp", "blocks.#.mlp"),
            ("encoder.layer.#.layer_scale1", "blocks.#.ls1"),
            ("encoder.layer.#.layer_scale2", "blocks.#.ls2"),
        ],
        prefixes=("dinov2.", "dinov2_with_registers."),
        joined=(
            *QKV,
            ("blocks.#.mlp.w12.", ("blocks.#.mlp.gate.", "blocks.#.mlp.up.")),
        ),
        positions=r"(?:dinov2(?:_with_registers)?\.)?embeddings\.position_embeddings",
        fields=fields,
        model_type=model_type,
        architecture=architecture,
        config={
            "hidden_size": "embed_dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "num_heads",
            "mlp_ratio": "mlp_ratio",
            "image_size": "img_size",
            "patch_size": "patch_size",
            "num_channels": "in_chans",
            "qkv_bias": "qkv_bias",
            "layer_norm_eps": "norm_eps",
            "layerscale_value": "init_values",
            "use_swiglu_ffn": "swiglu",
            **(
                {"num_register_tokens": "reg_tokens"}
                if model_type != "dinov2"
                else {"use_mask_token": "mask_token"}
            ),
        },
        settled={"hidden_act": "gelu"},
    )


_REGISTERS = r"embeddings\.register_tokens$"
_PLAIN = r"\.layer_scale1\.lambda1$"
_DIALECTS = (
    _huggingface(
        "Dinov2WithRegisters",
        "Dinov2WithRegistersForImageClassification",
        _REGISTERS,
        has_head=True,
        global_pool="token_avg",
        position_resize="timm",
        mask_token=True,
    ),
    _huggingface(
        "Dinov2WithRegisters",
        "Dinov2WithRegistersModel",
        _REGISTERS,
        has_head=False,
        num_classes=0,
        position_resize="timm",
        mask_token=True,
    ),
    _huggingface(
        "Dinov2",
        "Dinov2ForImageClassification",
        _PLAIN,
        has_head=True,
        global_pool="token_avg",
        position_resize="bicubic",
        reg_tokens=0,
    ),
    _huggingface(
        "Dinov2",
        "Dinov2Model",
        _PLAIN,
        has_head=False,
        num_classes=0,
        position_resize="bicubic",
        reg_tokens=0,
    ),
)


class Dinov2(AnyGridModel[Dinov2Config]):
    """A Vision Transformer whose positions are resized to the image at every call."""

    design = "dinov2"
    config_class = Dinov2Config
    variants = _variants()
    stem = ("patch_embed", "cls_token", "reg_token", "pos_embed")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token", "register_tokens", "mask_token")
    dialects = _DIALECTS
    torch_names = ((r"^reg_token$", "register_tokens"),)

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_embed = self.build_patches(rngs)
        self.cls_token = self.token(1, 1e-6, rngs)
        self.reg_token = self.token(config.reg_tokens, 1e-6, rngs) if config.reg_tokens else None
        self.mask_token = (
            Frozen(jnp.zeros((1, embed_dim), self.param_dtype)) if config.mask_token else None
        )
        self.prefix_tokens = ("class", *["register"] * config.reg_tokens)
        self.pos_embed = self.token(self.patch_embed.num_patches + 1, 0.02, rngs)
        self.blocks = self.build_blocks(
            rngs,
            mlp=SwiGlu if config.swiglu else Mlp,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            init_values=config.init_values,
        )
        self.norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.num_features = embed_dim * (2 if config.global_pool == "token_avg" else 1)
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Which tokens there are, and whether the MLP is gated."""
        registers, head = shapes.get("register_tokens", ()), shapes.get("head.weight", ())
        told: dict[str, Any] = {"mask_token": "mask_token" in shapes}
        if len(registers) == 3:
            told |= {"reg_tokens": registers[1], "position_resize": "timm"}
        width = shapes.get("cls_token", (0,))[-1]
        if len(head) == 2 and head[1] == 2 * width:
            told["global_pool"] = "token_avg"
        return told

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        patches = self.patch_embed(images.astype(self.dtype))
        positions = self.positions(*self.token_grid(*images.shape[1:3]))
        tokens = [self.repeated(self.cls_token, images) + positions[:, :1]]
        if self.reg_token is not None:
            tokens.append(self.repeated(self.reg_token, images))
        tokens.append(patches + positions[:, 1:])
        return jnp.concatenate(tokens, axis=1), self.dropout_key(rngs)
