"""Augmentation in JAX, for use inside the jitted training step: (key, image) -> image.

The operations have the meaning, and on uint8 images the very pixels, of PIL 13 as torchvision calls
it, so that a run can be set beside PyTorch's. Each takes one image (H, W, C) and is written for
`jax.vmap`. Randomness comes from (seed, epoch, index) through `example_keys`: neither the order nor
the size of batches changes what happens to an image.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32, Key, UInt8

# PIL's fixed point: resampling weights have 22 fractional bits, affine coordinates 16.
_WEIGHT_BITS = 22
_COORDINATE_BITS = 16

Augment = Callable[[Key[Array, "B"], UInt8[Array, "B H W C"]], Float[Array, "B h w C"]]
Preprocess = Callable[[UInt8[Array, "B H W C"]], Float[Array, "B h w C"]]


def example_keys(
    seed_key: Key[Array, ""], epoch: int | Int[Array, ""], index: Int32[Array, "B"]
) -> Key[Array, "B"]:
    """The augmentation key of each example, from (seed, epoch, index) alone.

    Args:
        seed_key: `jax.random.key(seed)`, or one derived from it for augmentation.
        epoch: passes over the data completed before this one.
        index: the positions of the examples in their source.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.fold_in(seed_key, epoch), index
    )


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
    height, width, _ = image.shape
    radians = angle_degrees * np.float32(np.pi / 180)
    sine = jnp.sin(radians)
    # 1 - cos without cancellation: all coefficients are near the identity's.
    versine = 2 * jnp.square(jnp.sin(radians / 2))
    one_minus_cos, sin = _fixed_point(versine), _fixed_point(sine)
    cos = (1 << _COORDINATE_BITS) - one_minus_cos
    centre_x, centre_y = width / 2 - 0.5, height / 2 - 0.5
    # PIL keeps the coordinate of output pixel (0, 0) and adds the rounded coefficients from there.
    start_x = _fixed_point(0.5 + centre_x * versine + centre_y * sine)
    start_y = _fixed_point(0.5 + centre_y * versine - centre_x * sine)
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    source_x = (start_x + cos * x - sin * y) >> _COORDINATE_BITS
    source_y = (start_y + sin * x + cos * y) >> _COORDINATE_BITS
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    flat = jnp.clip(source_y, 0, height - 1) * width + jnp.clip(source_x, 0, width - 1)
    rotated = image.reshape(height * width, -1)[flat]  # (H, W, C)
    return jnp.where(inside[:, :, None], rotated, jnp.uint8(0))


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


def normalize(
    image: UInt8[Array, "*B H W C"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*B H W C"]:
    """(image / 255 - mean) / std, as torchvision's `ToTensor` and `Normalize`.

    Args:
        image: one image or a batch.
        mean: of each channel, of pixels scaled to [0, 1].
        std: of each channel, likewise.
        dtype: of the arithmetic and the result.

    Raises:
        ValueError: mean or std has not one number for each channel.
    """
    if not len(mean) == len(std) == image.shape[-1]:
        raise ValueError(
            f"mean and std need one number for each of the {image.shape[-1]} channels, got "
            f"mean {tuple(mean)} and std {tuple(std)}"
        )
    shape = (1,) * (image.ndim - 1) + (-1,)
    centred = image.astype(dtype) / 255 - jnp.asarray(mean, dtype).reshape(shape)
    return centred / jnp.asarray(std, dtype).reshape(shape)


def make_train_augment(
    image_size: int | tuple[int, int],
    *,
    rotation_degrees: float = 0.0,
    flip: bool = False,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Augment:
    """The training augmentation of seed 003: resize, rotate, flip, normalise, in this order.

    Args:
        image_size: side, or (height, width), of the result.
        rotation_degrees: largest rotation to either side, at most 45; 0 for none.
        flip: whether to mirror half of the images.
        mean: see `normalize`.
        std: see `normalize`.
        dtype: see `normalize`.

    Returns:
        A function of (keys (B,), uint8 images (B, H, W, C)), for use under `jax.jit`.

    Raises:
        ValueError: a rotation, mean or std outside its range.
    """
    size = _size(image_size)
    _check_statistics(mean, std)
    if not 0 <= rotation_degrees <= 45:
        raise ValueError(f"rotation_degrees must be from 0 to 45, got {rotation_degrees}")

    def augment_one(key: Key[Array, ""], image: UInt8[Array, "H W C"]) -> UInt8[Array, "h w C"]:
        rotation_key, flip_key = jax.random.split(key)
        image = resize_bilinear(image, size)
        if rotation_degrees:
            image = random_rotation(rotation_key, image, rotation_degrees)
        if flip:
            image = random_horizontal_flip(flip_key, image)
        return image

    def augment(keys: Key[Array, "B"], images: UInt8[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return normalize(jax.vmap(augment_one)(keys, images), mean, std, dtype)

    return augment


def make_eval_preprocess(
    image_size: int | tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> Preprocess:
    """Resize and normalise, as in training and without its randomness.

    Args:
        image_size: side, or (height, width), of the result.
        mean: see `normalize`.
        std: see `normalize`.
        dtype: see `normalize`.

    Raises:
        ValueError: a mean or std outside its range.
    """
    size = _size(image_size)
    _check_statistics(mean, std)

    def preprocess(images: UInt8[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        return normalize(
            jax.vmap(lambda image: resize_bilinear(image, size))(images), mean, std, dtype
        )

    return preprocess


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


def _fixed_point(value: Float32[Array, ""]) -> Int32[Array, ""]:
    return jnp.floor(value * (1 << _COORDINATE_BITS) + 0.5).astype(jnp.int32)


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(
            f"mean and std need one number a channel, std positive; got mean {tuple(mean)} and "
            f"std {tuple(std)}"
        )
