"""Random resized crop of images of one size: torchvision's `RandomResizedCrop`, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt8

from vit_jax.data.host_crop import RandomResizedCrop

_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle within an image, in pixels."""

    top: Int32[Array, "*B"]
    left: Int32[Array, "*B"]
    height: Int32[Array, "*B"]
    width: Int32[Array, "*B"]


def draw_sides(
    area_key: Key[Array, ""],
    ratio_key: Key[Array, ""],
    area: tuple[float, float],
    log_ratio: tuple[float, float],
    pixels: int,
) -> tuple[Int32[Array, "10"], Int32[Array, "10"]]:
    """Ten rectangles to try, of an area uniform in a range and a ratio uniform in its logarithm.

    Args:
        area_key, ratio_key: of the draws.
        area: smallest and largest, of the image's.
        log_ratio: smallest and largest logarithm of the one side over the other.
        pixels: of the image.

    Returns:
        The one side and the other, in whole pixels.
    """
    areas = jax.random.uniform(area_key, (_ATTEMPTS,), jnp.float32, *area) * pixels
    ratios = jnp.exp(jax.random.uniform(ratio_key, (_ATTEMPTS,), jnp.float32, *log_ratio))
    one, other = jnp.sqrt(areas * ratios), jnp.sqrt(areas / ratios)
    return jnp.round(one).astype(jnp.int32), jnp.round(other).astype(jnp.int32)


def random_box(key: Key[Array, ""], height: int, width: int, crop: RandomResizedCrop) -> Box:
    """Area uniform, ratio uniform in its logarithm, position uniform.

    Drawn up to ten times until the box fits; then it is the largest central one of a ratio within
    bounds.

    Args:
        key: of the draws.
        height, width: of the image, in pixels.
        crop: the ranges.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    low, high = crop.ratio
    log_ratio = float(np.log(low)), float(np.log(high))
    widths, heights = draw_sides(area_key, ratio_key, crop.scale, log_ratio, height * width)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]
    top = jax.random.randint(top_key, (), 0, height - box_height + 1, jnp.int32)
    left = jax.random.randint(left_key, (), 0, width - box_width + 1, jnp.int32)
    if width / height < low:
        central_height, central_width = round(width / low), width
    elif width / height > high:
        central_height, central_width = height, round(height * high)
    else:
        central_height, central_width = height, width
    found = fits.any()
    return Box(
        top=jnp.where(found, top, (height - central_height) // 2),
        left=jnp.where(found, left, (width - central_width) // 2),
        height=jnp.where(found, box_height, central_height),
        width=jnp.where(found, box_width, central_width),
    )


def resize_box(
    image: UInt8[Array, "H W C"], box: Box, size: tuple[int, int], cubic: Bool[Array, ""] | bool
) -> UInt8[Array, "h w C"]:
    """`PIL.Image.crop(box).resize(size, BILINEAR or BICUBIC)`; shrinking is antialiased.

    Horizontal pass, then vertical, each rounded to uint8, as `resize_bilinear`. The weights are in
    float32, where PIL's are in fixed point of 22 bits: measured, up to 0.5% of the values differ,
    by one grey level. (PIL 13 begins with the vertical pass for some sizes; around sharp edges
    bicubic values then differ by more.)

    Args:
        image: the image.
        box: what is cut out.
        size: (height, width) of the result.
        cubic: whether by Keys' cubic with a = -0.5, or else linear.
    """
    down = _weights(image.shape[0], box.top, box.height, size[0], cubic)  # (h, H)
    along = _weights(image.shape[1], box.left, box.width, size[1], cubic)  # (w, W)
    rows = _to_bytes(
        jnp.einsum("xw,hwc->hxc", along, image.astype(jnp.float32), precision="highest")
    )
    return _to_bytes(jnp.einsum("yh,hxc->yxc", down, rows.astype(jnp.float32), precision="highest"))


def random_resized_crop(
    key: Key[Array, ""],
    image: UInt8[Array, "H W C"],
    size: tuple[int, int],
    crop: RandomResizedCrop,
) -> UInt8[Array, "h w C"]:
    """A random box of the image, resized.

    Args:
        key: of the draws.
        image: the image.
        size: (height, width) of the result.
        crop: the ranges and the interpolation.
    """
    box_key, cubic_key = jax.random.split(key)
    box = random_box(box_key, image.shape[0], image.shape[1], crop)
    if crop.interpolation == "random":
        cubic = jax.random.bernoulli(cubic_key, np.float32(0.5))
    else:
        cubic = crop.interpolation == "bicubic"
    return resize_box(image, box, size, cubic)


def _to_bytes(value: Float32[Array, "..."]) -> UInt8[Array, "..."]:
    return jnp.clip(jnp.floor(value + 0.5), 0.0, 255.0).astype(jnp.uint8)


def _weights(
    in_size: int,
    start: Int32[Array, ""],
    length: Int32[Array, ""],
    out_size: int,
    cubic: Bool[Array, ""] | bool,
) -> Float32[Array, "out_size in_size"]:
    """How much of each input pixel is in each output pixel: PIL's `precompute_coeffs`."""
    scale = length.astype(jnp.float32) / out_size
    widened = jnp.maximum(scale, 1.0)
    support = jnp.where(cubic, 2.0, 1.0).astype(jnp.float32) * widened
    centre = (jnp.arange(out_size, dtype=jnp.float32)[:, None] + 0.5) * scale  # in the box
    first = jnp.maximum(jnp.floor(centre - support + 0.5), 0.0)
    last = jnp.minimum(jnp.floor(centre + support + 0.5), length.astype(jnp.float32))
    position = (jnp.arange(in_size, dtype=jnp.int32) - start).astype(jnp.float32)[None, :]
    distance = jnp.abs(position - centre + 0.5) / widened
    weights = jnp.where(cubic, _keys(distance), jnp.maximum(1.0 - distance, 0.0))
    weights = jnp.where((position >= first) & (position < last), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def _keys(distance: Float32[Array, "*S"]) -> Float32[Array, "*S"]:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))
