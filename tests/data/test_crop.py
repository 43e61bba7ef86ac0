"""Random resized crop: pixels against PIL, boxes against the sampling written out."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.data.pil_images import IMAGES, differences, noise, pil
from vit_jax.data.crop import Box, RandomResizedCrop, random_box, random_resized_crop, resize_box

pytestmark = pytest.mark.usefixtures("explicit_types")


@pytest.mark.parametrize("cubic", [False, True])
def test_boxes_are_cropped_and_resized_as_pil_does(cubic: bool) -> None:
    resize = jax.jit(lambda image, box: resize_box(image, box, (20, 24), cubic))
    kernel = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    boxes = [(0, 0, 37, 52), (3, 5, 20, 24), (10, 0, 7, 9), (36, 51, 1, 1), (0, 2, 37, 3)]
    boxes += [(1, 1, 35, 50), (5, 30, 21, 11)]
    wrong = count = 0
    for image in IMAGES.values():
        for top, left, height, width in boxes:
            box = Box(*(jnp.int32(value) for value in (top, left, height, width)))
            cropped = pil(image).crop((left, top, left + width, top + height))
            # In two calls: PIL 13 by itself begins with the vertical pass for some sizes.
            expected = cropped.resize((24, height), kernel).resize((24, 20), kernel)
            off = differences(resize(jnp.asarray(image), box), expected)
            assert off.max() <= 1
            wrong += (off > 0).sum()
            count += off.size
    # Where the exact value is half a grey level: measured, 0.45% linear and 0.01% cubic.
    assert wrong / count < (5e-4 if cubic else 0.008)


def written_out(
    height: int, width: int, crop: RandomResizedCrop, rng: random.Random
) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn as torchvision's documentation says."""
    for _ in range(10):
        area = height * width * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(math.log(crop.ratio[0]), math.log(crop.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    w, h = width, height
    if width / height < crop.ratio[0]:
        h = round(width / crop.ratio[0])
    elif width / height > crop.ratio[1]:
        w = round(height * crop.ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        pytest.param((32, 32), RandomResizedCrop(), marks=pytest.mark.slow),
        ((16, 60), RandomResizedCrop()),  # many fall back to the centre
        ((60, 16), RandomResizedCrop(scale=(0.9, 1.0))),  # all do
        ((20, 20), RandomResizedCrop(scale=(0.3, 0.8), ratio=(0.5, 3.0))),
    ],
)
def test_boxes_have_the_distribution_written_out(
    size: tuple[int, int], crop: RandomResizedCrop
) -> None:
    count = 4000
    keys = jax.random.split(jax.random.key(0), count)
    boxes = jax.jit(jax.vmap(lambda key: random_box(key, *size, crop)))(keys)
    ours = np.stack([np.asarray(field) for field in boxes], 1)
    top, left, height, width = ours.T
    assert ((top >= 0) & (height > 0) & (top + height <= size[0])).all()
    assert ((left >= 0) & (width > 0) & (left + width <= size[1])).all()
    rng = random.Random(0)
    theirs = np.array([written_out(*size, crop, rng) for _ in range(count)])
    grid = np.arange(max(size) + 1)
    for column in range(4):
        # Kolmogorov-Smirnov: 1.95 is exceeded with probability 0.001
        first, second = (
            np.searchsorted(np.sort(values[:, column]), grid, "right") for values in (ours, theirs)
        )
        assert np.abs(first - second).max() / count < 1.95 * math.sqrt(2 / count), column


def test_crop_is_the_box_drawn_with_the_kernel_drawn() -> None:
    image, size = jnp.asarray(noise(20, 20)), (10, 12)
    keys = jax.random.split(jax.random.key(0), 24)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def crops(key: jax.Array, no: jax.Array, yes: jax.Array) -> list[tuple[jax.Array, ...]]:
        box = random_box(jax.random.split(key)[0], 20, 20, RandomResizedCrop())

        def of(interpolation: str) -> jax.Array:
            crop = RandomResizedCrop(interpolation=interpolation)
            return random_resized_crop(key, image, size, crop)

        # The last bit of a sum depends on whether the kernel is known when it is compiled.
        by_kernel = [
            (of(name), resize_box(image, box, size, cubic))
            for name, cubic in (("bilinear", False), ("bicubic", True))
        ]
        either = [resize_box(image, box, size, cubic) for cubic in (no, yes)]
        return [*by_kernel, (of("random"), *either)]

    *by_kernel, (found, linear, cubic) = crops(keys, jnp.asarray(False), jnp.asarray(True))
    for ours, expected in by_kernel:
        np.testing.assert_array_equal(ours, expected)
    is_linear, is_cubic = (
        (np.asarray(found) == np.asarray(kind)).all((1, 2, 3)) for kind in (linear, cubic)
    )
    assert (is_linear ^ is_cubic).all()
    assert 4 <= is_linear.sum() <= 20
