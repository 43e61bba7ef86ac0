"""Mixup and CutMix against plain NumPy, against timm's own file, and in every layout."""

import functools
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from tests.training.runs import tiny
from vit_jax.training.mixing import (
    Draw,
    Mixing,
    cutmix_box,
    draw,
    make_mixing,
    mix_batch,
    smooth_one_hot,
    symmetric_beta,
)

BOTH = Mixing(0.8, 1.0, 1.0, 0.5, num_classes=10, label_smoothing=0.1)
MIXUP = Mixing(0.8, 0.0, 1.0, 0.5, num_classes=10, label_smoothing=0.1)
CUTMIX = Mixing(0.0, 1.0, 1.0, 0.5, num_classes=10, label_smoothing=0.1)
MANY = 20_000


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 8, 11, 3)).astype(np.float32), np.array([3, 1, 4, 1, 5, 9], np.int32)


mixed_batch = jax.jit(mix_batch, static_argnums=3)


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(7), count)


def distance(shares: np.ndarray, alpha: float) -> float:
    """Kolmogorov's, times the root of the number: above 1.95 once in a thousand.

    At places that float32 tells from 0 and 1: Beta(.1, .1) has a tenth of its mass nearer to them.
    """
    places = np.linspace(1e-3, 1 - 1e-3, 999)
    found = np.searchsorted(np.sort(shares), places, side="right") / len(shares)
    wanted = scipy.stats.beta(alpha, alpha).cdf(places)
    return float(np.abs(found - wanted).max() * np.sqrt(len(shares)))


betas = jax.jit(jax.vmap(symmetric_beta, (0, None)), static_argnums=1)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_shares_have_the_law_of_beta(alpha):
    shares = np.asarray(betas(keys(MANY), alpha), np.float64)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert distance(shares, alpha) < 1.95
    # A law this near is told from it: the test has the power.
    assert distance(shares, 1.2 * alpha) > 1.95


def test_extreme_alphas_stay_finite():
    for alpha in (1e-3, 1e3):
        shares = np.asarray(betas(keys(MANY), alpha))
        assert np.isfinite(shares).all()
        assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.std() < 0.02  # 1 / (2 sqrt(2 alpha))


