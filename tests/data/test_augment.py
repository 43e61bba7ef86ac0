"""Augmentation against PIL itself, and its randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.random import bernoulli
from PIL import Image

from tests.data.conftest import random_images
from vit_jax.data import (
    STATISTICS,
    example_keys,
    make_eval_preprocess,
    make_train_augment,
    normalize,
    open_splits,
    random_horizontal_flip,
    random_rotation,
    resize_bilinear,
    rotate,
)
from vit_jax.data.color import random_color_jitter
from vit_jax.data.crop import Box, resize_box
from vit_jax.data.erasing import random_erasing
from vit_jax.data.geometry import random_padded_crop
from vit_jax.data.randaugment import parse_rand_augment, rand_augment

MEAN, STD = STATISTICS["cifar10"]


pytestmark = pytest.mark.usefixtures("explicit_types")


def image_of(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    # No zeros, so that the filled corners of a rotation can be told from the image.
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@jax.jit
def normalized(images: jax.Array) -> jax.Array:
    return normalize(images, MEAN, STD)


def pil_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((32, 32), (72, 72)),  # seed 003
        ((8, 8), (32, 32)),
        ((100, 100), (37, 37)),  # antialiased
        ((90, 60), (30, 20)),
        ((20, 30), (50, 31)),
        ((16, 16), (16, 16)),
        ((9, 20), (30, 20)),  # one pass only
    ],
)
def test_resize_is_pils_bit_for_bit(start: tuple[int, int], end: tuple[int, int]) -> None:
    image = image_of(*start)
    ours = jax.jit(resize_bilinear, static_argnums=1)(image, end)
    np.testing.assert_array_equal(ours, pil_resize(image, *end))


def test_resize_that_changes_the_aspect_is_within_a_grey_level() -> None:
    # PIL 13 orders the two passes by size, so that the rounding between them differs.
    image = image_of(60, 30)
    ours = np.asarray(jax.jit(resize_bilinear, static_argnums=1)(image, (25, 61)))
    assert np.abs(ours.astype(int) - pil_resize(image, 25, 61)).max() <= 1


@pytest.mark.parametrize("shape", [(72, 72), (31, 58)])
def test_rotation_is_pils_pixel_for_pixel(shape: tuple[int, int]) -> None:
    image = image_of(*shape)
    rotate_jit = jax.jit(rotate)
    for angle in (0.0, 7.0, -7.0, 1.0, -1.0, 3.5, -0.25, 6.999, 0.01, 30.0, -45.0):
        expected = Image.fromarray(image).rotate(float(np.float32(angle)), Image.Resampling.NEAREST)
        ours = rotate_jit(jnp.asarray(image), jnp.float32(angle))
        np.testing.assert_array_equal(ours, np.asarray(expected), err_msg=str(angle))


def test_rotation_by_random_angles_moves_next_to_no_pixel() -> None:
    image = image_of(72, 72)
    angles = np.random.default_rng(1).uniform(-7, 7, 200).astype(np.float32)
    ours = jax.jit(jax.vmap(rotate, in_axes=(None, 0)))(jnp.asarray(image), jnp.asarray(angles))
    expected = [
        np.asarray(Image.fromarray(image).rotate(float(a), Image.Resampling.NEAREST))
        for a in angles
    ]
    # 5 pixels of 7.8 million in 1,500 angles: float32 coefficients beside PIL's double.
    assert (np.asarray(ours) != np.stack(expected)).any(-1).sum() <= 4


def test_angles_are_uniform_within_the_bound() -> None:
    # A dot far right of the centre moves along the circle: its row gives the angle.
    size = 401
    image = np.zeros((size, size, 1), np.uint8)
    image[198:203, :, 0] = 255
    keys = jax.random.split(jax.random.key(0), 600)
    turned = jax.lax.map(lambda key: random_rotation(key, jnp.asarray(image), 7.0)[:, 390, 0], keys)
    rows = (np.asarray(turned) > 0).argmax(1) + 2
    angles = np.degrees(np.arctan2(200 - rows, 190))
    assert np.abs(angles).max() < 7.2
    assert np.abs(angles).max() > 6.8
    counts, _ = np.histogram(angles, bins=4, range=(-7.2, 7.2))
    # 150 each, standard deviation 10.6
    assert np.abs(counts - 150).max() < 50


def test_half_of_the_images_are_mirrored() -> None:
    image = image_of(2, 3)
    keys = jax.random.split(jax.random.key(1), 2000)

    @jax.jit
    @jax.vmap
    def flipped(key: jax.Array) -> list[jax.Array]:
        mirror = functools.partial(random_horizontal_flip, key, jnp.asarray(image))
        return [mirror(), mirror(1.0), mirror(0.0)]

    half, every, none = map(np.asarray, flipped(keys))
    mirrored = (half == image[:, ::-1]).all((1, 2, 3))
    untouched = (half == image).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert abs(mirrored.mean() - 0.5) < 0.045  # 4 standard errors
    assert (every == image[:, ::-1]).all()
    assert (none == image).all()


def test_normalize_is_torchvisions() -> None:
    image = image_of(4, 5)
    expected = (image.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(
        STD, np.float32
    )
    ours = normalized(image)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-7)  # a rounding of values up to 2
    with pytest.raises(ValueError, match="one number for each of the 1 channels"):
        normalize(jnp.zeros((4, 5, 1), jnp.uint8), MEAN, STD)


def test_augment_is_resize_rotate_flip_normalize_in_order() -> None:
    augment = make_train_augment(24, rotation_degrees=7.0, flip=True, mean=MEAN, std=STD)
    images = random_images(6)

    @jax.jit
    def augmented_and_drawn(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = example_keys(jax.random.key(0), 0, jnp.arange(6, dtype=jnp.int32))
        rotation_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        angles = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, -7.0, 7.0))
        return augment(keys, images), angles(rotation_keys), jax.vmap(bernoulli)(flip_keys)

    batch, angles, flips = augmented_and_drawn(images)
    assert batch.shape == (6, 24, 24, 3)
    assert batch.dtype == jnp.float32
    for image, angle, flip, result in zip(images, angles, flips, batch, strict=True):
        picture = Image.fromarray(pil_resize(image, 24, 24))
        expected = np.asarray(picture.rotate(float(angle), Image.Resampling.NEAREST))
        if flip:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(result, normalized(expected), rtol=0, atol=5e-7)


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    augment = make_train_augment(48, rotation_degrees=7.0, flip=True, mean=MEAN, std=STD)
    images = random_images(1, 32).repeat(8, axis=0)

    @jax.jit
    def augmented(seed: int, epoch: int, index: jax.Array) -> jax.Array:
        keys = example_keys(jax.random.key(seed), epoch, index)
        return augment(keys, jnp.asarray(images)[: len(index)])

    def run(seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
        return np.asarray(augmented(seed, epoch, index.astype(np.int32)))

    whole = run(0, 2, np.arange(8))
    # Two angles that are close can give the same pixels.
    assert len({image.tobytes() for image in whole}) >= 5
    np.testing.assert_array_equal(run(0, 2, np.arange(8)[::-1])[::-1], whole)
    np.testing.assert_array_equal(run(0, 2, np.array([5]))[0], whole[5])
    assert not np.array_equal(run(0, 3, np.arange(8)), whole)
    assert not np.array_equal(run(1, 2, np.arange(8)), whole)


def test_evaluation_preprocess_is_resize_and_normalize() -> None:
    images = random_images(2)
    ours = jax.jit(make_eval_preprocess((12, 20), mean=MEAN, std=STD))(jnp.asarray(images))
    expected = np.stack([pil_resize(image, 12, 20) for image in images])
    np.testing.assert_allclose(ours, normalized(expected), rtol=0, atol=5e-7)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    images, keys = random_images(2), jax.random.split(jax.random.key(0), 2)
    plain = jax.jit(make_train_augment(12, mean=MEAN, std=STD))(keys, images)
    evaluated = jax.jit(make_eval_preprocess(12, mean=MEAN, std=STD))(images)
    np.testing.assert_array_equal(plain, evaluated)


def test_all_methods_follow_each_other_in_the_order_of_timm() -> None:
    augment = make_train_augment(
        24,
        padding_crop=3,
        rotation_degrees=7.0,
        flip=True,
        rand_augment="rand-m9-mstd0.5-inc1",
        random_erasing=0.5,
        mean=MEAN,
        std=STD,
        one_by_one=True,
    )
    images = jnp.asarray(random_images(6, 30))
    keys = example_keys(jax.random.key(0), 0, jnp.arange(6, dtype=jnp.int32))
    # Of the size wanted, so that nothing is rounded.
    crops = jnp.asarray([(i, 6 - i, 24, 24, i % 2) for i in range(6)], jnp.int32)

    def folded(number: int) -> jax.Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)

    def by_hand(keys: jax.Array, images: jax.Array) -> jax.Array:
        images = jax.vmap(lambda i, c: resize_box(i, Box(*c[:4]), (24, 24), c[4] == 1))(
            images, crops
        )
        images = jax.vmap(lambda k, i: random_padded_crop(k, i, 3))(folded(3), images)
        rotation_keys, flip_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        images = jax.vmap(lambda k, i: random_rotation(k, i, 7.0))(rotation_keys, images)
        images = jax.vmap(random_horizontal_flip)(flip_keys, images)
        settings = parse_rand_augment("rand-m9-mstd0.5-inc1")
        fill = [round(255 * value) for value in MEAN]
        images = rand_augment(folded(5), images, settings, fill, one_by_one=True)
        return random_erasing(folded(6), normalize(images, MEAN, STD), 0.5, "pixel")

    found = np.asarray(jax.jit(augment)(keys, images, crops))
    # A compiler may divide by the deviation in another way.
    np.testing.assert_allclose(found, jax.jit(by_hand)(keys, images), rtol=0, atol=1e-6)


def test_jitter_comes_before_normalisation() -> None:
    images, keys = random_images(4), jax.random.split(jax.random.key(0), 4)
    augment = make_train_augment(8, color_jitter=0.4, mean=MEAN, std=STD)

    @jax.jit
    @jax.vmap
    def jittered(key: jax.Array, image: jax.Array) -> jax.Array:
        return random_color_jitter(jax.random.fold_in(key, 4), image, 0.4)

    expected = jittered(keys, images)
    assert (np.asarray(expected) != images).mean() > 0.5
    found = jax.jit(augment)(keys, images)
    np.testing.assert_allclose(found, normalized(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding_crop": -1}, "padding_crop: wanted pixels, 0 or more, got -1"),
        ({"color_jitter": -0.1}, "color_jitter: wanted a strength, 0 or more, got -0.1"),
        ({"rand_augment": "rand-m99"}, "wanted a number from 0 to 10 after 'm', got 99"),
        ({"rand_augment": "rand", "color_jitter": 0.4}, "wanted one of them, since RandAugment"),
        (
            {"rand_augment": "rand", "mean": (0.5,), "std": (0.5,)},
            "wanted images of 3 channels, got 1",
        ),
        ({"random_erasing": 1.5}, "random_erasing: wanted a probability, 0 to 1, got 1.5"),
        ({"random_erasing_mode": "x"}, "wanted one of const, rand, pixel, got 'x'"),
        ({"rotation_degrees": 46.0}, "rotation_degrees must be from 0 to 45, got 46"),
        ({"rotation_degrees": -1.0}, "got -1"),
        ({"std": (0.2, 0.2, 0.0)}, "std positive"),
        ({"mean": (0.5,)}, "one number a channel"),
    ],
)
def test_bad_settings_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_train_augment(8, **{"mean": MEAN, "std": STD, **arguments})


def test_digits_statistics_are_measured() -> None:
    train = open_splits("digits").train
    images = np.stack([e["image"] for e in train.__getitems__(range(len(train)))]) / 255
    mean, std = STATISTICS["digits"]
    np.testing.assert_allclose([images.mean(), images.std()], [mean[0], std[0]], atol=5e-5)
