"""The padded crop; rotation and flip are tested in test_augment.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.pil_images import noise
from vit_jax.data.geometry import random_padded_crop

pytestmark = pytest.mark.usefixtures("explicit_types")


def test_padded_crop_is_a_crop_of_pils_border_and_uniform() -> None:
    padding, height, width = 2, 6, 9
    image = np.maximum(noise(height, width), 1)  # no black of its own
    bordered = ImageOps.expand(Image.fromarray(image), padding)
    crops = {
        np.asarray(bordered.crop((x, y, x + width, y + height))).tobytes(): (y, x)
        for y in range(2 * padding + 1)
        for x in range(2 * padding + 1)
    }
    keys = jax.random.split(jax.random.key(0), 2500)
    crop = jax.vmap(lambda key: random_padded_crop(key, jnp.asarray(image), padding))
    found = np.asarray(jax.jit(crop)(keys))
    counts = np.zeros((2 * padding + 1, 2 * padding + 1), int)
    for one in found:
        counts[crops[one.tobytes()]] += 1
    assert abs(counts - 100).max() < 4.5 * np.sqrt(100)