def box_of(share: float, centre: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """CutMix's box, written out."""
    mask = np.zeros(size, bool)
    spans = []
    for middle, length in zip(centre, size, strict=True):
        side = int(length * np.sqrt(np.float32(1 - share)))
        spans.append(slice(max(middle - side // 2, 0), min(middle + (side + 1) // 2, length)))
    mask[spans[0], spans[1]] = True
    return mask


@functools.partial(jax.jit, static_argnums=2)
def _boxes(keys: jax.Array, share: jax.Array, size: tuple[int, int]) -> jax.Array:
    return jax.vmap(lambda key: cutmix_box(key, share, *size))(keys)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 0.995, 1.0])
def test_the_box_has_its_size_and_is_cut_off_at_the_border(share):
    size = (8, 11)
    boxes = _boxes(keys(400), jnp.float32(share), size)
    known = {box_of(share, (y, x), size).tobytes() for y in range(size[0]) for x in range(size[1])}
    found = {np.asarray(box).tobytes() for box in boxes}
    assert found <= known
    assert len(found) > 0.9 * len(known)  # 400 draws of at most 88 places


def shares_of(mixing: Mixing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of many draws for images of 32x32: shares, whether they are of CutMix, and of neither."""
    drawn = jax.jit(jax.vmap(lambda key: draw(key, mixing, 32, 32)))(keys(4000))
    weights = np.asarray(drawn.weights)
    lowest, highest = weights.min((1, 2)), weights.max((1, 2))
    # The share of the label is that of the pixels, also where the box was cut off.
    np.testing.assert_allclose(drawn.share, weights.mean((1, 2), dtype=np.float64), atol=1e-6)
    is_cutmix = (lowest == 0) & ((highest == 1) | (np.asarray(drawn.share) == 0))
    return np.asarray(drawn.share), is_cutmix, lowest == 1


def within(found: float, wanted: float, count: int = 4000) -> bool:
    return abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count) + 2e-3


def test_switching_and_leaving_alone():
    mixing = Mixing(0.8, 1.0, 0.7, 0.25, num_classes=10, label_smoothing=0.1)
    shares, is_cutmix, is_left = shares_of(mixing)
    assert within(is_left.mean(), 0.3)
    assert within(is_cutmix.mean(), 0.7 * 0.25)
    assert (shares[is_left] == 1).all()
    mixup = shares[~is_cutmix & ~is_left]
    assert distance(mixup, 0.8) < 1.95


def test_one_method_alone():
    _, is_cutmix, is_left = shares_of(MIXUP)
    assert not is_cutmix.any()
    assert is_left.mean() < 0.01
    _, is_cutmix, is_left = shares_of(CUTMIX)
    assert (is_cutmix | is_left).all()  # a box may have no pixel
    assert is_left.mean() < 0.01


_draw = jax.jit(draw, static_argnums=(1, 2, 3))


def drawn_with(key: jax.Array, mixing: Mixing, images: np.ndarray) -> tuple[float, np.ndarray]:
    found: Draw = _draw(key, mixing, *images.shape[1:3])
    return float(found.share), np.asarray(found.weights)


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_images_and_targets_are_those_of_the_formula(batch, mixing):
    images, labels = batch
    smooth = np.full((6, 10), 0.1 / 10)
    smooth[np.arange(6), labels] = 1 - 0.1 + 0.1 / 10
    for key in keys(6):
        share, weights = drawn_with(key, mixing, images)
        mixed, targets = mixed_batch(key, images, labels, mixing)
        for row in range(6):
            partner = 5 - row
            wanted = weights[..., None] * images[row] + (1 - weights[..., None]) * images[partner]
            np.testing.assert_allclose(mixed[row], wanted, rtol=0, atol=1e-6)
            target = share * smooth[row] + (1 - share) * smooth[partner]
            np.testing.assert_allclose(targets[row], target, rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=0, atol=1e-6)
        assert mixed.dtype == targets.dtype == jnp.float32


def timm_mixup() -> Any:
    """timm's file by itself: the package would import torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    path = pathlib.Path(spec.origin).parent / "data" / "mixup.py"
    file = importlib.util.spec_from_file_location("timm_mixup", path)
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mixing", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_same_draws_give_what_timm_gives(batch, mixing, monkeypatch):
    timm = timm_mixup()
    images, labels = batch
    theirs = timm.Mixup(
        mixing.mixup_alpha, mixing.cutmix_alpha, num_classes=10, label_smoothing=0.1
    )
    for key in keys(8):
        _, _, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
        alpha = mixing.mixup_alpha or mixing.cutmix_alpha
        share = symmetric_beta(mixup_key if mixing.mixup_alpha else cutmix_key, alpha)
        sides = dict(zip(images.shape[1:3], jax.random.split(box_key), strict=True))
        monkeypatch.setattr(timm.np.random, "beta", lambda *_, share=share: float(share))
        monkeypatch.setattr(
            timm.np.random,
            "randint",
            lambda low, high, size=None, sides=sides: int(
                jax.random.randint(sides[high], (), low, high, jnp.int32)
            ),
        )
        wanted, wanted_targets = theirs(
            torch.tensor(images).permute(0, 3, 1, 2).clone(), torch.tensor(labels)
        )
        mixed, targets = mix_batch(key, jnp.asarray(images), jnp.asarray(labels), mixing)
        np.testing.assert_allclose(mixed, wanted.permute(0, 2, 3, 1), rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets, wanted_targets, rtol=0, atol=1e-6)


def test_an_odd_batch_leaves_its_middle_image_alone(batch):
    images, labels = jnp.asarray(batch[0][:5]), jnp.asarray(batch[1][:5])
    mixed, targets = mixed_batch(jax.random.key(1), images, labels, MIXUP)
    np.testing.assert_allclose(mixed[2], images[2], rtol=0, atol=1e-6)
    wanted = smooth_one_hot(labels, 10, 0.1, targets.dtype)[2]
    np.testing.assert_allclose(targets[2], wanted, rtol=0, atol=1e-7)
    assert np.abs(mixed[0] - images[0]).max() > 0.1


def test_what_is_not_mixed_keeps_every_bit(batch):
    images, labels = jnp.asarray(batch[0]), jnp.asarray(batch[1])
    never = Mixing(0.8, 1.0, 0.0, 0.5, num_classes=10, label_smoothing=0.0)
    mixed, targets = mixed_batch(jax.random.key(1), images, labels, never)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(targets, np.eye(10)[labels])


def test_float64_images_have_the_same_draw(batch, x64):
    images, labels = batch
    key = jax.random.key(3)
    mixed, targets = mixed_batch(key, images.astype(np.float64), labels, BOTH)
    assert mixed.dtype == targets.dtype == jnp.float64
    narrow, _ = mixed_batch(key, images, labels, BOTH)
    np.testing.assert_allclose(mixed, narrow, rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=0, atol=1e-15)


def test_the_config_says_how():
    assert make_mixing(tiny(), 10) is None
    assert make_mixing(tiny(mix__mixup_alpha=0.8, mix__probability=0.0), 10) is None
    config = tiny(mix={"mixup_alpha": 0.8, "cutmix_alpha": 1.0}, loss__label_smoothing=0.1)
    assert make_mixing(config, 10) == BOTH
