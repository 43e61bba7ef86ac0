"""Colour operations against PIL, to the pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests.data.pil_images import IMAGES, noise, picture, pil
from vit_jax.data import color

pytestmark = pytest.mark.usefixtures("explicit_types")

ENHANCE = {
    "brightness": (jax.jit(color.adjust_brightness), ImageEnhance.Brightness),
    "contrast": (jax.jit(color.adjust_contrast), ImageEnhance.Contrast),
    "saturation": (jax.jit(color.adjust_saturation), ImageEnhance.Color),
    "sharpness": (jax.jit(color.adjust_sharpness), ImageEnhance.Sharpness),
}
FACTORS = (0.0, 0.1, 0.3, 0.55, 0.999, 1.0, 1.3, 1.81, 1.9, 3.7)


@pytest.mark.parametrize("name", ENHANCE)
@pytest.mark.parametrize("kind", IMAGES)
def test_enhancements_are_pils(name: str, kind: str) -> None:
    ours, theirs = ENHANCE[name]
    image = IMAGES[kind]
    enhancer = theirs(pil(image))
    for factor in FACTORS:
        expected = enhancer.enhance(float(np.float32(factor)))
        found = ours(jnp.asarray(image), jnp.float32(factor))
        np.testing.assert_array_equal(found, expected, err_msg=f"factor {factor}")


def test_blend_is_pils_for_every_pair_of_bytes() -> None:
    first, second = np.mgrid[:256, :256].astype(np.uint8)
    blend = jax.jit(color.blend)
    factors = np.random.default_rng(0).uniform(-0.5, 2.5, 40)
    for factor in (*FACTORS, *factors):
        exact = float(np.float32(factor))
        expected = Image.blend(Image.fromarray(first), Image.fromarray(second), exact)
        found = blend(jnp.asarray(first), jnp.asarray(second), jnp.float32(factor))
        np.testing.assert_array_equal(found, expected, err_msg=f"factor {factor}")


def test_gray_and_smooth_are_pils() -> None:
    grayscale, smooth = jax.jit(color.grayscale), jax.jit(color.smooth)
    for image in IMAGES.values():
        gray = np.asarray(grayscale(image))[:, :, 0]
        np.testing.assert_array_equal(gray, pil(image).convert("L"))
    for image in (noise(), noise(5, 9, 1), noise(3, 3), noise(2, 6), picture()):
        smoothed = np.asarray(smooth(image))
        if image.shape[2] == 1:
            smoothed = smoothed[:, :, 0]
        np.testing.assert_array_equal(smoothed, pil(image).filter(ImageFilter.SMOOTH))


def test_jitter_is_the_three_enhancements_in_random_order() -> None:
    image, strength = picture(12, 10), 0.4

    @jax.jit
    @jax.vmap
    def jittered(key: jax.Array) -> tuple[jax.Array, ...]:
        order_key, factor_key = jax.random.split(key)
        order = jax.random.permutation(order_key, jnp.arange(3, dtype=jnp.int32))
        factors = jax.random.uniform(factor_key, (3,), jnp.float32, 1 - strength, 1 + strength)
        return order, factors, color.random_color_jitter(key, jnp.asarray(image), strength)

    keys = jax.random.split(jax.random.key(0), 60)
    orders, drawn, found = map(np.asarray, jittered(keys))
    for order, factors, ours in zip(orders, drawn, found, strict=True):
        expected = pil(image)
        for which in order:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            expected = kind(expected).enhance(float(factors[which]))
        np.testing.assert_array_equal(ours, expected)
    assert len(set(map(tuple, orders))) == 6
    assert drawn.min() < 0.63
    assert drawn.max() > 1.37
    assert np.abs(drawn.mean(0) - 1).max() < 4 * 0.8 / np.sqrt(12 * 60)  # 4 standard errors
