"""The random resized crop: torchvision's distribution, keyed by (seed, epoch, index)."""

import math

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import random_images
from vit_jax.data.evaluation_geometry import evaluation_geometry
from vit_jax.data.host_crop import (
    INTERPOLATIONS,
    RandomResizedCrop,
    cut,
    evaluation_crop,
    pil_resize,
)
from vit_jax.data.order import raw_words
from vit_jax.models.spec import CROP_MODES

_DRAWS = 4000


def torchvisions(
    rng: np.random.Generator, height: int, width: int, scale, ratio
) -> tuple[int, int, int, int]:
    """What torchvision documents of `RandomResizedCrop.get_params`, in plain NumPy."""
    for _ in range(10):
        target = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def kolmogorov_smirnov(left: np.ndarray, right: np.ndarray) -> float:
    """The largest distance between two empirical distribution functions."""
    points = np.sort(np.concatenate([left, right]))
    return np.abs(
        np.searchsorted(np.sort(left), points, side="right") / len(left)
        - np.searchsorted(np.sort(right), points, side="right") / len(right)
    ).max()


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((200, 900), (0.08, 1.0), (3 / 4, 4 / 3)),  # often falls back
        ((64, 64), (0.3, 0.6), (0.5, 1.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(size, scale, ratio) -> None:
    crop = RandomResizedCrop(scale, ratio)
    rng = np.random.default_rng(0)
    ours = np.array([crop.box(raw_words(41, 9, i), *size) for i in range(_DRAWS)])
    theirs = np.array([torchvisions(rng, *size, scale, ratio) for _ in range(_DRAWS)])
    assert (ours[:, 0] >= 0).all()
    assert (ours[:, 1] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()
    for figure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / (size[0] - box[:, 2] + 1),
        lambda box: box[:, 1] / (size[1] - box[:, 3] + 1),
    ):
        # Two equal distributions are further apart than this once in a thousand times:
        # 1.95 sqrt(2 / n).
        assert kolmogorov_smirnov(figure(ours), figure(theirs)) < 1.95 * math.sqrt(2 / _DRAWS)


def _words(*uniform: float) -> np.ndarray:
    return np.array([int(u * 2**64) for u in uniform] + [0] * (41 - len(uniform)), np.uint64)


def test_a_box_by_hand() -> None:
    crop = RandomResizedCrop((0.25, 0.75), (1.0, 4.0))
    # area 0.5 * 100 * 200 = 10,000; ratio exp(log(4) / 2) = 2: 71 rows, 141 columns.
    assert crop.box(_words(0.5, 0.5, 0.0, 0.0), 100, 200) == (0, 0, 71, 141)
    assert crop.box(_words(0.5, 0.5, 0.5, 0.999), 100, 200) == (15, 59, 71, 141)
    # The first try is 50 rows high and 200 wide and does not fit; the second does.
    assert crop.box(_words(0.5, 0.999999, 0, 0, 0.5, 0.0, 0, 0), 200, 100) == (0, 0, 100, 100)


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 1000), (0, 433, 100, 133)), ((1000, 100), (433, 0, 133, 100))],
)
def test_what_never_fits_is_cut_at_the_centre(size, box) -> None:
    crop = RandomResizedCrop((1.0, 1.0), (3 / 4, 4 / 3))
    for i in range(20):
        assert crop.box(raw_words(41, i), *size) == box


def test_a_crop_is_a_function_of_its_key() -> None:
    crop = RandomResizedCrop()
    key = {"seed": 1, "epoch": 2, "index": 3}
    # For ever: what one version of this package drew, another draws.
    assert crop.draw(48, 48, **key) == (1, 4, 46, 40, 0)
    for name in key:
        assert crop.draw(48, 48, **{**key, name: key[name] + 1}) != (1, 4, 46, 40, 0)


def test_random_interpolation_draws_each_half_of_the_time() -> None:
    bilinear, bicubic, either = (
        [
            RandomResizedCrop(interpolation=kind).draw(9, 9, seed=0, epoch=0, index=i)[4:]
            for i in range(400)
        ]
        for kind in (*INTERPOLATIONS, "random")
    )
    assert set(bilinear) == {(0,)}
    assert set(bicubic) == {(1,)}
    assert 160 < sum(kernel for (kernel,) in either) < 240  # four standard deviations


