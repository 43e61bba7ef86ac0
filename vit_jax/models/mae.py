"""MAE: a Vision Transformer of fixed positions, and the decoder that it is pretrained with.

He et al. 2021 (2111.06377); facebookresearch/mae (models_mae.py, models_vit.py), transformers 5.24
(models/vit_mae).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, check_rate
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import xavier_uniform, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.masking import masked_order, take_tokens
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position import grid_sinusoid_table
from vit_jax.layers.position_resize import METHODS, resize_matrix
from vit_jax.layers.stack import run_layers, stack_layers
from vit_jax.layers.unfold import cut_patches
from vit_jax.layers.variables import Frozen
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, checked
from vit_jax.models.dialect import HUGGINGFACE_SIZES, QKV, Dialect, Name
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

POOLS = ("token", "avg")
DECODER_RESIZE = ("grid", "sequence")
_DECODER = ("mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm")
_DECODER += ("decoder_pred",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaeConfig(PatchesConfig):
    """The fields of `Mae`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the position tables, and what data is prepared for; images of any whole
    number of patches are taken.

    Attributes:
      mlp_ratio: hidden width of the encoder's MLPs over `embed_dim`.
      qkv_bias: see `layers.attention.Attention`.
      global_pool: what the head sees: "token", the class token after `norm`, or "avg", the mean of
        the patches, then `fc_norm`: what the release fine-tunes. A model has one of the two norms.
      decoder: whether there is one, for pretraining; weights of one are left out without it.
      decoder_embed_dim, decoder_depth, decoder_num_heads, decoder_mlp_dim: its sizes.
      mask_ratio: the part of the patches that is hidden in pretraining.
      norm_pix_loss: whether the pixels of each patch are normalised before they are compared.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "bicubic" as transformers and the release.
      decoder_resize: how the decoder's do: "grid", in the same way, or "sequence", bicubic along
        their order as transformers.
    """

    num_classes: int = 0
    mlp_ratio: float = checked(4.0, check_number, above=0)
    qkv_bias: bool = checked(True, check_bool)
    global_pool: str = checked("token", check_choice, choices=POOLS)
    decoder: bool = checked(False, check_bool, free=True)
    decoder_embed_dim: int = checked(512, check_int, free=True, least=1)
    decoder_depth: int = checked(8, check_int, free=True, least=0)
    decoder_num_heads: int = checked(16, check_int, free=True, least=1)
    decoder_mlp_dim: int = checked(2048, check_int, free=True, least=1)
    mask_ratio: float = checked(0.75, check_rate, free=True)
    norm_pix_loss: bool = checked(False, check_bool, free=True)
    position_resize: str = checked("bicubic", check_choice, free=True, choices=METHODS)
    decoder_resize: str = checked("grid", check_choice, free=True, choices=DECODER_RESIZE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder and self.global_pool == "avg":
            raise ValueError(
                "decoder=True needs global_pool='token', got 'avg', which has no last norm"
            )


def _variants() -> dict[str, Variant]:
    """The release's names."""
    found = {}
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=224 / 256)
    for size, embed_dim, depth, num_heads, patch_size in (
        ("base", 768, 12, 12, 16),
        ("large", 1024, 24, 16, 16),
        ("huge", 1280, 32, 16, 14),
    ):
        sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        name = f"mae_vit_{size}_patch{patch_size}"
        found[name] = Variant({**sizes, "patch_size": patch_size}, preprocessing)
    return found


