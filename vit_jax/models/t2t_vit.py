"""T2T-ViT: Tokens-to-Token Vision Transformer, with its SE and ghost variants.

Yuan et al. 2021 (2101.11986) and the release of its authors (yitu-opensource/T2T-ViT). The design
with dense connections is in `t2t_vit_dense`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float

from vit_jax.layers.attention import Attention
from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_bool, check_int, check_number
from vit_jax.layers.dropout import Dropout, drop_path_rates
from vit_jax.layers.ghost import GhostAttention, GhostMlp
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.keys import split_key
from vit_jax.layers.mlp import Mlp
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.performer import TokenPerformer
from vit_jax.layers.position import sinusoid_table
from vit_jax.layers.squeeze_excite import SqueezeExcite, SqueezeExciteAttention
from vit_jax.layers.stack import PlainLayers, ScannedLayers, run_layers, stack_layers
from vit_jax.layers.tokens_to_token import TokensToToken
from vit_jax.layers.variables import Frozen
from vit_jax.models.base import Logits, VisionModel

_INIT = trunc_normal(0.02)
_PERFORMER_DROP_RATE = 0.1


class TokensToTokenModel(VisionModel):
    """What all T2T-ViTs share: token module, class token and positions, last norm and head.

    A subclass builds `blocks` between `__init__` and `build_head`.

    Args:
      tokens_type, token_dim, token_drop_rate: see `T2TViT`.
      **fields: of `VisionModel`.
    """

    stem = ("tokens_to_token", "cls_token")
    torch_names = TokenPerformer.torch_names
    blocks: PlainLayers | ScannedLayers

    def __init__(
        self,
        *,
        tokens_type: str,
        token_dim: int,
        token_drop_rate: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        head_drop_rate: float,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        if token_drop_rate is None:
            token_drop_rate = _PERFORMER_DROP_RATE if tokens_type == "performer" else 0.0
        if token_drop_rate and tokens_type == "convolution":
            raise ValueError(
                "tokens_type='convolution' has no dropout: token_drop_rate must be 0 or None, got "
                f"{token_drop_rate!r}"
            )
        super().__init__(
            drop_rates={
                "drop_rate": drop_rate,
                "attn_drop_rate": attn_drop_rate,
                "head_drop_rate": head_drop_rate,
                "token_drop_rate": token_drop_rate,
            },
            **fields,
        )
        self.tokens_to_token = TokensToToken(
            self.img_size,
            tokens_type,
            self.in_chans,
            self.embed_dim,
            token_dim,
            norm_eps=self.norm_eps,
            drop_rate=token_drop_rate,
            kernel_init=_INIT,
            **self.types,
            rngs=rngs,
        )
        shape = (1, 1, self.embed_dim)
        self.cls_token = nnx.Param(_INIT(rngs.params(), shape, self.param_dtype))
        table = sinusoid_table(self.tokens_to_token.num_patches + 1, self.embed_dim)
        self.pos_embed = Frozen(jnp.asarray(table[None], self.param_dtype))
        self.pos_drop = Dropout(drop_rate)
        self.head_drop = Dropout(head_drop_rate)

    def build_head(self, num_features: int, rngs: nnx.Rngs) -> None:
        """Ends a constructor: the last norm and the head at a width of `num_features`."""
        self.num_features = num_features
        self.norm = layer_norm(num_features, self.norm_eps, **self.types, rngs=rngs)
        self.reset_classifier(self.num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the head by a new one of `num_classes`; 0 makes it the identity."""
        num_classes = self.num_classes = check_int("num_classes", num_classes, least=0)
        self.head = nnx.data(
            nnx.Linear(
                self.num_features,
                num_classes,
                kernel_init=_INIT,
                bias_init=zeros,
                **self.types,
                rngs=rngs,
            )
            if num_classes
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

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of blocks."""
        return self.blocks

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

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D) after the last norm: the class token, then the tokens row by row.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing.
        """
        x, key = self.embed(images, rngs)
        x = run_layers(
            self.blocks, x, drop_path_rates=self.drop_path_rates, key=key, remat=self.remat
        )
        return self.last_norm(x)

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


class T2TViT(TokensToTokenModel):
    """T2T-ViT.

    Args:
      img_size: pixels, one number or (height, width), any from 3 on.
      tokens_type: how tokens are made: "performer", "transformer" or "convolution": see
        `layers.tokens_to_token.TokensToToken`.
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the head the identity.
      embed_dim: width of a token.
      depth: blocks.
      num_heads: heads of each, a divisor of it.
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias: see `layers.attention.Attention`.
      qk_scale: see `layers.attention.Attention`. (The release sets `qk_scale` to
        embed_dim ** -0.5 with `pretrained=True`; its published accuracies are those of the
        default, head_dim ** -0.5.)
      token_dim: width inside the token module.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the positions, the attention's output and in the MLP.
      attn_drop_rate: dropout on attention weights of the blocks.
      drop_path_rate: stochastic depth of the last block; linear from 0 at the first.
      head_drop_rate: dropout before the head (the release has none).
      token_drop_rate: dropout inside the token module; None is the release's: 0.1 in its
        performers, whatever `drop_rate` is, and none elsewhere.
      remat: "none", "blocks" or "dots": see `run_layers`.
      scan_layers: keeps the blocks stacked and scans over them.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    attention: ClassVar[Callable[..., nnx.Module]] = Attention
    mlp: ClassVar[Callable[..., nnx.Module]] = Mlp

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        tokens_type: str = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 384,
        depth: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        token_dim: int = 64,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        token_drop_rate: float | None = None,
        remat: str = "none",
        scan_layers: bool = False,
        dtype: Dtype | str = jnp.float32,
        param_dtype: Dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            img_size=img_size,
            tokens_type=tokens_type,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            token_dim=token_dim,
            norm_eps=norm_eps,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rates=drop_path_rates(drop_path_rate, depth),
            head_drop_rate=head_drop_rate,
            token_drop_rate=token_drop_rate,
            remat=remat,
            scan_layers=scan_layers,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.blocks = stack_layers(
            [
                Block(
                    embed_dim,
                    num_heads,
                    attention=type(self).attention,
                    mlp=type(self).mlp,
                    mlp_ratio=check_number("mlp_ratio", mlp_ratio, above=0),
                    qkv_bias=check_bool("qkv_bias", qkv_bias),
                    qk_scale=qk_scale,
                    qk_norm=False,
                    init_values=None,
                    norm_eps=self.norm_eps,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    kernel_init=_INIT,
                    bias_init=zeros,
                    **self.types,
                    rngs=rngs,
                )
                for _ in range(depth)
            ],
            scan=scan_layers,
        )
        self.build_head(embed_dim, rngs)


class T2TViTSE(T2TViT):
    """T2T-ViT with squeeze and excitation after each attention: the fields of `T2TViT`."""

    attention = SqueezeExciteAttention
    torch_names = (*T2TViT.torch_names, *SqueezeExcite.torch_names)


class T2TViTGhost(T2TViT):
    """T2T-ViT with ghost attention and MLP: the fields of `T2TViT`, `mlp_ratio` being 3."""

    attention = GhostAttention
    mlp = GhostMlp
