"""Colour operations with the pixels of PIL's `ImageEnhance`, and torchvision's colour jitter.

Each enhancement blends an image with a degenerate one: black, its mean grey, its grey version or a
smoothed one. A factor of 1 leaves the image as it is, one above 1 leads away from the degenerate.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key, UInt8


def blend(
    degenerate: UInt8[Array, "..."], image: UInt8[Array, "..."], factor: Float32[Array, ""]
) -> UInt8[Array, "..."]:
    """`PIL.Image.blend(degenerate, image, factor)`: degenerate + factor (image - degenerate).

    Clipped to bytes, the fraction cut off. As PIL computes it: in float32, the product rounded
    before the sum.
    """
    difference = image.astype(jnp.float32) - degenerate.astype(jnp.float32)
    # A compiler may merge a product and a sum, and then rounds once. Of two halves of the factor
    # both products are exact, so that it does not matter whether it does.
    bits = jax.lax.bitcast_convert_type(factor, jnp.int32)
    upper = jax.lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    product = upper * difference + (factor - upper) * difference
    return jnp.clip(degenerate.astype(jnp.float32) + product, 0.0, 255.0).astype(jnp.uint8)


def grayscale(image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 1"]:
    """`PIL.Image.convert("L")`: ITU-R 601 luma, in 16-bit fixed point."""
    weights = (19595, 38470, 7471)
    luma = jnp.int32(1 << 15)
    for channel, weight in enumerate(weights):
        luma = luma + image[:, :, channel].astype(jnp.int32) * weight
    return (luma >> 16).astype(jnp.uint8)[:, :, None]


def mean_gray(image: UInt8[Array, "H W 3"]) -> UInt8[Array, ""]:
    """The mean of the grey version, rounded half up; of at most 4 million pixels."""
    pixels = image.shape[0] * image.shape[1]
    total = grayscale(image).astype(jnp.int32).sum(dtype=jnp.int32)
    return ((2 * total + pixels) // (2 * pixels)).astype(jnp.uint8)


def smooth(image: UInt8[Array, "H W C"]) -> UInt8[Array, "H W C"]:
    """PIL's filter `SMOOTH`: 3 x 3, the centre 5/13, its neighbours 1/13; edges stay as they are.

    PIL's float32 sums are near no boundary of its rounding, so that integers give the same.
    """
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    inner = ((2 * total + 13) // 26).astype(jnp.uint8)
    return image.at[1:-1, 1:-1].set(inner)


def adjust_brightness(
    image: UInt8[Array, "H W C"], factor: Float32[Array, ""]
) -> UInt8[Array, "H W C"]:
    """`ImageEnhance.Brightness`: 0 is black."""
    return blend(jnp.zeros_like(image), image, factor)


def adjust_contrast(
    image: UInt8[Array, "H W 3"], factor: Float32[Array, ""]
) -> UInt8[Array, "H W 3"]:
    """`ImageEnhance.Contrast`: 0 is the mean grey everywhere."""
    return blend(jnp.broadcast_to(mean_gray(image), image.shape), image, factor)


def adjust_saturation(
    image: UInt8[Array, "H W 3"], factor: Float32[Array, ""]
) -> UInt8[Array, "H W 3"]:
    """`ImageEnhance.Color`: 0 is the grey version."""
    return blend(jnp.broadcast_to(grayscale(image), image.shape), image, factor)


def adjust_sharpness(
    image: UInt8[Array, "H W C"], factor: Float32[Array, ""]
) -> UInt8[Array, "H W C"]:
    """`ImageEnhance.Sharpness`: 0 is smoothed, 2 sharpened."""
    return blend(smooth(image), image, factor)


def random_color_jitter(
    key: Key[Array, ""], image: UInt8[Array, "H W 3"], strength: float
) -> UInt8[Array, "H W 3"]:
    """Brightness, contrast and saturation by random factors, in random order.

    torchvision's `ColorJitter(strength, strength, strength)`: each factor is uniform from
    max(0, 1 - strength) to 1 + strength. As in timm, the hue stays.
    """
    order_key, factor_key = jax.random.split(key)
    low = max(0.0, 1 - strength)
    factors = jax.random.uniform(factor_key, (3,), jnp.float32, low, 1 + strength)
    order = jax.random.permutation(order_key, jnp.arange(3, dtype=jnp.int32))

    def adjust(
        image: UInt8[Array, "H W 3"], which: Int32[Array, ""]
    ) -> tuple[UInt8[Array, "H W 3"], None]:
        is_brightness: Bool[Array, ""] = which == 0
        degenerate = jnp.where(which == 2, grayscale(image), mean_gray(image))
        degenerate = jnp.where(is_brightness, jnp.uint8(0), degenerate)
        return blend(jnp.broadcast_to(degenerate, image.shape), image, factors[which]), None

    return jax.lax.scan(adjust, image, order)[0]
