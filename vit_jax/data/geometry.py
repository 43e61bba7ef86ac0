"""Turning, mirroring and shifting images: (key, image) -> image, with the pixels of PIL."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Key, UInt8

from vit_jax.data.affine import affine, coordinate_bits


def rotate(
    image: UInt8[Array, "H W C"], angle_degrees: Float32[Array, ""]
) -> UInt8[Array, "H W C"]:
    """Rotates counter-clockwise about the centre: nearest neighbour, black outside.

    `PIL.Image.rotate` and torchvision's `rotate` on a PIL image, in the 16.16 fixed point of PIL's
    `affine_fixed`. The matrix comes from float32 here and from double there: an angle can move a
    coordinate by 2**-16 of a pixel, which changes about one pixel in a million.

    Args:
        image: the image, smaller than 16,384 pixels on a side.
        angle_degrees: from -45 to 45, where the matrix keeps its accuracy.
    """
    height, width = image.shape[:2]
    radians = angle_degrees * np.float32(np.pi / 180)
    sine = jnp.sin(radians)
    # 1 - cos without cancellation: all coefficients are near the identity's.
    versine = 2 * jnp.square(jnp.sin(radians / 2))
    bits = coordinate_bits(height, width, "nearest")
    one_minus_cos, sin = _fixed_point(versine, bits), _fixed_point(sine, bits)
    cos = (1 << bits) - one_minus_cos
    centre_x, centre_y = width / 2 - 0.5, height / 2 - 0.5
    # PIL keeps the coordinate of output pixel (0, 0) and adds the rounded coefficients from there.
    start_x = _fixed_point(0.5 + centre_x * versine + centre_y * sine, bits)
    start_y = _fixed_point(0.5 + centre_y * versine - centre_x * sine, bits)
    source = jnp.stack([start_x, cos, -sin, start_y, sin, cos])
    return affine(image, source, "nearest", (0,) * image.shape[2])


def random_rotation(
    key: Key[Array, ""], image: UInt8[Array, "H W C"], degrees: float
) -> UInt8[Array, "H W C"]:
    """`rotate` by an angle uniform in [-degrees, degrees), as torchvision's `RandomRotation`."""
    angle = jax.random.uniform(key, (), jnp.float32, -degrees, degrees)
    return rotate(image, angle)


def random_horizontal_flip(
    key: Key[Array, ""], image: UInt8[Array, "H W C"], probability: float = 0.5
) -> UInt8[Array, "H W C"]:
    """Mirrors left and right with the given probability."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def random_padded_crop(
    key: Key[Array, ""], image: UInt8[Array, "H W C"], padding: int
) -> UInt8[Array, "H W C"]:
    """Pads with black on every side and crops back to the size: torchvision's `RandomCrop`.

    Args:
        key: for the position, uniform over all (2 padding + 1)**2.
        image: the image.
        padding: pixels on each side.
    """
    height, width, channels = image.shape
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1, jnp.int32)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    start = (top, left, jnp.int32(0))
    return jax.lax.dynamic_slice(padded, start, (height, width, channels))


def _fixed_point(value: Float32[Array, ""], bits: int) -> Int32[Array, ""]:
    return jnp.floor(value * (1 << bits) + 0.5).astype(jnp.int32)