@pytest.mark.parametrize("kernel", [0, 1])
def test_a_crop_is_cut_and_then_resized_by_pillow(kernel: int) -> None:
    image = random_images(1, 48)[0]
    found = cut(image, (1, 4, 46, 40, kernel), 16, 20)
    box = Image.fromarray(image).crop((4, 1, 44, 47))
    expected = box.resize((20, 16), (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[kernel])
    np.testing.assert_array_equal(found, expected)
    for channels in (1, 4):  # each as an image of its own
        many = np.tile(image[..., :1], (1, 1, channels))
        grey = pil_resize(many[1:47, 4:44], 16, 20, INTERPOLATIONS[kernel])
        assert (grey == found[..., :1]).all()
        assert grey.shape == (16, 20, channels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.0, 1.0),), r"crop scale: wanted \(smallest, largest\) in \(0, 1\], got \(0.0, 1.0\)"),
        (((0.5, 0.2),), "crop scale"),
        (((0.5, 1.2),), "crop scale"),
        (((0.08, 1.0), (2.0, 1.0)), "crop ratio"),
        (((0.08, 1.0), (0.75, 1.33), "area"), "valid: bilinear, bicubic, random"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(*arguments)


def test_the_centre_crop_keeps_the_aspect() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200  # the central square
    assert (evaluation_crop(image, 20, 20, 1.0)[:, 1:-1] == 200).all()
    wide = evaluation_crop(image, 20, 30, 0.5)
    assert wide.shape == (20, 30, 3)
    np.testing.assert_array_equal(evaluation_crop(image, 40, 80, 1.0), image)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_strip_is_cropped_before_it_is_resized(shape, monkeypatch):
    from vit_jax.data import host_crop

    sizes = []
    resized = host_crop.pil_resize
    monkeypatch.setattr(
        host_crop, "pil_resize", lambda *a: sizes.append(a[1] * a[2]) or resized(*a)
    )
    ramp = np.arange(60_000, dtype=np.int64) * 256 // 60_000
    image = np.repeat(ramp.astype(np.uint8).reshape(*shape, 1), 3, axis=2)
    out = evaluation_crop(image, 32, 32, 1.0)
    assert sizes[0] <= 16 * 32 * 32
    assert np.abs(out.astype(int) - 128).max() <= 1  # the middle


@pytest.mark.parametrize(
    ("image", "crop", "fraction", "wanted"),
    [
        # torchvision's Resize(248) and CenterCrop(224): int(248 * 640 / 427) = 371, and Python
        # rounds the offset of 73.5 to the even 74.
        ((427, 640), (224, 224), 0.9, (248, 371, 12, 74)),
        ((640, 427), (224, 224), 0.9, (371, 248, 74, 12)),
        ((500, 375), (224, 224), 0.875, (341, 256, 58, 16)),  # 58.5 to 58
        ((333, 333), (384, 384), 1.0, (384, 384, 0, 0)),
        ((1, 1000), (224, 224), 1.0, (224, 224_000, 0, 111_888)),
        ((300, 400), (224, 224), 224 / 248, (248, 330, 12, 53)),  # of a processor's two sizes
        # timm's ResizeKeepRatio((179, 248)): 400 / 248 is the smaller ratio.
        ((300, 400), (160, 224), 0.9, (186, 248, 13, 12)),
    ],
)
def test_evaluation_resizes_and_crops_as_timm(image, crop, fraction, wanted) -> None:
    """By hand, after torchvision's and timm's code."""
    assert evaluation_geometry(*image, *crop, fraction, "center") == wanted
    squashed = evaluation_geometry(*image, *crop, fraction, "squash")
    assert squashed[:2] == tuple(math.floor(side / fraction + 1e-9) for side in crop)
    # transformers' lies half a pixel higher or further left where that is one.
    floored = evaluation_geometry(*image, *crop, fraction, "center_floor")
    offsets = tuple((floored[i] - crop[i]) // 2 for i in range(2))
    assert floored == (*wanted[:2], *offsets)


def test_the_crop_lies_inside_of_the_resized_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        image, crop = rng.integers(1, 900, 2).tolist(), rng.integers(1, 400, 2).tolist()
        mode = CROP_MODES[rng.integers(4)]
        rows, columns, top, left = evaluation_geometry(*image, *crop, rng.uniform(0.1, 1), mode)
        assert top >= 0 <= left
        assert top + crop[0] <= rows
        assert left + crop[1] <= columns
