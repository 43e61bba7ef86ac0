"""Overlapping windows against torch.nn.Unfold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests import golden
from tests.tiers import mostly_slow
from vit_jax.layers.unfold import SoftSplit, extract_patches, unfold, window_grid

CASES = golden.load("prim_unfold").spec["cases"]
# kernel, stride, padding, size: all but the first of each are the window's height and width.
WINDOWS = [
    ((7, 7), (4, 4), (2, 2), (16, 16)),
    ((7, 7), (4, 4), (2, 2), (9, 22)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (8, 5)),
    ((4, 4), (4, 4), (0, 0), (12, 8)),
    ((1, 1), (1, 1), (0, 0), (3, 2)),
    ((2, 5), (3, 1), (0, 2), (11, 6)),
    ((5, 2), (1, 3), (2, 0), (7, 8)),
    ((2, 2), (5, 4), (0, 0), (13, 11)),  # pixels between the windows are left out
]


@pytest.mark.parametrize("name", [name for name, _ in CASES])
def test_fixture(name: str) -> None:
    """Each value is the number of the pixel that it comes from."""
    case, want = dict(CASES)[name], golden.load("prim_unfold").arrays[name]
    pixels = np.arange(1, 1 + np.prod(case["input"]), dtype=np.float32).reshape(case["input"])
    kernel, stride, padding = ((case[key],) * 2 for key in ("kernel", "stride", "padding"))
    compiled = jax.jit(
        functools.partial(unfold, kernel_size=kernel, stride=stride, padding=padding)
    )
    got = compiled(pixels.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(got, want.swapaxes(1, 2))


CASES_OF_TORCH = [(window, channels) for window in WINDOWS for channels in (1, 3, 4)]


@pytest.mark.parametrize(
    ("window", "channels"),
    mostly_slow(CASES_OF_TORCH, [*[(window, 3) for window in WINDOWS], *CASES_OF_TORCH[:3:2]]),
)
def test_equals_torch_with_its_gradient(window, channels: int) -> None:
    """Bit for bit; the gradient, a sum of at most a window's pixels, to the order of the sum."""
    kernel, stride, padding, size = window
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, channels, *size)).astype(np.float32)
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    want = F.unfold(torch.from_numpy(images), **options).numpy()
    direction = generator.normal(size=want.shape).astype(np.float32)

    @jax.jit
    def both(x, direction):
        tokens, pull = jax.vjp(lambda x: unfold(x, kernel, stride, padding), x)
        return tokens, *pull(direction)

    got, gradient = both(images.transpose(0, 2, 3, 1), direction.swapaxes(1, 2))
    np.testing.assert_array_equal(got, want.swapaxes(1, 2))
    want = F.fold(torch.from_numpy(direction), size, **options).numpy()
    np.testing.assert_allclose(gradient, want.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
def test_grid(window) -> None:
    kernel, stride, padding, size = window
    rows, columns = window_grid(size, kernel, stride, padding)
    ones = torch.ones(1, 1, *size)
    count = F.unfold(ones, kernel, stride=stride, padding=padding).shape[-1]
    assert rows * columns == count
    assert columns == window_grid((kernel[0], size[1]), kernel, stride, (0, padding[1]))[1]


def test_soft_split() -> None:
    split = SoftSplit(7, stride=4, padding=2)
    images = np.random.default_rng(0).normal(size=(2, 18, 30, 3)).astype(np.float32)
    assert split.grid((18, 30)) == (4, 7)
    want, got = jax.jit(lambda x: (unfold(x, (7, 7), (4, 4), (2, 2)), split(x)))(images)
    assert want.shape == (2, 28, 147)
    np.testing.assert_array_equal(got, want)


def test_patches_are_windows_side_by_side() -> None:
    images = np.random.default_rng(0).normal(size=(2, 6, 20, 3)).astype(np.float32)
    size = (3, 5)
    want, got = jax.jit(lambda x: (unfold(x, size, size, (0, 0)), extract_patches(x, size)))(images)
    np.testing.assert_array_equal(got, want)


def test_an_image_below_a_window_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"2x9.*smaller than a window.*7"):
        unfold(jnp.zeros((1, 2, 9, 3)), (7, 7), (4, 4), (2, 2))
