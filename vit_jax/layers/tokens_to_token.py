"""T2T's token module: three soft splits, the first two followed by a layer that re-structures.

Yuan et al. 2021, "Tokens-to-Token ViT" (2101.11986), section 3.1.
"""

from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float, Key

from vit_jax.layers.checks import check_choice, check_int
from vit_jax.layers.dropout import split_key
from vit_jax.layers.initializers import uniform_bias, uniform_fan_in, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.performer import TokenPerformer
from vit_jax.layers.token_transformer import TokenTransformer
from vit_jax.layers.unfold import SoftSplit, window_filters, window_grid

TOKENS_TYPES = ("performer", "transformer", "convolution")
# (kernel, stride, padding) of the three soft splits
GEOMETRY = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


def token_grids(img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the tokens after each soft split of an image of (height, width)."""
    grids, size = [], img_size
    for kernel, stride, padding in GEOMETRY:
        size = window_grid(size, (kernel, kernel), (stride, stride), (padding, padding))
        grids.append(size)
    return grids


class TokensToToken(nnx.Module):
    """Images to tokens through soft splits and a layer of attention after each of the first two.

    Args:
      img_size: (height, width) in pixels, any that a window fits.
      tokens_type: "performer", "transformer", or "convolution": one convolution in the place of
        each soft split and what follows it, nothing between them.
      in_chans: channels of the image.
      embed_dim: width of the tokens; token_dim: inside.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout in the attention layers.
      kernel_init: of every Linear.

    Attributes:
      token_dim: width of the tokens inside.
      grid_size: rows and columns of the tokens; num_patches: their number.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        tokens_type: str,
        in_chans: int,
        embed_dim: int,
        token_dim: int,
        *,
        norm_eps: float,
        drop_rate: float,
        kernel_init: Initializer,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.tokens_type = check_choice("tokens_type", tokens_type, TOKENS_TYPES)
        token_dim = self.token_dim = check_int("token_dim", token_dim, least=1)
        self.grids = token_grids(img_size)
        self.grid_size = self.grids[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]

        if tokens_type == "convolution":

            def conv(in_dim: int, out_dim: int, kernel: int, stride: int, padding: int) -> nnx.Conv:
                return nnx.Conv(
                    in_dim,
                    out_dim,
                    kernel_size=(kernel, kernel),
                    strides=stride,
                    padding=padding,
                    kernel_init=uniform_fan_in,
                    bias_init=uniform_bias(in_dim * kernel * kernel),
                    **types,
                )

            self.soft_split0 = conv(in_chans, token_dim, *GEOMETRY[0])
            self.soft_split1 = conv(token_dim, token_dim, *GEOMETRY[1])
            self.project = conv(token_dim, embed_dim, *GEOMETRY[2])
            return

        layer = TokenPerformer if tokens_type == "performer" else TokenTransformer

        def attention(dim: int) -> nnx.Module:
            return layer(
                dim,
                token_dim,
                norm_eps=norm_eps,
                drop_rate=drop_rate,
                kernel_init=kernel_init,
                **types,
            )

        self.soft_split0, self.soft_split1, self.soft_split2 = (
            SoftSplit(*geometry) for geometry in GEOMETRY
        )
        (first, _, _), (second, _, _), (third, _, _) = GEOMETRY
        self.attention1 = attention(in_chans * first**2)
        self.attention2 = attention(token_dim * second**2)
        self.project = Linear(
            token_dim * third**2, embed_dim, kernel_init=kernel_init, bias_init=zeros, **types
        )

    def pixel_filters(self) -> Float[Array, "height width channels out_dim"]:
        """What weighs the pixels of a window of the first soft split.

        Of an attention layer the queries', keys' and values' Linear behind the factors of its
        LayerNorm, whose own normalisation is left out; else the first convolution.
        """
        if self.tokens_type == "convolution":
            first: Any = self.soft_split0
            return first.kernel[...]
        layer: Any = self.attention1
        linear = layer.kqv if self.tokens_type == "performer" else layer.attn.qkv
        window = GEOMETRY[0][0]
        matrix = layer.norm1.scale[...].reshape(-1, 1) * linear.kernel[...]
        return window_filters(matrix, matrix.shape[0] // window**2, (window, window))

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch tokens dim"]:
        batch = images.shape[0]
        if self.tokens_type == "convolution":
            x = self.project(self.soft_split1(self.soft_split0(images)))
            return x.reshape(batch, -1, x.shape[-1])

        def as_image(tokens: jax.Array, grid: tuple[int, int]) -> jax.Array:
            return tokens.reshape(batch, *grid, -1)

        key1, key2 = split_key(key, 2)
        x = self.attention1(self.soft_split0(images), key=key1)
        x = self.attention2(self.soft_split1(as_image(x, self.grids[0])), key=key2)
        return self.project(self.soft_split2(as_image(x, self.grids[1])))
