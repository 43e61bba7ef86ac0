"""RandAugment: each operation at each magnitude against PIL, and the draws' distribution."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data.pil_images import IMAGES, differences, noise, pil
from vit_jax.data.randaugment import (
    OPERATIONS,
    Drawn,
    RandAugment,
    apply,
    draw,
    parse_rand_augment,
    rand_augment,
)

pytestmark = pytest.mark.usefixtures("explicit_types")

FILL = (124, 116, 104)
NAMES = tuple(IMAGES)
BATCH = jnp.asarray(np.stack([IMAGES[name] for name in NAMES]))


def solarize_add(image: Image.Image, addend: int) -> Image.Image:
    table = [min(255, i + addend) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else image.point([0] * 768)


def transform(matrix: Callable[[float, Image.Image], tuple]) -> Callable:
    return lambda image, amount, kernel: image.transform(
        image.size, Image.Transform.AFFINE, matrix(amount, image), kernel, fillcolor=FILL
    )


# With a level from 0 to 1 and a sign, as timm's table of arguments has them.
GEOMETRIC = {
    "rotate": (30, lambda image, v, k: image.rotate(v, k, fillcolor=FILL)),
    "shear_x": (0.3, transform(lambda v, _: (1, v, 0, 0, 1, 0))),
    "shear_y": (0.3, transform(lambda v, _: (1, 0, 0, v, 1, 0))),
    "translate_x": (0.45, transform(lambda v, image: (1, 0, v * image.width, 0, 1, 0))),
    "translate_y": (0.45, transform(lambda v, image: (1, 0, 0, 0, 1, v * image.height))),
}
ENHANCE = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def by_pil(
    name: str, image: Image.Image, magnitude: float, sign: int, cubic: bool, increasing: bool
) -> Image.Image:
    level = magnitude / 10
    if name in GEOMETRIC:
        largest, operation = GEOMETRIC[name]
        kernel = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
        return operation(image, sign * level * largest, kernel)
    if name in ENHANCE:
        factor = max(0.1, 1 + sign * level * 0.9) if increasing else level * 1.8 + 0.1
        return ENHANCE[name](image).enhance(factor)
    bits, threshold = int(level * 4), min(256, int(level * 256))
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
    return {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda image: posterize(image, bits),
        "solarize": lambda image: ImageOps.solarize(image, threshold),
        "solarize_add": lambda image: solarize_add(image, min(128, int(level * 110))),
    }[name](image)


def drawn_for_all(name: str, magnitude: float, sign: int, cubic: bool) -> Drawn:
    """The same one operation for every image of the batch."""
    shape = (len(NAMES), 1)
    return Drawn(
        operation=jnp.full(shape, OPERATIONS.index(name), jnp.int32),
        magnitude=jnp.full(shape, magnitude, jnp.float32),
        sign=jnp.full(shape, sign, jnp.float32),
        cubic=jnp.full(shape, cubic),
    )


@pytest.mark.parametrize("increasing", [True, False], ids=["inc1", "inc0"])
def test_each_operation_is_pils_at_every_magnitude(increasing: bool) -> None:
    run = jax.jit(lambda drawn: apply(BATCH, drawn, increasing, FILL, one_by_one=True))
    for name in OPERATIONS:
        for magnitude in (0, 1, 3, 5, 7.4, 8.6, 9, 9.9, 10):
            sign = -1 if magnitude in (3, 8.6) else 1
            cubic = magnitude in (1, 8.6, 9)
            ours = np.asarray(run(drawn_for_all(name, magnitude, sign, cubic)))
            for kind, found in zip(NAMES, ours, strict=True):
                exact = float(np.float32(magnitude))
                expected = by_pil(name, pil(IMAGES[kind]), exact, sign, cubic, increasing)
                off = differences(found, expected)
                message = f"{name} {magnitude} {kind}"
                if name in GEOMETRIC:
                    # As in test_affine.py; the amount too is in float32 here, in double there.
                    assert off.max() <= 1, message
                    assert (off > 0).mean() < 0.12, message
                elif name in ENHANCE:
                    # The factor itself is in float32 here and in double there.
                    assert off.max() <= 1, message
                    assert (off > 0).mean() < 0.12, message
                else:
                    assert not off.any(), message


SETTINGS = RandAugment(magnitude=9, magnitude_std=0.5, increasing=True, probability=0.9)
SMALL = np.stack([noise(8, 10, seed=i) for i in range(40)])


@functools.partial(jax.jit, static_argnames=("one_by_one", "by_products"))
def augmented(keys: jax.Array, images: jax.Array, **form: bool) -> jax.Array:
    return rand_augment(keys, images, SETTINGS, FILL, **form)


@pytest.fixture(scope="module")
def keys_and_drawn() -> tuple[jax.Array, Drawn]:
    """Of the images, and what they make of them."""
    keys = jax.random.split(jax.random.key(1), len(SMALL))
    return keys, jax.jit(jax.vmap(lambda key: draw(key, SETTINGS)))(keys)


def test_all_forms_give_the_same_pixels(keys_and_drawn: tuple[jax.Array, Drawn]) -> None:
    keys, drawn = keys_and_drawn
    assert len(np.unique(drawn.operation)) == len(OPERATIONS) + 1  # all occur
    one_by_one = augmented(keys, SMALL, one_by_one=True)
    for by_products in (False, True):
        at_once = augmented(keys, SMALL, by_products=by_products)
        np.testing.assert_array_equal(one_by_one, at_once)


def test_two_operations_follow_each_other_and_the_batch_does_not_matter(
    keys_and_drawn: tuple[jax.Array, Drawn],
) -> None:
    keys, drawn = keys_and_drawn
    whole = np.asarray(augmented(keys, SMALL, one_by_one=True))
    # In another order, and beside a few others.
    for rows in (np.arange(40)[::-1], np.arange(40) % 3 + 4):
        found = augmented(keys[rows], SMALL[rows], one_by_one=True)
        np.testing.assert_array_equal(found, whole[rows])
    one = jax.jit(lambda images, drawn: apply(images, drawn, True, FILL, one_by_one=True))
    images = SMALL
    for number in (0, 1):
        fields = (np.asarray(field)[:, number : number + 1] for field in drawn)
        images = one(images, Drawn(*fields))
    np.testing.assert_array_equal(images, whole)


def test_draws_have_the_distribution_of_the_string() -> None:
    count = 20_000
    settings = parse_rand_augment("rand-m9-mstd0.5-inc1")
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(lambda key: draw(key, settings)))(keys)
    operation = np.asarray(drawn.operation)
    assert operation.shape == (count, 2)
    done = operation < len(OPERATIONS)
    assert abs(done.mean() - 0.5) < 4 * 0.5 / math.sqrt(2 * count)
    frequency = np.bincount(operation[done], minlength=15) / done.sum()
    assert np.abs(frequency - 1 / 15).max() < 4 * math.sqrt(1 / 15 * 14 / 15 / done.sum())
    # Both draws are independent: the pairs are as frequent as the products.
    pairs = np.histogram2d(*operation.T, bins=range(17))[0] / count
    products = np.outer(*(np.bincount(column) / count for column in operation.T))
    assert np.abs(pairs - products).max() < 4.5 * math.sqrt(0.25 / count)
    magnitude = np.asarray(drawn.magnitude).ravel()
    at_top = math.erfc(2 / math.sqrt(2)) / 2  # two deviations over 9 is 10, where it is clipped
    assert abs((magnitude == 10).mean() - at_top) < 4 * math.sqrt(at_top / len(magnitude))
    assert magnitude.max() == 10
    assert abs(np.median(magnitude) - 9) < 0.02
    below = magnitude[magnitude < 9] - 9
    assert abs(np.sqrt((below**2).mean()) - 0.5) < 0.01
    for field in (drawn.sign > 0, drawn.cubic):
        assert abs(np.asarray(field).mean() - 0.5) < 4 * 0.5 / math.sqrt(2 * count)


def test_strings() -> None:
    assert parse_rand_augment("rand-m9-mstd0.5-inc1") == RandAugment(
        magnitude=9, num_ops=2, probability=0.5, magnitude_std=0.5, increasing=True
    )
    assert parse_rand_augment("rand") == RandAugment()
    assert parse_rand_augment("rand-n3-p1-inc0-m4") == RandAugment(
        magnitude=4, num_ops=3, probability=1
    )


def test_interpolation_can_be_fixed() -> None:
    kinds = [parse_rand_augment("rand", name) for name in ("bilinear", "bicubic")]
    keys = jax.random.split(jax.random.key(0), 50)
    linear, cubic = jax.jit(jax.vmap(lambda key: [draw(key, kind).cubic for kind in kinds]))(keys)
    assert not np.asarray(linear).any()
    assert np.asarray(cubic).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m9-mstd0.5", 'wanted "rand" and, each after a hyphen, any of mM .* got'),
        ("rand-m9-w0", "where 'w0' is not one of them"),
        ("rand-m9-m8", "where 'm8' is given twice"),
        ("rand-m", "where 'm' is not one of them"),
        ("rand-m11", "wanted a number from 0 to 10 after 'm', got 11 in 'rand-m11'"),
        ("rand-n0", "wanted a whole number from 1 to 15 after 'n', got 0"),
        ("rand-n1.5", "wanted a whole number from 1 to 15 after 'n', got 1.5"),
        ("rand-inc2", "wanted a whole number from 0 to 1 after 'inc', got 2"),
        ("rand-p1.1", "wanted a number from 0 to 1 after 'p', got 1.1"),
        ("augmix-m3", "such as rand-m9-mstd0.5-inc1; got 'augmix-m3'"),
    ],
)
def test_a_bad_string_is_one_clear_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rand_augment(text)


def test_a_bad_interpolation_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="wanted one of bilinear, bicubic, random, got 'cubic'"):
        parse_rand_augment("rand", "cubic")
