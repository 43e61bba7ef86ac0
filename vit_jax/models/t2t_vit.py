"""T2T-ViT: Tokens-to-Token Vision Transformer, with its SE and ghost variants.

Yuan et al. 2021 (2101.11986) and the release of its authors (yitu-opensource/T2T-ViT). The design
with dense connections is in `t2t_vit_dense`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention
from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_bool, check_choice, check_int, check_number, check_rate
from vit_jax.layers.dropout import Dropout, split_key
from vit_jax.layers.ghost import GhostAttention, GhostMlp
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.performer import TokenPerformer
from vit_jax.layers.position import sinusoid_table
from vit_jax.layers.soft_splits import SoftSplitWindows, soft_split_windows
from vit_jax.layers.squeeze_excite import SqueezeExcite, SqueezeExciteAttention
from vit_jax.layers.stack import PlainLayers, ScannedLayers, stack_layers
from vit_jax.layers.tokens_to_token import GEOMETRY, TOKENS_TYPES, TokensToToken
from vit_jax.layers.variables import Frozen
from vit_jax.models.adaptable import PatchWeights, PositionTable
from vit_jax.models.base import Logits, Variant, VisionModel
from vit_jax.models.config import DesignConfig, StackConfig, checked, optional, other_scale
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_INIT = trunc_normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensToTokenConfig(DesignConfig):
    """The fields of every T2T-ViT; the common ones: `DesignConfig`.

    `img_size` is any from 3 on. The release has no `head_drop_rate`.

    Attributes:
      tokens_type: how tokens are made: "performer", "transformer" or "convolution": see
        `layers.tokens_to_token.TokensToToken`.
      token_dim: width inside the token module.
      token_drop_rate: dropout inside the token module; None is the release's: 0.1 in its
        performers, whatever `drop_rate` is, and none elsewhere.
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias, qk_scale: see `layers.attention.Attention`. (The release sets `qk_scale` to
        embed_dim ** -0.5 with `pretrained=True`; its published accuracies are those of the
        default, head_dim ** -0.5.)
    """

    tokens_type: str = checked("performer", check_choice, choices=TOKENS_TYPES)
    token_dim: int = checked(64, check_int, least=1)
    token_drop_rate: float | None = optional(None, check_rate, free=True)
    mlp_ratio: float = checked(3.0, check_number, above=0)
    qkv_bias: bool = checked(False, check_bool)
    qk_scale: float | None = optional(None, check_number)
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "qk_scale", other_scale(self))
        if self.token_drop_rate and self.tokens_type == "convolution":
            raise ValueError(
                "tokens_type='convolution' has no dropout: token_drop_rate must be 0 or None, got "
                f"{self.token_drop_rate!r}"
            )

    @property
    def tokens_drop_rate(self) -> float:
        """Dropout inside the token module."""
        if self.token_drop_rate is not None:
            return self.token_drop_rate
        return 0.1 if self.tokens_type == "performer" else 0.0

    def drop_rates(self) -> tuple[float, ...]:
        """The rates of all dropouts but stochastic depth."""
        return (*super().drop_rates(), self.tokens_drop_rate)


Config = TypeVar("Config", bound=TokensToTokenConfig)


class TokensToTokenModel(VisionModel[Config]):
    """What all T2T-ViTs share: token module, class token and positions, last norm and head.

    A subclass builds `blocks` between `__init__` and `build_last_norm`.
    """

    stem = ("tokens_to_token", "cls_token")
    heads = ("head",)
    layers_name = "blocks"
    position_name = "pos_embed"
    token_names = ("pos_embed", "cls_token")
    torch_names = TokenPerformer.torch_names
    blocks: PlainLayers | ScannedLayers

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        super().__init__(config)
        self.tokens_to_token = TokensToToken(
            self.img_size,
            config.tokens_type,
            config.in_chans,
            config.embed_dim,
            config.token_dim,
            norm_eps=config.norm_eps,
            drop_rate=config.tokens_drop_rate,
            kernel_init=_INIT,
            **self.types,
            rngs=rngs,
        )
        shape = (1, 1, config.embed_dim)
        self.cls_token = nnx.Param(_INIT(rngs.params(), shape, self.param_dtype))
        table = sinusoid_table(self.tokens_to_token.num_patches + 1, config.embed_dim)
        self.pos_embed = Frozen(jnp.asarray(table[None], self.param_dtype))
        self.pos_drop = Dropout(config.drop_rate)
        self.head_drop = Dropout(config.head_drop_rate)

    def build_last_norm(self, num_features: int, rngs: nnx.Rngs) -> None:
        """Ends a constructor: the last norm and the head at a width of `num_features`."""
        self.num_features = num_features
        self.norm = layer_norm(num_features, self.config.norm_eps, **self.types, rngs=rngs)
        self.build_head(rngs)

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the head."""
        self.head = nnx.data(
            nnx.Linear(
                self.num_features,
                self.num_classes,
                kernel_init=_INIT,
                bias_init=zeros,
                **self.types,
                rngs=rngs,
            )
            if self.num_classes
            else None
        )

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens after the last soft split."""
        self.check_size(height, width)
        return self.tokens_to_token.grid_size

    def pixel_filters(self) -> jax.Array:
        """The projection of the first soft split: (height, width, C, D)."""
        return self.tokens_to_token.pixel_filters()

    def patch_positions(self) -> None:
        """They are a fixed table of sinusoids over the number of the token."""

    def position_table(self) -> PositionTable:
        """The sinusoids of the class token and the grid."""
        rows = self.pos_embed.shape[1]
        return PositionTable(
            self.position_name, rows, self.tokens_to_token.grid_size, sinusoid=True
        )

    def patch_weights(self) -> PatchWeights:
        """The first soft split's convolution, or the Linear after its LayerNorm."""
        tokens_type = self.config.tokens_type
        if tokens_type == "convolution":
            return PatchWeights("tokens_to_token.soft_split0.weight")
        layer, window = "tokens_to_token.attention1", GEOMETRY[0][0] ** 2
        norm = f"{layer}.norm1"
        if tokens_type == "transformer":
            return PatchWeights(f"{layer}.attn.qkv.weight", window=window, norm=norm)
        bias = f"{layer}.kqv.bias"
        return PatchWeights(f"{layer}.kqv.weight", window=window, norm=norm, bias=bias)

    def soft_splits(self, height: int, width: int) -> list[SoftSplitWindows]:
        """The three soft splits of an image of so many pixels."""
        return soft_split_windows((height, width))

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first block, and the key of the blocks' dropouts."""
        self.check_images(images)
        tokens_key, pos_key, blocks_key = split_key(self.dropout_key(rngs), 3)
        x = self.tokens_to_token(images.astype(self.dtype), key=tokens_key)
        class_token = self.cls_token[...].astype(self.dtype)
        class_token = jnp.broadcast_to(class_token, (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([class_token, x], axis=1) + self.pos_embed[...].astype(self.dtype)
        return self.pos_drop(x, pos_key), blocks_key

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """The norm after the last block, of its width alone."""
        if tokens.shape[-1] != self.num_features:
            raise ValueError(
                f"the last norm is {self.num_features} wide and these tokens {tokens.shape[-1]}: "
                "in a dense T2T-ViT norm=True takes the last block alone"
            )
        return self.norm(tokens)

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes), from the class token.

        With `pre_logits`, or without classes, the class token (B, D).
        """
        x = self.head_drop(tokens[:, 0], self.dropout_key(rngs))
        return x if pre_logits or self.head is None else self.head(x)


PREPROCESSING = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=0.9)


def _variant(
    embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, tokens_type: str = "performer"
) -> Variant:
    fields = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "tokens_type": tokens_type,
    }
    return Variant(fields, PREPROCESSING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2TViTConfig(TokensToTokenConfig, StackConfig):
    """The fields of `T2TViT`: `DesignConfig`, `StackConfig`, `TokensToTokenConfig`."""

    embed_dim: int = 384
    depth: int = 14
    num_heads: int = 6


class T2TViT(TokensToTokenModel[T2TViTConfig]):
    """T2T-ViT."""

    design = "t2t_vit"
    config_class = T2TViTConfig
    variants: ClassVar[Mapping[str, Variant]] = {
        "t2t_vit_7": _variant(256, 7, 4, 2.0),
        "t2t_vit_10": _variant(256, 10, 4, 2.0),
        "t2t_vit_12": _variant(256, 12, 4, 2.0),
        "t2t_vit_14": _variant(384, 14, 6, 3.0),
        "t2t_vit_19": _variant(448, 19, 7, 3.0),
        "t2t_vit_24": _variant(512, 24, 8, 3.0),
        "t2t_vit_t_14": _variant(384, 14, 6, 3.0, "transformer"),
        "t2t_vit_t_19": _variant(448, 19, 7, 3.0, "transformer"),
        "t2t_vit_t_24": _variant(512, 24, 8, 3.0, "transformer"),
        "t2t_vit_14_resnext": _variant(384, 14, 32, 3.0),
        "t2t_vit_14_wide": _variant(768, 4, 12, 3.0),
    }
    attention: ClassVar[Callable[..., nnx.Module]] = Attention
    mlp: ClassVar[Callable[..., nnx.Module]] = Mlp

    def __init__(self, config: T2TViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.blocks = stack_layers(
            [
                Block(
                    config.embed_dim,
                    config.num_heads,
                    attention=type(self).attention,
                    mlp=type(self).mlp,
                    mlp_ratio=config.mlp_ratio,
                    qkv_bias=config.qkv_bias,
                    qk_scale=config.qk_scale,
                    qk_norm=False,
                    init_values=None,
                    norm_eps=config.norm_eps,
                    drop_rate=config.drop_rate,
                    attn_drop_rate=config.attn_drop_rate,
                    kernel_init=_INIT,
                    bias_init=zeros,
                    **self.types,
                    rngs=rngs,
                )
                for _ in range(config.depth)
            ],
            scan=config.scan_layers,
        )
        self.build_last_norm(config.embed_dim, rngs)


class T2TViTSE(T2TViT):
    """T2T-ViT with squeeze and excitation after each attention: the fields of `T2TViT`."""

    design = "t2t_vit_se"
    variants: ClassVar[Mapping[str, Variant]] = {"t2t_vit_14_se": _variant(384, 14, 6, 3.0)}
    attention = SqueezeExciteAttention
    torch_names = (*T2TViT.torch_names, *SqueezeExcite.torch_names)


class T2TViTGhost(T2TViT):
    """T2T-ViT with ghost attention and MLP: the fields of `T2TViT`, `mlp_ratio` being 3."""

    design = "t2t_vit_ghost"
    variants: ClassVar[Mapping[str, Variant]] = {"t2t_vit_16_ghost": _variant(384, 16, 6, 3.0)}
    attention = GhostAttention
    mlp = GhostMlp
