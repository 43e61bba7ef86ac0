"""Dropout and stochastic depth, keyed by their caller: a key means training, `None` evaluation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.layers.checks import check_int, check_rate


def dropped(
    x: Float[Array, "*shape"],
    rate: float | Float[Array, ""],
    key: Key[Array, ""],
    mask_shape: tuple[int, ...] | None = None,
) -> Float[Array, "*shape"]:
    """x with elements zeroed at `rate`, the others over 1 - rate.

    Args:
      mask_shape: of what is zeroed at once, broadcast to that of x; None: each element by itself.
    """
    keep_prob = 1.0 - rate
    mask = jax.random.bernoulli(key, keep_prob, x.shape if mask_shape is None else mask_shape)
    return jnp.where(mask, x / jnp.asarray(keep_prob, x.dtype), jnp.zeros((), x.dtype))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Returns `count` keys derived from `key`, or as many `None`."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class Dropout(nnx.Module):
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate).

    As `torch.nn.Dropout`. Without a key, or at rate 0, it is the identity.
    """

    def __init__(self, rate: float):
        self.rate = check_rate("a dropout rate", rate)

    def __call__(
        self, x: Float[Array, "*shape"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "*shape"]:
        if key is None or self.rate == 0.0:
            return x
        return dropped(x, self.rate, key)


def drop_path(
    x: Float[Array, "batch ..."],
    rate: float | Float[Array, ""],
    key: Key[Array, ""] | None,
) -> Float[Array, "batch ..."]:
    """Stochastic depth: drops a residual branch for whole examples (Huang et al. 2016, 1603.09382).

    Args:
      x: the branch's output.
      rate: probability of dropping it; may be traced (`scan_layers`).
      key: None means evaluation, the identity.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x
    return dropped(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """The linear decay rule: `depth` rates from 0 at the first block to `rate` at the last."""
    rate = check_rate("drop_path_rate", rate)
    depth = check_int("depth", depth, least=0)
    return tuple(rate * i / max(depth - 1, 1) for i in range(depth))
