"""Windows and the distances inside of them, beside PyTorch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vit_jax.layers.window_attention import _unit
from vit_jax.layers.windows import (
    log_coordinates,
    shift_regions,
    window_merge,
    window_partition,
)


def test_windows_stand_image_by_image_and_row_by_row() -> None:
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(jnp.float32)
    windows = window_partition(x, (2, 3))
    assert windows.shape == (8, 6, 3)
    np.testing.assert_array_equal(windows[1], x[0, :2, 3:].reshape(6, 3))
    np.testing.assert_array_equal(windows[6], x[1, 2:, :3].reshape(6, 3))
    np.testing.assert_array_equal(window_merge(windows, (2, 3), (4, 6)), x)


def test_tokens_of_a_region_were_neighbours() -> None:
    """Two tokens of a window have one number if their distance is what it was before the shift."""
    size, window, shift = (8, 12), (4, 3), (2, 1)
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    moved = np.roll(places, (-shift[0], -shift[1]), (0, 1))
    cut = np.asarray(window_partition(jnp.asarray(moved[None], jnp.float32), window))
    regions = shift_regions(size, window, shift)
    index = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), axis=-1).reshape(-1, 2)
    for numbers, tokens in zip(regions, cut, strict=True):
        for one, other in itertools.product(range(12), repeat=2):
            is_near = (tokens[one] - tokens[other] == index[one] - index[other]).all()
            assert is_near == (numbers[one] == numbers[other])


@pytest.mark.parametrize("trained", [0, 6, 12])
def test_coordinates_are_those_of_pytorch_to_the_last_bit(trained: int) -> None:
    for side in range(1, 33):
        distances = torch.arange(1 - side, side, dtype=torch.float32)
        distances = distances / max((trained or side) - 1, 1) * 8
        want = torch.sign(distances) * torch.log2(torch.abs(distances) + 1.0) / math.log2(8)
        found = log_coordinates((side, 3), (trained or side, 3))
        assert found.dtype == np.float32
        assert found.shape == (1, 2 * side - 1, 5, 2)
        np.testing.assert_array_equal(found[0, :, 2, 0], want.numpy())
        np.testing.assert_array_equal(
            found[0, 0, :, 1], log_coordinates((3, 1), (3, 1))[0, :, 0, 0]
        )


@pytest.mark.usefixtures("x64")
def test_lengths_and_their_gradients_are_pytorchs() -> None:
    """Also of zero, and of what is shorter than 1e-12."""
    x = np.random.default_rng(0).normal(size=(4, 5)) * np.asarray([[1.0], [0.0], [1e-14], [1e-6]])
    theirs = torch.tensor(x, requires_grad=True)
    unit = torch.nn.functional.normalize(theirs, dim=-1)
    unit.pow(3).sum().backward()
    ours, gradient = jax.value_and_grad(lambda x: (_unit(x) ** 3).sum())(jnp.asarray(x))
    np.testing.assert_allclose(_unit(jnp.asarray(x)), unit.detach().numpy(), rtol=1e-14)
    assert theirs.grad is not None
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert np.isfinite(float(ours))
