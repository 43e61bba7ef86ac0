"""T2T-ViT with dense connections: each block appends features to the tokens.

Yuan et al. 2021 (2101.11986), section 3.2, after DenseNet (1608.06993), and the release of its
authors.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.block import Block
from vit_jax.layers.checks import check_int
from vit_jax.layers.dropout import drop_path_rates
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.mlp import gelu
from vit_jax.layers.stack import stack_layers
from vit_jax.models.base import Variant
from vit_jax.models.config import check_widths, checked
from vit_jax.models.t2t_vit import PREPROCESSING, TokensToTokenConfig, TokensToTokenModel

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
        *context: jax.Array,
        drop_path_rate: float | Float[Array, ""] = 0.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens grown"]:
        new = super().__call__(x, *context, drop_path_rate=drop_path_rate, key=key)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2TViTDenseConfig(TokensToTokenConfig):
    """The fields of `T2TViTDense`; the common ones: `DesignConfig`, `TokensToTokenConfig`.

    `embed_dim` is the width before the first block, and `num_heads` a divisor of every width that
    occurs.

    Attributes:
      growth_rate: features that a block appends.
      block_config: blocks of each stage; a transition between two stages halves the width.
    """

    embed_dim: int = 128
    num_heads: int = 8
    mlp_ratio: float = 2.0
    growth_rate: int = checked(64, check_int, least=1)
    block_config: Sequence[int] = checked((3, 6, 6, 4), check_widths)

    def drop_path_rates(self) -> tuple[float, ...]:
        """One a layer, equal inside a stage: linear, by stage, from 0 to `drop_path_rate`.

        The layers of a stage are its blocks, and the transition after it, which drops nothing.
        """
        rates = drop_path_rates(self.drop_path_rate, len(self.block_config))
        stages = zip(self.block_config, rates, strict=True)
        return tuple(rate for blocks, rate in stages for _ in range(blocks + 1))[:-1]


class T2TViTDense(TokensToTokenModel[T2TViTDenseConfig]):
    """T2T-ViT with dense connections."""

    design = "t2t_vit_dense"
    config_class = T2TViTDenseConfig
    variants: ClassVar[Mapping[str, Variant]] = {"t2t_vit_dense": Variant({}, PREPROCESSING)}

    def __init__(self, config: T2TViTDenseConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        layers: list[nnx.Module] = []
        dim = config.embed_dim
        for stage, blocks in enumerate(config.block_config):
            if stage:
                layers.append(Transition(dim, dim // 2, **self.types, rngs=rngs))
                dim //= 2
            for _ in range(blocks):
                layers.append(
                    DenseBlock(
                        dim,
                        config.num_heads,
                        config.growth_rate,
                        mlp_ratio=config.mlp_ratio,
                        qkv_bias=config.qkv_bias,
                        qk_scale=config.qk_scale,
                        qk_norm=False,
                        init_values=None,
                        norm_eps=config.norm_eps,
                        drop_rate=config.drop_rate,
                        attn_drop_rate=config.attn_drop_rate,
                        **self.types,
                        rngs=rngs,
                    )
                )
                dim += config.growth_rate
        self.blocks = stack_layers(layers, scan=False)
        self.build_last_norm(dim, rngs)
