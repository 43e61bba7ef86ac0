"""Resizing with the pixels of PIL: 8-bit images, filters widened when shrinking (antialiased)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

_WEIGHT_BITS = 22  # fractional bits of PIL's fixed-point weights


def resize_bilinear(image: UInt8[Array, "H W C"], size: tuple[int, int]) -> UInt8[Array, "h w C"]:
    """`PIL.Image.resize(size, BILINEAR)`; shrinking is antialiased.

    Horizontal pass, then vertical, each in 32-bit fixed point and rounded to uint8, with pixel
    centres at half-integers: PIL's `Resample.c`. PIL 13 begins with the vertical pass for some
    sizes that shrink the height and change the aspect ratio; there we differ by one grey level.

    Args:
        image: the image.
        size: (height, width) of the result.
    """
    for axis in (1, 0):
        if image.shape[axis] != size[axis]:
            image = _resample(image, size[axis], axis)
    return image


def _resample(image: UInt8[Array, "H W C"], size: int, axis: int) -> UInt8[Array, "..."]:
    """One pass of PIL's resampling along `axis`, which becomes `size` long."""
    positions, weights = _bilinear_taps(image.shape[axis], size)
    broadcast = [1, 1, 1]
    broadcast[axis] = size
    total = jnp.full((), 1 << (_WEIGHT_BITS - 1), jnp.int32)  # rounds half up
    for tap_positions, tap_weights in zip(positions, weights, strict=True):
        pixels = jnp.take(image, tap_positions, axis=axis).astype(jnp.int32)
        total = jnp.expand_dims(total, tuple(range(3 - total.ndim))) + pixels * tap_weights.reshape(
            broadcast
        )
    # Weights are positive and sum to one, so that 32 bits suffice and no clipping is needed.
    return (total >> _WEIGHT_BITS).astype(jnp.uint8)


def _bilinear_taps(in_size: int, out_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The input positions and fixed-point weights of each output pixel: PIL's `precompute_coeffs`.

    Returns:
        positions and weights, both (taps, out_size) int32.
    """
    scale = in_size / out_size
    support = max(scale, 1.0)  # of the triangle filter, widened when shrinking
    centre = (np.arange(out_size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), in_size)
    positions = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(1.0 - np.abs((positions - centre + 0.5) / support), 0.0)
    weights[positions >= last] = 0.0
    weights /= weights.sum(axis=0)
    fixed = np.floor(0.5 + weights * (1 << _WEIGHT_BITS)).astype(np.int32)
    return np.minimum(positions, in_size - 1).astype(np.int32), fixed
