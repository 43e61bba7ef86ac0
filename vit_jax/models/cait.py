"""CaiT: talking heads over the patches, then class attention, with LayerScale.

Touvron et al. 2021 (2103.17239); facebookresearch/deit (cait_models.py), timm 1.0.31
(models/cait.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.block import LayerScale
from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, hidden_width
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.position_resize import METHODS
from vit_jax.layers.talking_heads import ClassAttention, TalkingHeadsAttention
from vit_jax.models.any_grid import AnyGridModel
from vit_jax.models.base import Variant
from vit_jax.models.config import PatchesConfig, checked
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

POOLS = ("token", "avg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaitConfig(PatchesConfig):
    """The fields of `Cait`; the common ones: `DesignConfig`, `PatchesConfig`.

    `img_size` is that of the position table, and what data is prepared for; images of any whole
    number of patches are taken. Nothing is dropped in the blocks of the class token.

    Attributes:
      depth_token_only: blocks of class attention, after `depth` blocks over the patches.
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      mlp_ratio_token_only: the same, in the blocks of class attention.
      qkv_bias: see `layers.attention.Attention`.
      init_values: initial LayerScale.
      global_pool: what the head sees: "token", the class token, or "avg", the mean of the patches.
      position_resize: how positions become those of an image of another size, see
        `layers.position_resize`: "bicubic" as the release's finetuning (main.py). timm does not.
    """

    depth: int = 24
    embed_dim: int = 192
    num_heads: int = 4
    depth_token_only: int = checked(2, check_int, least=0)
    mlp_ratio: float = checked(4.0, check_number, above=0)
    mlp_ratio_token_only: float = checked(4.0, check_number, above=0)
    qkv_bias: bool = checked(True, check_bool)
    init_values: float = checked(1e-5, check_number, free=True, above=0)
    global_pool: str = checked("token", check_choice, choices=POOLS)
    position_resize: str = checked("bicubic", check_choice, free=True, choices=METHODS)

    def drop_path_rates(self) -> tuple[float, ...]:
        """Stochastic depth of each block over the patches: the same in all of them."""
        return (self.drop_path_rate,) * self.depth


def _variants() -> dict[str, Variant]:
    """timm's names."""
    found = {}
    for size, embed_dim, depth, num_heads, init_values, img_sizes in (
        ("xxs24", 192, 24, 4, 1e-5, (224, 384)),
        ("xxs36", 192, 36, 4, 1e-5, (224, 384)),
        ("xs24", 288, 24, 6, 1e-5, (384,)),
        ("s24", 384, 24, 8, 1e-5, (224, 384)),
        ("s36", 384, 36, 8, 1e-6, (384,)),
        ("m36", 768, 36, 16, 1e-6, (384,)),
        ("m48", 768, 48, 16, 1e-6, (448,)),
    ):
        for img_size in img_sizes:
            sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
            fields = {**sizes, "init_values": init_values, "img_size": img_size}
            found[f"cait_{size}_{img_size}"] = Variant(
                fields, Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
            )
    return found


class ClassBlock(nnx.Module):
    """A block that changes the class token alone: it attends to itself and to the patches.

    Args:
      dim: width of a token, divisible by `num_heads`.
      num_heads, qkv_bias: of the attention.
      mlp_ratio: hidden width of the MLP over `dim`.
      init_values: initial LayerScale.
      norm_eps: epsilon of both norms.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        mlp_ratio: float,
        init_values: float,
        norm_eps: float,
        rngs: nnx.Rngs,
        **types: Any,
    ):
        init: dict[str, Any] = {"kernel_init": trunc_normal(0.02), "bias_init": zeros}
        self.norm1 = layer_norm(dim, norm_eps, **types, rngs=rngs)
        self.attn = ClassAttention(dim, num_heads, qkv_bias=qkv_bias, **init, **types, rngs=rngs)
        self.ls1 = LayerScale(dim, init_values, **types)
        self.norm2 = layer_norm(dim, norm_eps, **types, rngs=rngs)
        hidden_dim = hidden_width(dim, mlp_ratio)
        self.mlp = Mlp(dim, hidden_dim, drop_rate=0.0, **init, **types, rngs=rngs)
        self.ls2 = LayerScale(dim, init_values, **types)

    def __call__(
        self, patches: Float[Array, "batch patches dim"], token: Float[Array, "batch 1 dim"]
    ) -> Float[Array, "batch 1 dim"]:
        tokens = jnp.concatenate([token, patches], axis=1)
        token = token + self.ls1(self.attn(self.norm1(tokens)))
        return token + self.ls2(self.mlp(self.norm2(token)))


class Cait(AnyGridModel[CaitConfig]):
    """Blocks over the patches, then blocks in which a class token gathers from them.

    The blocks of `forward_intermediates` are those over the patches: without a class token.
    """

    design = "cait"
    config_class = CaitConfig
    variants = _variants()
    stem = ("patch_embed", "cls_token", "pos_embed")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token")
    position_rows = 0
    torch_names = ((r"\.ls([12])\.gamma$", r".gamma_\1"),)

    def __init__(self, config: CaitConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_embed = self.build_patches(rngs)
        self.cls_token = self.token(1, 0.02, rngs)
        self.pos_embed = self.token(self.patch_embed.num_patches, 0.02, rngs)
        self.pos_drop = Dropout(config.drop_rate)
        shared: dict[str, Any] = {"qkv_bias": config.qkv_bias, "init_values": config.init_values}
        self.blocks = self.build_blocks(
            rngs, attention=TalkingHeadsAttention, mlp_ratio=config.mlp_ratio, **shared
        )
        self.blocks_token_only = nnx.List(
            ClassBlock(
                embed_dim,
                config.num_heads,
                mlp_ratio=config.mlp_ratio_token_only,
                norm_eps=config.norm_eps,
                **shared,
                **types,
                rngs=rngs,
            )
            for _ in range(config.depth_token_only)
        )
        self.norm = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.num_features = embed_dim
        self.head_drop = Dropout(config.head_drop_rate)
        self.build_head(rngs)

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """How many blocks of class attention there are."""
        numbers = {name.split(".")[1] for name in shapes if name.startswith("blocks_token_only.")}
        return {"depth_token_only": len(numbers)}

    @property
    def num_block_prefix_tokens(self) -> int:
        """How many tokens stand before the patches in the outputs of blocks: none."""
        return 0

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the patches of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        drop_key, blocks_key = split_key(self.dropout_key(rngs), 2)
        patches = self.patch_embed(images.astype(self.dtype))
        patches = patches + self.positions(*self.token_grid(*images.shape[1:3]))
        return self.pos_drop(patches, drop_key), blocks_key

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens: the class token, then the patches, after the last norm.

        Args, raises: see `VisionModel.forward_features`.
        """
        patches = self.run_blocks(*self.embed(images, rngs))
        token = self.repeated(self.cls_token, images)
        for block in self.blocks_token_only:
            token = block(patches, token)
        return self.last_norm(jnp.concatenate([token, patches], axis=1))
