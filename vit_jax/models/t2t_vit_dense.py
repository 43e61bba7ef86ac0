"""T2T-ViT with dense connections: each block appends features to the tokens.

Yuan et al. 2021 (2101.11986), section 3.2, after DenseNet (1608.06993), and the release of its
authors.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_bool, check_int, check_number
from vit_jax.layers.dropout import drop_path_rates
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import gelu
from vit_jax.layers.stack import stack_layers
from vit_jax.models.t2t_vit import TokensToTokenModel

_INIT = trunc_normal(0.02)


class DenseBlock(Block):
    """`Block`, a Linear to `growth_rate` features, and these appended to the block's input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        growth_rate: int,
        *,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(dim, num_heads, kernel_init=_INIT, bias_init=zeros, **fields, **types)
        self.dense_linear = Linear(dim, growth_rate, kernel_init=_INIT, bias_init=zeros, **types)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens grown"]:
        new = super().__call__(x, drop_path_rate=drop_path_rate, key=key)
        return jnp.concatenate([x, self.dense_linear(new)], axis=-1)


class Transition(nnx.Module):
    """Linear and GELU, from one stage's width to half of it."""

    def __init__(self, dim: int, out_dim: int, **types: Any):
        self.linear = Linear(dim, out_dim, kernel_init=_INIT, bias_init=zeros, **types)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens half"]:
        """It has no branch to drop: it stands between blocks and takes their arguments."""
        del drop_path_rate, key
        return gelu(self.linear(x))


class T2TViTDense(TokensToTokenModel):
    """T2T-ViT with dense connections.

    Args:
      embed_dim: width of a token before the first block.
      growth_rate: features that a block appends.
      block_config: blocks of each stage; a transition between two stages halves the width.
      num_heads: heads of every block, a divisor of every width that occurs.
      drop_path_rate: stochastic depth of the blocks of the last stage; linear, by stage, from 0 at
        the first.
      img_size: see `T2TViT`.
      tokens_type: see `T2TViT`.
      in_chans: see `T2TViT`.
      num_classes: see `T2TViT`.
      mlp_ratio: see `T2TViT`.
      qkv_bias: see `T2TViT`.
      qk_scale: see `T2TViT`.
      token_dim: see `T2TViT`.
      norm_eps: see `T2TViT`.
      drop_rate: see `T2TViT`.
      attn_drop_rate: see `T2TViT`.
      head_drop_rate: see `T2TViT`.
      token_drop_rate: see `T2TViT`.
      remat: see `T2TViT`.
      dtype: see `T2TViT`.
      param_dtype: see `T2TViT`.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        tokens_type: str = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 128,
        growth_rate: int = 64,
        block_config: Sequence[int] = (3, 6, 6, 4),
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
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
        dtype: Dtype | str = jnp.float32,
        param_dtype: Dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        stages = tuple(block_config) if np.ndim(block_config) else ()
        if not stages:
            raise ValueError(
                f"block_config must be a sequence of at least one depth, got {block_config!r}"
            )
        stages = tuple(check_int("block_config", blocks, least=1) for blocks in stages)
        growth_rate = check_int("growth_rate", growth_rate, least=1)
        rates = drop_path_rates(drop_path_rate, len(stages))
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
            # One a layer: the blocks of a stage, and the transition after it, which drops nothing.
            drop_path_rates=[
                rate for blocks, rate in zip(stages, rates, strict=True) for _ in range(blocks + 1)
            ][:-1],
            head_drop_rate=head_drop_rate,
            token_drop_rate=token_drop_rate,
            remat=remat,
            scan_layers=False,  # no two blocks are of one width
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        layers: list[nnx.Module] = []
        dim = self.embed_dim
        for stage, blocks in enumerate(stages):
            if stage:
                layers.append(Transition(dim, dim // 2, **self.types, rngs=rngs))
                dim //= 2
            for _ in range(blocks):
                layers.append(
                    DenseBlock(
                        dim,
                        num_heads,
                        growth_rate,
                        mlp_ratio=check_number("mlp_ratio", mlp_ratio, above=0),
                        qkv_bias=check_bool("qkv_bias", qkv_bias),
                        qk_scale=qk_scale,
                        qk_norm=False,
                        init_values=None,
                        norm_eps=self.norm_eps,
                        drop_rate=drop_rate,
                        attn_drop_rate=attn_drop_rate,
                        **self.types,
                        rngs=rngs,
                    )
                )
                dim += growth_rate
        self.blocks = stack_layers(layers, scan=False)
        self.build_head(dim, rngs)
