"""Affine maps of images with interpolation, as `PIL.Image.transform(size, AFFINE, ...)` makes them.

A map tells where each pixel of the result comes from. It is held in fixed point, so that which
pixel that is, and which lie outside, do not depend on how a compiler rounds; the interpolation is
in float32 where PIL's is in double. Both then cut off the fraction, and where the exact value is a
whole number the last bit decides: of random maps 4 values in 100,000 differ by one grey level, of
those by round numbers up to a tenth.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8, UInt32

Interpolation = Literal["nearest", "bilinear", "bicubic"]

# Source of pixel (x, y): (x0 + xx x + xy y, y0 + yx x + yy y), in units of 2**-coordinate_bits.
AffineMap = Int32[Array, "6"]

_NEAREST_BITS = 16  # PIL's own fixed point with nearest neighbour; it has none otherwise


def coordinate_bits(height: int, width: int, interpolation: str = "bilinear") -> int:
    """Fractional bits of the coordinates of an image of this size.

    As many as an int32 holds beside twice the longer side; 16 with nearest neighbour, as in PIL.

    Raises:
        ValueError: the image has 16,384 pixels or more on a side.
    """
    if max(height, width) >= 1 << 14:
        raise ValueError(f"wanted less than 16,384 pixels on a side, got {height} x {width}")
    if interpolation == "nearest":
        return _NEAREST_BITS
    # A fraction of 23 bits and its sign are exact in float32.
    return min(23, 31 - (2 * max(height, width) - 1).bit_length())


def identity_map(bits: int) -> AffineMap:
    """Every pixel from itself."""
    return _map(bits)


def shear_x_map(factor: Float32[Array, ""], bits: int) -> AffineMap:
    """Row y comes from `factor` * y pixels further right: PIL's matrix (1, factor, 0, 0, 1, 0).

    Args:
        factor: without unit.
        bits: of `coordinate_bits`.
    """
    return _map(bits, x0=0.5 * factor, xy=factor)


def shear_y_map(factor: Float32[Array, ""], bits: int) -> AffineMap:
    """Column x comes from `factor` * x pixels further down; see `shear_x_map`."""
    return _map(bits, y0=0.5 * factor, yx=factor)


def translate_x_map(pixels: Float32[Array, ""], bits: int) -> AffineMap:
    """Every pixel comes from so many further right: PIL's matrix (1, 0, pixels, 0, 1, 0)."""
    return _map(bits, x0=pixels)


def translate_y_map(pixels: Float32[Array, ""], bits: int) -> AffineMap:
    """Every pixel comes from so many further down."""
    return _map(bits, y0=pixels)


def rotate_map(angle_degrees: Float32[Array, ""], height: int, width: int, bits: int) -> AffineMap:
    """Counter-clockwise about the image's centre: `PIL.Image.rotate`.

    Args:
        angle_degrees: from -45 to 45, where float32 keeps its accuracy.
        height, width: of the image, in pixels.
        bits: of `coordinate_bits`.
    """
    radians = angle_degrees * np.float32(np.pi / 180)
    sine = jnp.sin(radians)
    # 1 - cos without cancellation: all coefficients are near the identity's.
    versine = 2 * jnp.square(jnp.sin(radians / 2))
    centre_x, centre_y = width / 2 - 0.5, height / 2 - 0.5
    return _map(
        bits,
        x0=centre_x * versine + centre_y * sine,
        xx=-versine,
        xy=-sine,
        y0=centre_y * versine - centre_x * sine,
        yx=sine,
        yy=-versine,
    )


def affine(
    image: UInt8[Array, "H W C"],
    affine_map: AffineMap,
    interpolation: Interpolation,
    fill: Sequence[int],
) -> UInt8[Array, "H W C"]:
    """`PIL.Image.transform` or `rotate`: the image with its pixels where the map has them from.

    Args:
        image: at most 4 channels.
        affine_map: made with the bits of `coordinate_bits` for this size and interpolation.
        interpolation: "nearest", "bilinear" (2 x 2 pixels) or "bicubic" (4 x 4, a = -1: PIL's
            transforms differ in this from its resizing).
        fill: colour of what lies outside.
    """
    height, width, _ = image.shape
    bits = coordinate_bits(height, width, interpolation)
    x, y = _sources(affine_map, height, width)
    if interpolation == "nearest":  # one read a pixel: packing would not pay
        inner = image.reshape(height * width, -1)[_index(y >> bits, x >> bits, height, width)]
        inside = _is_inside(x, y, height, width, bits)[:, :, None]
        return jnp.where(inside, inner, jnp.asarray(fill, jnp.uint8))
    packed = _pack(image)
    inner = _interpolated(packed, x, y, bits, image.shape[2], interpolation == "bicubic")
    return _unpack(_filled(inner, x, y, (height, width), bits, fill), image.shape[2])


def affine_either(
    image: UInt8[Array, "H W C"],
    affine_map: AffineMap,
    cubic: Bool[Array, ""],
    fill: Sequence[int],
) -> UInt8[Array, "H W C"]:
    """`affine`, bicubic where `cubic` and else bilinear; computes both."""
    height, width, channels = image.shape
    bits = coordinate_bits(height, width)
    x, y = _sources(affine_map, height, width)
    packed = _pack(image)
    inner = _interpolated(packed, x, y, bits, channels, cubic)
    return _unpack(_filled(inner, x, y, (height, width), bits, fill), channels)


