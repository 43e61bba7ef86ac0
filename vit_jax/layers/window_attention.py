"""Attention among the tokens of a window, biased by their distance: of Swin and of Swin V2."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vit_jax.layers.attention import Attention, scaled_products
from vit_jax.layers.initializers import trunc_normal, zeros
from vit_jax.layers.linear import Linear
from vit_jax.layers.relative_bias import pair_biases, table_rows
from vit_jax.layers.windows import log_coordinates

_HIDDEN = 512  # of the continuous bias
_SMALLEST_NORM = 1e-12  # of torch.nn.functional.normalize


def _unit(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
    """x over its length, or over 1e-12 where that is more; zero has a gradient, of zero's length.

    A padded token is zero, and so is its key: the derivative of its length is taken to be 0, as in
    PyTorch.
    """
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = squared == 0
    length = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))
    return x / jnp.maximum(length, _SMALLEST_NORM)


class WindowAttention(Attention):
    """Attention within windows, its scores biased by a table of the relative positions.

    Args:
      window: rows and columns of a window.
      apart: added to the scores of tokens of different regions, see `windows.shift_regions`.
      others: see `Attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: tuple[int, int],
        apart: float = -100.0,
        rngs: nnx.Rngs,
        **fields: Any,
    ):
        super().__init__(dim, num_heads, qk_scale=None, qk_norm=False, rngs=rngs, **fields)
        self.window, self.apart = window, apart
        self.build_bias(fields["dtype"], fields["param_dtype"], rngs)

    def build_bias(self, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Sets what the bias is made of."""
        del dtype
        shape = (table_rows(self.window), self.num_heads)
        table = trunc_normal(0.02)(rngs.params(), shape, param_dtype)
        self.relative_position_bias_table = nnx.Param(table)

    def bias_of_distances(self) -> Float[Array, "distances heads"]:
        """The bias of each distance of two tokens."""
        return self.relative_position_bias_table[...]

    def similarity(
        self,
        q: Float[Array, "windows heads tokens head_dim"],
        k: Float[Array, "windows heads tokens head_dim"],
    ) -> Float[Array, "windows heads tokens tokens"]:
        """The scores before the bias, in float32 or wider."""
        return scaled_products(q, k, self.scale, self.form)

    def scores(
        self,
        q: Float[Array, "windows heads tokens head_dim"],
        k: Float[Array, "windows heads tokens head_dim"],
        *context: Int[Array, "regions tokens"],
    ) -> Float[Array, "windows heads tokens tokens"]:
        """What the softmax is taken of, in float32 or wider."""
        scores = self.similarity(q, k)
        scores = scores + pair_biases(self.bias_of_distances(), self.window).astype(scores.dtype)
        for regions in context:
            is_apart = regions[:, :, None] != regions[:, None, :]
            mask = jnp.where(is_apart, self.apart, 0.0).astype(scores.dtype)
            images = scores.reshape(-1, len(mask), *scores.shape[1:]) + mask[None, :, None]
            scores = images.reshape(-1, *scores.shape[1:])
        return scores


class CosineWindowAttention(WindowAttention):
    """Attention by the cosine of query and key, its bias a function of the distance.

    Two Linears make the bias of the distances on a logarithmic scale, so that it is there for any
    window: 16 sigmoid(bias). The keys have no bias. The learned factor of the cosine stays below
    100, the exponential of its logarithm cut at log 100 in the type of the computation, as in timm
    and transformers; the release cuts at the float32 nearest to it.

    Args:
      trained: rows and columns of the window of the distances up to 1, see `log_coordinates`.
      others: see `WindowAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, trained: tuple[int, int], **fields: Any):
        self.trained = trained
        super().__init__(dim, num_heads, k_bias=False, **fields)

    def build_bias(self, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Sets the factor of the cosine and the Linears of the bias, in float32 or wider."""
        scale = jnp.full((self.num_heads, 1, 1), math.log(10), param_dtype)
        self.logit_scale = nnx.Param(scale)
        types: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        types |= {"dtype": jnp.promote_types(dtype, jnp.float32), "kernel_init": trunc_normal(0.02)}
        self.cpb_mlp = nnx.Sequential(
            Linear(2, _HIDDEN, bias_init=zeros, **types),
            jax.nn.relu,
            Linear(_HIDDEN, self.num_heads, use_bias=False, **types),
        )

    def bias_of_distances(self) -> Float[Array, "distances heads"]:
        """The bias of each distance of two tokens."""
        places: np.ndarray = log_coordinates(self.window, self.trained)
        found = self.cpb_mlp(jnp.asarray(places))
        return 16 * jax.nn.sigmoid(found.reshape(-1, self.num_heads))

    def similarity(
        self,
        q: Float[Array, "windows heads tokens head_dim"],
        k: Float[Array, "windows heads tokens head_dim"],
    ) -> Float[Array, "windows heads tokens tokens"]:
        """The scores before the bias, in float32 or wider: a factor up to 100 takes its digits."""
        wide = jnp.promote_types(q.dtype, jnp.float32)
        factor = jnp.exp(jnp.minimum(self.logit_scale[...].astype(wide), math.log(100)))
        return scaled_products(
            _unit(q.astype(wide)), _unit(k.astype(wide)), factor[None], self.form
        )
