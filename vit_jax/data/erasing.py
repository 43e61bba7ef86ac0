"""Random erasing (Zhong et al., arXiv 1708.04896) with the meaning that DeiT and timm 1.0 give it.

It comes after normalisation, so that what is drawn from the standard normal distribution, and the
mean colour 0, are of the pixels' own scale.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key

from vit_jax.data.crop import Box

MODES = ("const", "rand", "pixel")

_AREA = (0.02, 1 / 3)  # of the image
_LOG_RATIO = (float(np.log(0.3)), float(np.log(1 / 0.3)))  # height over width
_ATTEMPTS = 10


def random_region(key: Key[Array, ""], height: int, width: int, probability: float) -> Box:
    """With the given probability a rectangle of 2% to 1/3 of the area, sides in ratio 0.3 to 3.3.

    Drawn up to ten times, until it is smaller than the image in both directions; else none, which
    is a height of 0.
    """
    whether, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
    heights, widths = _draw_sides(area_key, ratio_key, height * width)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    erases = jax.random.bernoulli(whether, np.float32(probability)) & fits.any()
    chosen_height, chosen_width = heights[first], widths[first]
    return Box(
        top=jax.random.randint(top_key, (), 0, height - chosen_height + 1, jnp.int32),
        left=jax.random.randint(left_key, (), 0, width - chosen_width + 1, jnp.int32),
        height=jnp.where(erases, chosen_height, 0),
        width=chosen_width,
    )


def _draw_sides(
    area_key: Key[Array, ""], ratio_key: Key[Array, ""], pixels: int
) -> tuple[Int32[Array, "10"], Int32[Array, "10"]]:
    """Heights and widths to try: areas uniform, ratios uniform in their logarithm."""
    areas = jax.random.uniform(area_key, (_ATTEMPTS,), jnp.float32, *_AREA) * pixels
    ratios = jnp.exp(jax.random.uniform(ratio_key, (_ATTEMPTS,), jnp.float32, *_LOG_RATIO))
    heights, widths = jnp.sqrt(areas * ratios), jnp.sqrt(areas / ratios)
    return jnp.round(heights).astype(jnp.int32), jnp.round(widths).astype(jnp.int32)


def erase(
    key: Key[Array, ""], image: Float[Array, "H W C"], region: Box, mode: str
) -> Float[Array, "H W C"]:
    """The image with the region filled.

    Args:
        key: of the random values.
        image: normalised.
        region: of `random_region`.
        mode: "const": 0, the mean colour; "rand": a colour from the standard normal distribution;
            "pixel": each value of each pixel from it.
    """
    height, width, channels = image.shape
    if mode == "const":
        fill = jnp.zeros((), image.dtype)
    else:
        shape = (1, 1, channels) if mode == "rand" else image.shape
        # Of one precision, so that the type of the pixels does not change what is drawn.
        fill = jax.random.normal(key, shape, jnp.float32).astype(image.dtype)
    inside = _within(height, region.top, region.height)[:, None]
    inside = inside & _within(width, region.left, region.width)[None, :]
    return jnp.where(inside[:, :, None], fill, image)


def random_erasing(
    keys: Key[Array, "B"],
    images: Float[Array, "B H W C"],
    probability: float,
    mode: str,
    *,
    one_by_one: bool = False,
) -> Float[Array, "B H W C"]:
    """Erases a random region of some of the images.

    Args:
        keys: one an image.
        images: normalised.
        probability: with which an image loses a region.
        mode: see `erase`.
        one_by_one: image after image, and nothing is computed for those that stay whole: faster
            on a CPU, where it gives the same pixels.
    """
    height, width, _ = images.shape[1:]
    region_keys, fill_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    regions = jax.vmap(lambda key: random_region(key, height, width, probability))(region_keys)

    def erase_one(
        key: Key[Array, ""], image: Float[Array, "H W C"], region: Box
    ) -> Float[Array, "H W C"]:
        return erase(key, image, region, mode)

    def erase_if_need_be(
        arguments: tuple[Key[Array, ""], Float[Array, "H W C"], Box],
    ) -> Float[Array, "H W C"]:
        key, image, region = arguments
        return jax.lax.cond(
            region.height > 0, erase_one, lambda key, image, region: image, key, image, region
        )

    if one_by_one:
        return jax.lax.map(erase_if_need_be, (fill_keys, images, regions))
    return jax.vmap(erase_one)(fill_keys, images, regions)


def _within(size: int, start: Int32[Array, ""], length: Int32[Array, ""]) -> Bool[Array, "size"]:
    position = jnp.arange(size, dtype=jnp.int32)
    return (position >= start) & (position < start + length)