def _map(
    bits: int,
    *,
    x0: Float32[Array, ""] | float = 0.0,
    xx: Float32[Array, ""] | float = 0.0,
    xy: Float32[Array, ""] | float = 0.0,
    y0: Float32[Array, ""] | float = 0.0,
    yx: Float32[Array, ""] | float = 0.0,
    yy: Float32[Array, ""] | float = 0.0,
) -> AffineMap:
    """From what the coefficients differ from the identity's by, at pixel centres."""
    off = jnp.stack([jnp.asarray(value, jnp.float32) for value in (x0, xx, xy, y0, yx, yy)])
    one, half = 1 << bits, 1 << (bits - 1)
    identity = jnp.asarray([half, one, 0, half, 0, one], jnp.int32)
    return identity + jnp.floor(off * one + 0.5).astype(jnp.int32)


def _sources(
    affine_map: AffineMap, height: int, width: int
) -> tuple[Int32[Array, "H W"], Int32[Array, "H W"]]:
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    x0, xx, xy, y0, yx, yy = affine_map
    return x0 + xx * x + xy * y, y0 + yx * x + yy * y


def _interpolated(
    packed: UInt32[Array, "H W"],
    x: Int32[Array, "H W"],
    y: Int32[Array, "H W"],
    bits: int,
    channels: int,
    cubic: bool | Bool[Array, ""],
) -> UInt32[Array, "H W"]:
    half, below = 1 << (bits - 1), (1 << bits) - 1
    x, y = x - half, y - half  # pixel centres
    column, row = x >> bits, y >> bits
    along = (x & below).astype(jnp.float32) * np.float32(1 / (1 << bits))
    down = (y & below).astype(jnp.float32) * np.float32(1 / (1 << bits))
    # Two neighbours of the four are read for nothing only where `cubic` is known to be false.
    near = (0, 1) if cubic is False else (-1, 0, 1, 2)
    taps = [[_read(packed, row + i, column + j) for j in near] for i in near]
    result = jnp.zeros_like(packed)
    for channel in range(channels):
        rows = [
            _blend_taps([_channel(tap, channel) for tap in line], along, cubic) for line in taps
        ]
        value = _blend_taps(rows, down, cubic)
        byte = jnp.clip(value, 0.0, 255.0).astype(jnp.uint32)  # cuts the fraction off, as PIL
        result = result | byte << (8 * channel)
    return result


def _blend_taps(
    taps: Sequence[Float32[Array, "H W"]],
    fraction: Float32[Array, "H W"],
    cubic: bool | Bool[Array, ""],
) -> Float32[Array, "H W"]:
    """Between the two middle taps. In PIL's order of operations: equal taps give their value."""
    if len(taps) == 2:
        return taps[0] + (taps[1] - taps[0]) * fraction
    before, left, right, after = taps
    linear = left + (right - left) * fraction
    curve = left + fraction * (
        (right - before)
        + fraction
        * ((2 * (before - left) + right - after) + fraction * (left - before - right + after))
    )
    return jnp.where(cubic, curve, linear)


def _read(
    packed: UInt32[Array, "H W"], row: Int32[Array, "H W"], column: Int32[Array, "H W"]
) -> UInt32[Array, "H W"]:
    """The pixels there; beyond the edges, those at the edges."""
    index = _index(row, column, *packed.shape)
    return packed.reshape(-1).at[index].get(mode="promise_in_bounds")


def _index(
    row: Int32[Array, "H W"], column: Int32[Array, "H W"], height: int, width: int
) -> Int32[Array, "H W"]:
    return jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)


def _filled(
    inner: UInt32[Array, "H W"],
    x: Int32[Array, "H W"],
    y: Int32[Array, "H W"],
    size: tuple[int, int],
    bits: int,
    fill: Sequence[int],
) -> UInt32[Array, "H W"]:
    colour = sum(value << (8 * channel) for channel, value in enumerate(fill))
    return jnp.where(_is_inside(x, y, *size, bits), inner, jnp.uint32(colour))


def _is_inside(
    x: Int32[Array, "H W"], y: Int32[Array, "H W"], height: int, width: int, bits: int
) -> Bool[Array, "H W"]:
    return (x >= 0) & (x < width << bits) & (y >= 0) & (y < height << bits)


def _pack(image: UInt8[Array, "H W C"]) -> UInt32[Array, "H W"]:
    """A pixel's channels in one word: one read in place of C."""
    words = image.astype(jnp.uint32)
    packed = words[:, :, 0]
    for channel in range(1, image.shape[2]):
        packed = packed | words[:, :, channel] << (8 * channel)
    return packed


def _channel(packed: UInt32[Array, "H W"], channel: int) -> Float32[Array, "H W"]:
    return (packed >> (8 * channel) & 255).astype(jnp.float32)


def _unpack(packed: UInt32[Array, "H W"], channels: int) -> UInt8[Array, "H W C"]:
    shifts = jnp.arange(0, 8 * channels, 8, dtype=jnp.uint32)[None, None]
    return (packed[:, :, None] >> shifts & 255).astype(jnp.uint8)
