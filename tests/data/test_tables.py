"""Table operations against PIL, to the pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.pil_images import IMAGES, noise, pil
from vit_jax.data import tables

pytestmark = pytest.mark.usefixtures("explicit_types")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def ramp_by(table: jax.Array) -> np.ndarray:
    return np.asarray(tables.apply_table(jnp.asarray(RAMP), table))[:, :, 0]


def test_tables_without_an_image_are_pils() -> None:
    ramp = pil(RAMP)
    np.testing.assert_array_equal(ramp_by(tables.invert_table()), ImageOps.invert(ramp))
    for bits in range(1, 9):
        ours = ramp_by(tables.posterize_table(jnp.int32(bits)))
        np.testing.assert_array_equal(ours, ImageOps.posterize(ramp, bits))
    assert not ramp_by(tables.posterize_table(jnp.int32(0))).any()
    for threshold in (0, 1, 26, 128, 255, 256):
        ours = ramp_by(tables.solarize_table(jnp.int32(threshold)))
        np.testing.assert_array_equal(ours, ImageOps.solarize(ramp, threshold))
    for addend in (0, 1, 99, 110, 128):
        ours = ramp_by(tables.solarize_add_table(jnp.int32(addend)))
        expected = [min(255, i + addend) if i < 128 else i for i in range(256)]
        np.testing.assert_array_equal(ours, ramp.point(expected))


@pytest.mark.parametrize("kind", IMAGES)
def test_tables_of_an_image_are_pils(kind: str) -> None:
    image = jnp.asarray(IMAGES[kind])
    spread = tables.apply_table(image, tables.autocontrast_table(image))
    np.testing.assert_array_equal(spread, ImageOps.autocontrast(pil(IMAGES[kind])))
    expected = ImageOps.equalize(pil(IMAGES[kind]))
    for by_scatter in (True, False):
        table = tables.equalize_table(image, by_scatter=by_scatter)
        np.testing.assert_array_equal(tables.apply_table(image, table), expected)


def test_autocontrast_is_pils_for_every_range_of_bytes() -> None:
    # PIL's double arithmetic falls short of exact integers, here and there.
    autocontrast = jax.jit(jax.vmap(tables.autocontrast_table))
    byte = np.arange(256, dtype=np.uint8)
    short = 0
    for lowest in range(0, 255, 6):
        highest = np.arange(lowest + 1, 256)[:, None]
        rows = np.clip(byte, lowest, highest).astype(np.uint8)  # (N, 256)
        ours = np.asarray(autocontrast(jnp.asarray(rows)[:, None, :, None]))[:, :, 0]
        for row, table in zip(rows, ours, strict=True):
            expected = np.asarray(ImageOps.autocontrast(Image.fromarray(row[None])))[0]
            np.testing.assert_array_equal(table[row], expected)
            short += expected.max() < 255
    assert short > 0  # else the test shows nothing


@pytest.mark.parametrize("size", [(1, 3), (15, 17), (16, 16), (23, 23), (200, 3)])
def test_equalize_of_few_pixels_is_pils(size: tuple[int, int]) -> None:
    for seed in range(4):
        image = noise(*size, seed=seed)
        image = image if seed % 2 else image // 9  # few values
        table = tables.equalize_table(jnp.asarray(image))
        ours = tables.apply_table(jnp.asarray(image), table)
        np.testing.assert_array_equal(ours, ImageOps.equalize(pil(image)))
