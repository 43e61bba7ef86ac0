"""Random erasing: its regions against the sampling written out, and what fills them."""

import math
import random

import jax
import numpy as np
import pytest

from vit_jax.data.crop import Box
from vit_jax.data.erasing import erase, random_erasing, random_region

pytestmark = pytest.mark.usefixtures("explicit_types")


def sampled(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
    """(top, left, height, width), drawn as the docstring of timm's RandomErasing says."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return None


@pytest.mark.parametrize(
    "size", [pytest.param((64, 64), marks=pytest.mark.slow, id="square"), (12, 40)]
)
def test_regions_have_the_distribution_of_the_sampling_written_out(size: tuple[int, int]) -> None:
    count = 4000
    keys = jax.random.split(jax.random.key(0), count)

    @jax.jit
    @jax.vmap
    def drawn(key: jax.Array) -> list[Box]:
        return [random_region(key, *size, probability) for probability in (1.0, 0.25)]

    regions, quarter = drawn(keys)
    possible = (np.asarray(regions.height) > 0).sum()
    share = (np.asarray(quarter.height) > 0).sum() / possible
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / possible)
    ours = np.stack([np.asarray(field) for field in regions], 1)
    top, left, height, width = ours.T
    assert ((top >= 0) & (top + height <= size[0])).all()
    assert ((left >= 0) & (left + width <= size[1])).all()
    rng = random.Random(0)
    theirs = np.array([region for _ in range(count) if (region := sampled(*size, rng))])
    assert abs((height > 0).mean() - len(theirs) / count) < 0.01
    ours = ours[height > 0]
    for column in range(4):
        # Kolmogorov-Smirnov: 1.95 is exceeded with probability 0.001
        grid = np.arange(max(size) + 1)
        first, second = (np.sort(values[:, column]) for values in (ours, theirs))
        distance = np.abs(
            np.searchsorted(first, grid, "right") / len(first)
            - np.searchsorted(second, grid, "right") / len(second)
        ).max()
        assert distance < 1.95 * math.sqrt(1 / len(first) + 1 / len(second)), column


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_the_region_and_nothing_else_is_filled(mode: str) -> None:
    image = np.full((40, 50, 3), 7.0, np.float32)
    region = Box(*map(np.int32, (5, 10, 30, 20)))  # type: ignore[arg-type]
    erased = jax.jit(erase, static_argnums=3)(jax.random.key(0), image, region, mode)
    inside = np.zeros((40, 50), bool)
    inside[5:35, 10:30] = True
    assert (np.asarray(erased)[~inside] == 7).all()
    values = np.asarray(erased)[inside]  # (600, 3)
    if mode == "const":
        assert (values == 0).all()
    elif mode == "rand":
        assert (values == values[0]).all()
        assert len(set(values[0])) == 3
    else:
        assert abs(values.mean()) < 4 / math.sqrt(1800)
        assert abs(values.std() - 1) < 4 / math.sqrt(2 * 1800)
        assert abs(np.corrcoef(values.T)[0, 1]) < 4 / math.sqrt(600)


def test_random_colours_are_standard_normal() -> None:
    keys = jax.random.split(jax.random.key(2), 600)
    region = Box(*map(np.int32, (0, 0, 1, 1)))  # type: ignore[arg-type]
    image = np.zeros((2, 2, 3), np.float32)
    erase_all = jax.jit(jax.vmap(erase, (0, None, None, None)), static_argnums=3)
    fills = np.asarray(erase_all(keys, image, region, "rand"))[:, 0, 0]
    assert abs(fills.mean()) < 4 / math.sqrt(1800)
    assert abs(fills.std() - 1) < 4 / math.sqrt(2 * 1800)


def test_both_forms_give_the_same_and_the_batch_does_not_matter() -> None:
    keys = jax.random.split(jax.random.key(3), 8)
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def erased(keys: jax.Array, images: jax.Array) -> list[jax.Array]:
        forms = (True, False)
        return [random_erasing(keys, images, 0.5, "pixel", one_by_one=form) for form in forms]

    whole, at_once = map(np.asarray, erased(keys, images))
    changed = (whole != images).any((1, 2, 3))
    assert 0 < changed.sum() < 8
    np.testing.assert_array_equal(whole, at_once)
    rows = np.array([2, 1, 0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(whole[rows], erased(keys[rows], images[rows])[0])