_ROWS = (
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    *((f"attn.{part[0]}.", f"attention.attention.{part}.") for part in ("query", "key", "value")),
    ("attn.proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
)
_MEMORY = {
    **{f"attn.{part}.": f"attention.{part}_proj." for part in "qkv"},
    "attn.proj.": "attention.o_proj.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}


def _layers(own: str, written: str, also: tuple[str, ...]) -> list[Name]:
    """transformers 4's names of a stack, and 5's in memory, both under each of several paths."""
    return [
        Name(
            own + mine,
            written + theirs,
            tuple(path + name for path in also for name in (theirs, _MEMORY.get(mine, theirs))),
        )
        for mine, theirs in _ROWS
    ]


_ENCODER_NAMES = (
    ("cls_token", "cls_token"),
    ("pos_embed", "position_embeddings"),
    ("patch_embed.proj.", "patch_embeddings.projection."),
)
_DECODER_NAMES = [
    *(
        Name(own, f"decoder.{own}")
        for own in ("mask_token", "decoder_pos_embed", "decoder_embed.", "decoder_norm.")
    ),
    Name("decoder_pred.", "decoder.decoder_pred."),
    *_layers(
        "decoder_blocks.#.",
        "decoder.decoder_layers.#.",
        # 5.24 writes the latter, which no release of weights has.
        ("decoder.decoder_layers.#.", "decoder.decoder_encoder.layer.#."),
    ),
]


def _huggingface(architecture: str, told_by: str, prefix: str, **fields: Any) -> Dialect:
    """transformers' names: of the encoder alone, which its ViT has too, or with the decoder."""
    modules = [("embeddings.patch_embeddings", "patch_embed")]
    for theirs, own in (
        ("encoder.layer.#", "blocks.#"),
        ("layers.#", "blocks.#"),
        ("decoder.decoder_layers.#", "decoder_blocks.#"),
    ):
        modules += [(theirs, own), (f"{theirs}.attention", f"{own}.attn")]
        modules += [(f"{theirs}.mlp", f"{own}.mlp")]
    return Dialect(
        "huggingface",
        f"Hugging Face's {architecture}",
        told_by,
        [
            *(Name(own, f"{prefix}embeddings.{theirs}") for own, theirs in _ENCODER_NAMES),
            *_layers("blocks.#.", f"{prefix}encoder.layer.#.", ("layers.#.",)),
            Name("norm.", f"{prefix}layernorm."),
            *_DECODER_NAMES,
        ],
        modules,
        prefixes=("vit.",),
        joined=(
            *QKV,
            (
                "decoder_blocks.#.attn.qkv.",
                tuple(f"decoder_blocks.#.attn.{part}." for part in "qkv"),
            ),
        ),
        positions=r"(?:vit\.)?embeddings\.position_embeddings",
        fields={
            "num_classes": 0,
            "global_pool": "token",
            "position_resize": "bicubic",
            "decoder_resize": "sequence",
            **fields,
        },
        model_type="vit_mae",
        architecture=architecture,
        config={
            **HUGGINGFACE_SIZES,
            "qkv_bias": "qkv_bias",
            "layer_norm_eps": "norm_eps",
            "attention_probs_dropout_prob": "attn_drop_rate",
            "decoder_hidden_size": "decoder_embed_dim",
            "decoder_num_hidden_layers": "decoder_depth",
            "decoder_num_attention_heads": "decoder_num_heads",
            "decoder_intermediate_size": "decoder_mlp_dim",
            "mask_ratio": "mask_ratio",
            "norm_pix_loss": "norm_pix_loss",
        },
        defaults={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
            "qkv_bias": True,
            "layer_norm_eps": 1e-12,
            "attention_probs_dropout_prob": 0.0,
            "decoder_hidden_size": 512,
            "decoder_num_hidden_layers": 8,
            "decoder_num_attention_heads": 16,
            "decoder_intermediate_size": 2048,
            "mask_ratio": 0.75,
            "norm_pix_loss": False,
        },
        settled={"hidden_act": "gelu"},
    )


def _patch_kernel(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Xavier-uniform, as of a Linear over the pixels of a patch."""
    return xavier_uniform(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


class Reconstruction(NamedTuple):
    """What pretraining makes of images.

    Attributes:
      loss: mean of the squared error over the hidden patches.
      patches: (B, N, p * p * C), as predicted: row by row, the channels of a pixel together; with
        `norm_pix_loss` in units of the patch's own deviation, about its mean.
      mask: (B, N), 1 where a patch was hidden.
    """

    loss: Float[Array, ""]
    patches: Float[Array, "batch patches pixels"]
    mask: Float[Array, "batch patches"]


class Mae(AnyGridModel[MaeConfig]):
    """The encoder; with `decoder=True` also what it is pretrained with: see `reconstruct`."""

    design = "mae"
    config_class = MaeConfig
    variants = _variants()
    stem = ("patch_embed", "cls_token", "pos_embed")
    heads = ("head",)
    before_head = ("norm", "fc_norm")
    head_fields = ("global_pool",)
    pretraining_parts = _DECODER
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token", "mask_token")
    head_std = 2e-5
    dialects = (
        _huggingface("ViTMAEForPreTraining", r"^decoder\.decoder_embed\.", "vit.", decoder=True),
        # No name tells it from a ViT, whose dialect reads it.
        _huggingface("ViTMAEModel", r"(?!)", "", decoder=False),
    )

    def __init__(self, config: MaeConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_embed = self.build_patches(rngs)
        kernel = self.patch_embed.proj.kernel
        kernel.set_value(_patch_kernel(rngs.params(), kernel[...].shape, self.param_dtype))
        self.cls_token = self.token(1, 0.02, rngs)
        self.pos_embed: Any = self._fixed_positions(embed_dim)
        self.pos_drop = Dropout(config.drop_rate)
        kind: dict[str, Any] = {"qkv_bias": config.qkv_bias, "init_values": None}
        kind["kernel_init"] = xavier_uniform
        self.blocks = self.build_blocks(rngs, mlp_ratio=config.mlp_ratio, **kind)
        norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.norm, self.fc_norm = (None, norm) if config.global_pool == "avg" else (norm, None)
        self.num_features = embed_dim
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)
        if config.decoder:
            self._build_decoder(rngs, kind)

    def _fixed_positions(self, dim: int) -> Frozen:
        table = grid_sinusoid_table(self.table_grid, dim)
        table = np.concatenate([np.zeros((1, dim)), table])[None]
        return Frozen(jnp.asarray(table, self.param_dtype))

    def _build_decoder(self, rngs: nnx.Rngs, kind: Mapping[str, Any]) -> None:
        config, width = self.config, self.config.decoder_embed_dim
        init: dict[str, Any] = {"kernel_init": xavier_uniform, "bias_init": zeros}
        init |= {**self.types, "rngs": rngs}
        self.mask_token = self.token(1, 0.02, rngs, width)
        self.decoder_embed = Linear(config.embed_dim, width, **init)
        self.decoder_pos_embed = self._fixed_positions(width)
        sizes = (width, config.decoder_depth, config.decoder_num_heads)
        ratio = math.nextafter(config.decoder_mlp_dim / width, math.inf)
        blocks = self.new_blocks(rngs, sizes, mlp_ratio=ratio, **kind)
        self.decoder_blocks = stack_layers(blocks, scan=config.scan_layers)
        self.decoder_norm = layer_norm(width, config.norm_eps, **self.types, rngs=rngs)
        pixels = math.prod(self.patch_embed.patch_size) * config.in_chans
        self.decoder_pred = Linear(width, pixels, **init)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Which norm there is, and whether there is a decoder."""
        norms = {"norm.weight": "token", "fc_norm.weight": "avg"}
        told: dict[str, Any] = {"decoder": "decoder_embed.weight" in shapes}
        told.update(("global_pool", pool) for name, pool in norms.items() if name in shapes)
        if len(shape := shapes.get("decoder_embed.weight", ())) == 2:
            told["decoder_embed_dim"] = shape[0]
        return told

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        tokens = self._with_class(self._patches(images))
        return self.pos_drop(tokens, drop_key), blocks_key

    def _patches(self, images: jax.Array) -> jax.Array:
        """The patches with their positions: (B, N, D)."""
        self.check_images(images)
        positions = self.positions(*self.token_grid(*images.shape[1:3]))
        return self.patch_embed(images.astype(self.dtype)) + positions[:, 1:]

    def _with_class(self, patches: jax.Array) -> jax.Array:
        token = self.repeated(self.cls_token, patches)
        position = self.pos_embed[:, :1].astype(self.dtype)
        return jnp.concatenate([token + position, patches], axis=1)

    def reconstruct(
        self,
        images: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch patches"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Reconstruction:
        """Hides patches of images, encodes the others, and predicts the pixels of all.

        Args:
          images: (B, H, W, C), floating point, normalised.
          noise: of `layers.masking.patch_noise`; the patches with the smallest of an image's
            numbers are kept, all but `mask_ratio` of them.
          rngs: needed in train mode where the model drops.

        Raises:
          ValueError: a model without a decoder; see `forward_features`.
        """
        losses, predicted, mask = self._reconstruct(images, noise, rngs)
        return Reconstruction(losses.mean(), predicted, mask)

    def reconstruction_losses(
        self,
        images: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch patches"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch"]:
        """The loss of each image, of which that of `reconstruct` is the mean; see there."""
        return self._reconstruct(images, noise, rngs)[0]

    def _reconstruct(
        self, images: jax.Array, noise: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The loss of each image, the predicted pixels and the mask."""
        if not self.config.decoder:
            raise ValueError("this model has no decoder: build it with decoder=True")
        grid = self.token_grid(*images.shape[1:3])
        drop_key, blocks_key, decoder_key = split_key(self.dropout_key(rngs), 3)
        patches = self._patches(images)
        num_kept = int(patches.shape[1] * (1 - self.config.mask_ratio))
        kept, places, mask = masked_order(noise, num_kept)
        tokens = self.pos_drop(self._with_class(take_tokens(patches, kept)), drop_key)
        tokens = self.last_norm(self.run_blocks(tokens, blocks_key))
        predicted = self._decode(tokens, places, grid, decoder_key)
        error = jnp.square(predicted - self.pixel_targets(images)).mean(axis=-1)  # (B, N)
        mask = mask.astype(error.dtype)
        return (error * mask).sum(axis=1) / mask.sum(axis=1), predicted, mask

    def _decode(
        self, tokens: jax.Array, places: jax.Array, grid: tuple[int, int], key: jax.Array | None
    ) -> jax.Array:
        """The class token and the kept patches to the pixels of all patches, in their own order."""
        x = self.decoder_embed(tokens)
        hidden = places.shape[1] + 1 - x.shape[1]
        token = jnp.broadcast_to(
            self.mask_token[...].astype(x.dtype), (x.shape[0], hidden, x.shape[2])
        )
        patches = take_tokens(jnp.concatenate([x[:, 1:], token], axis=1), places)
        x = jnp.concatenate([x[:, :1], patches], axis=1) + self._decoder_positions(*grid)
        x = run_layers(
            self.decoder_blocks,
            x,
            drop_path_rates=(0.0,) * self.config.decoder_depth,
            key=key,
            remat=self.config.remat,
        )
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def _decoder_positions(self, rows: int, columns: int) -> jax.Array:
        if self.config.decoder_resize == "grid" or (rows, columns) == self.table_grid:
            return self.positions(rows, columns, self.decoder_pos_embed)
        table = self.decoder_pos_embed[...].astype(self.dtype)
        along = resize_matrix(table.shape[1] - 1, rows * columns, "bicubic", self.matrix_dtype)
        along = jnp.asarray(along, self.dtype)
        patches = jnp.einsum("mn,bnd->bmd", along, table[:, 1:], precision="highest")
        return jnp.concatenate([table[:, :1], patches], axis=1)

    def pixels(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches pixels"]:
        """The pixels of each patch, row by row, the channels of a pixel together."""
        return cut_patches(images.astype(self.dtype), self.patch_embed.patch_size)

    def pixel_targets(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches pixels"]:
        """The pixels of each patch, which `reconstruct` predicts.

        With `norm_pix_loss` less their mean, over the root of their unbiased variance + 1e-6.
        """
        x = self.pixels(images)
        if not self.config.norm_pix_loss:
            return x
        mean, deviation = self.pixel_scale(x)
        return (x - mean) / deviation

    @staticmethod
    def pixel_scale(
        pixels: Float[Array, "batch patches pixels"],
    ) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
        """The mean of each patch, and what `norm_pix_loss` divides by."""
        mean, variance = (
            pixels.mean(axis=-1, keepdims=True),
            pixels.var(axis=-1, ddof=1, keepdims=True),
        )
        return mean, jnp.sqrt(variance + 1e-6)
