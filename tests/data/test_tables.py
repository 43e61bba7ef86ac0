"""Table operations against PIL, to the pixel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.pil_images import IMAGES, noise, pil
from vit_jax.data import tables

pytestmark = pytest.mark.usefixtures("explicit_types")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


@jax.jit
def ramp_by(table: jax.Array) -> jax.Array:
    return tables.apply_table(jnp.asarray(RAMP), table)[:, :, 0]


def test_tables_without_an_image_are_pils() -> None:
    ramp = pil(RAMP)
    posterize, solarize, solarize_add = (
        jax.jit(jax.vmap(table))
        for table in (tables.posterize_table, tables.solarize_table, tables.solarize_add_table)
    )
    np.testing.assert_array_equal(ramp_by(tables.invert_table()), ImageOps.invert(ramp))
    black, *posterized = posterize(np.arange(9, dtype=np.int32))
    assert not ramp_by(black).any()
    for bits, table in enumerate(posterized, start=1):
        np.testing.assert_array_equal(ramp_by(table), ImageOps.posterize(ramp, bits))
    thresholds = np.array([0, 1, 26, 128, 255, 256], np.int32)
    for threshold, table in zip(thresholds, solarize(thresholds), strict=True):
        np.testing.assert_array_equal(ramp_by(table), ImageOps.solarize(ramp, threshold))
    addends = np.array([0, 1, 99, 110, 128], np.int32)
    for addend, table in zip(addends.tolist(), solarize_add(addends), strict=True):
        expected = [min(255, i + addend) if i < 128 else i for i in range(256)]
        np.testing.assert_array_equal(ramp_by(table), ramp.point(expected))


@jax.jit
def by_tables(image: jax.Array) -> list[jax.Array]:
    """Its autocontrast, and its equalisation by all histograms, each found in both forms."""
    histograms = [tables.equalize_table(image, by=form) for form in tables.HISTOGRAMS]
    spread = tables.autocontrast_table(image)
    return [
        tables.apply_table(image, table, by_products=form)
        for table, form in itertools.product((spread, *histograms), (False, True))
    ]


@pytest.mark.parametrize("kind", IMAGES)
def test_tables_of_an_image_are_pils(kind: str) -> None:
    spread, spread_by_products, *equalized = by_tables(IMAGES[kind])
    for found in (spread, spread_by_products):
        np.testing.assert_array_equal(found, ImageOps.autocontrast(pil(IMAGES[kind])))
    for found in equalized:
        np.testing.assert_array_equal(found, ImageOps.equalize(pil(IMAGES[kind])))


def test_autocontrast_is_pils_for_every_range_of_bytes() -> None:
    # PIL's double arithmetic falls short of exact integers, here and there.
    ranges = [(low, high) for low in range(0, 255, 6) for high in range(low + 1, 256)]
    lowest, highest = np.array(ranges).T[:, :, None]
    rows = np.clip(np.arange(256), lowest, highest).astype(np.uint8)  # (N, 256)
    autocontrast = jax.jit(jax.vmap(tables.autocontrast_table))
    ours = np.asarray(autocontrast(rows[:, None, :, None]))[:, :, 0]
    short = 0
    for row, table in zip(rows, ours, strict=True):
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(row[None])))[0]
        np.testing.assert_array_equal(table[row], expected)
        short += expected.max() < 255
    assert short > 0  # else the test shows nothing


@pytest.mark.parametrize("size", [(1, 3), (15, 17), (16, 16), (23, 23), (200, 3)])
def test_equalize_of_few_pixels_is_pils(size: tuple[int, int]) -> None:
    equalize = jax.jit(lambda image: tables.apply_table(image, tables.equalize_table(image)))
    for seed in range(4):
        image = noise(*size, seed=seed)
        image = image if seed % 2 else image // 9  # few values
        np.testing.assert_array_equal(equalize(image), ImageOps.equalize(pil(image)))
