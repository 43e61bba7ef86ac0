"""Augmentation in JAX, for use inside the jitted training step: (key, image) -> image.

The operations have the meaning, and on uint8 images the very pixels, of PIL 13 as torchvision calls
it, so that a run can be set beside PyTorch's. Each takes one image (H, W, C) and is written for
`jax.vmap`. Randomness comes from (seed, epoch, index) through `example_keys`: neither the order nor
the size of batches changes what happens to an image.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int32, Key, UInt8

from vit_jax.data import erasing, randaugment
from vit_jax.data.color import random_color_jitter
from vit_jax.data.crop import Box, resize_box
from vit_jax.data.geometry import random_horizontal_flip, random_padded_crop, random_rotation
from vit_jax.data.resize import resize_bilinear

# What an image's key is folded with for each method: 0 and 1 would be the halves of its split,
# which the rotation and the flip have; 2 is free, since other numbers would change old runs.
_PADDED_CROP, _COLOR_JITTER, _RAND_AUGMENT, _ERASING = range(3, 7)

# The last argument is of `RandomResizedCrop`, see `make_train_augment`.
AugmentPixels = Callable[
    [Key[Array, "B"], UInt8[Array, "B H W C"], Int32[Array, "B 5"] | None],
    UInt8[Array, "B h w C"],
]
FinishImages = Callable[[Key[Array, "B"], UInt8[Array, "B h w C"]], Float[Array, "B h w C"]]
Preprocess = Callable[[UInt8[Array, "B H W C"]], Float[Array, "B h w C"]]


@dataclasses.dataclass(frozen=True)
class TrainAugment:
    """The training augmentation in two halves, so that images may move between them as uint8.

    Attributes:
        pixels: (keys (B,), images (B, H, W, C), crops (B, 5) or None for the whole images) to
            images of the final size.
        finished: (keys (B,), images) to what the model takes: normalised, with erased rectangles.
    """

    pixels: AugmentPixels
    finished: FinishImages

    def __call__(
        self,
        keys: Key[Array, "B"],
        images: UInt8[Array, "B H W C"],
        crops: Int32[Array, "B 5"] | None = None,
    ) -> Float[Array, "B h w C"]:
        """Both halves; `crops` is `batch["crop"]` of `train_batches`."""
        return self.finished(keys, self.pixels(keys, images, crops))


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
    padding_crop: int = 0,
    rotation_degrees: float = 0.0,
    flip: bool = False,
    color_jitter: float = 0.0,
    rand_augment: str | None = None,
    rand_augment_interpolation: str = "random",
    random_erasing: float = 0.0,
    random_erasing_mode: str = "pixel",
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
    one_by_one: bool = False,
    by_products: bool = False,
) -> TrainAugment:
    """The training augmentation: each method that is asked for, in the order of the arguments.

    Resize (or crop and resize), padded crop, rotation, flip, colour jitter or RandAugment,
    normalisation, random erasing: the order of timm 1.0's `create_transform`, in which seed 003
    does its resize, rotation and flip too.

    Args:
        image_size: side, or (height, width), of the result.
        padding_crop: pixels, see `geometry.random_padded_crop`; 0 for none.
        rotation_degrees: largest rotation to either side, at most 45; 0 for none.
        flip: whether to mirror half of the images.
        color_jitter: strength, see `color.random_color_jitter`; 0 for none.
        rand_augment: such as "rand-m9-mstd0.5-inc1", see `randaugment`; None or empty for none.
            What it brings in from outside has the mean colour.
        rand_augment_interpolation: of its geometric operations: "bilinear", "bicubic", or
            "random", either for each.
        random_erasing: probability, see `erasing`; 0 for none.
        random_erasing_mode: "const", "rand" or "pixel".
        mean: see `normalize`.
        std: see `normalize`.
        dtype: see `normalize`.
        one_by_one: whether images go through RandAugment and random erasing one after another:
            far faster on a CPU, slower on all else. Both forms make the same uint8 pixels; the
            last bit of a normalised value may differ.
        by_products: see `randaugment.apply`: for TPUs.

    Returns:
        A function of (keys (B,), uint8 images (B, H, W, C), crops (B, 5) or None for the whole
        images), for use under `jax.jit`.

    Raises:
        ValueError: an argument outside its range, or methods that exclude each other.
    """
    size = _size(image_size)
    _check_statistics(mean, std)
    if not 0 <= rotation_degrees <= 45:
        raise ValueError(f"rotation_degrees must be from 0 to 45, got {rotation_degrees}")
    if padding_crop < 0:
        raise ValueError(f"padding_crop: wanted pixels, 0 or more, got {padding_crop}")
    if color_jitter < 0:
        raise ValueError(f"color_jitter: wanted a strength, 0 or more, got {color_jitter}")
    if not 0 <= random_erasing <= 1:
        raise ValueError(f"random_erasing: wanted a probability, 0 to 1, got {random_erasing}")
    if random_erasing_mode not in erasing.MODES:
        raise ValueError(
            f"random_erasing_mode: wanted one of {', '.join(erasing.MODES)}, got "
            f"{random_erasing_mode!r}"
        )
    if color_jitter and rand_augment:
        raise ValueError(
            "color_jitter and rand_augment: wanted one of them, since RandAugment changes colours "
            f"itself, got {color_jitter} and {rand_augment!r}"
        )
    if (color_jitter or rand_augment) and len(mean) != 3:
        raise ValueError(
            f"color_jitter and rand_augment: wanted images of 3 channels, got {len(mean)}"
        )
    settings = None
    if rand_augment:
        settings = randaugment.parse_rand_augment(rand_augment, rand_augment_interpolation)
    fill = [min(255, round(255 * value)) for value in mean]

    def augment_one(
        key: Key[Array, ""], image: UInt8[Array, "H W C"], crop: Int32[Array, "5"] | None
    ) -> UInt8[Array, "h w C"]:
        rotation_key, flip_key = jax.random.split(key)
        if crop is None:
            image = resize_bilinear(image, size)
        else:
            top, left, height, width, kernel = crop
            image = resize_box(image, Box(top, left, height, width), size, kernel == 1)
        if padding_crop:
            padded_key = jax.random.fold_in(key, _PADDED_CROP)
            image = random_padded_crop(padded_key, image, padding_crop)
        if rotation_degrees:
            image = random_rotation(rotation_key, image, rotation_degrees)
        if flip:
            image = random_horizontal_flip(flip_key, image)
        if color_jitter:
            jitter_key = jax.random.fold_in(key, _COLOR_JITTER)
            image = random_color_jitter(jitter_key, image, color_jitter)
        return image

    def pixels(
        keys: Key[Array, "B"],
        images: UInt8[Array, "B H W C"],
        crops: Int32[Array, "B 5"] | None,
    ) -> UInt8[Array, "B h w C"]:
        images = jax.vmap(augment_one)(keys, images, crops)
        if settings is not None:
            keys_here = _fold_in(keys, _RAND_AUGMENT)
            forms = {"one_by_one": one_by_one, "by_products": by_products}
            images = randaugment.rand_augment(keys_here, images, settings, fill, **forms)
        return images

    def finished(keys: Key[Array, "B"], images: UInt8[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        normalized = normalize(images, mean, std, dtype)
        if random_erasing:
            normalized = erasing.random_erasing(
                _fold_in(keys, _ERASING),
                normalized,
                random_erasing,
                random_erasing_mode,
                one_by_one=one_by_one,
            )
        return normalized

    return TrainAugment(pixels, finished)


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


def _fold_in(keys: Key[Array, "B"], number: int) -> Key[Array, "B"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise ValueError(
            f"mean and std need one number a channel, std positive; got mean {tuple(mean)} and "
            f"std {tuple(std)}"
        )
