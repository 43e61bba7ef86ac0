"""`vit-jax plot augment`: the sheet is written and shows what the augmentation makes."""

import cv2
import numpy as np
import pytest

from tests.data.conftest import write_png
from vit_jax import cli
from vit_jax.data import RandomResizedCrop
from vit_jax.data.randaugment import OPERATIONS

pytestmark = pytest.mark.filterwarnings(
    "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
)


def test_operations_of_given_images(figures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_jax.cli.plot.augmentation_sheet._SIDE", 16)
    # Few to compile.
    methods = {"crop": {"crop": RandomResizedCrop()}, "erasing": {"random_erasing": 1.0}}
    monkeypatch.setattr("vit_jax.cli.plot.augmentation_sheet._METHODS", methods)
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, grey in zip(paths, (60, 200), strict=True):
        write_png(tmp_path / path, np.full((20, 30, 3), grey, np.uint8))
    out = tmp_path / "new" / "sheet.png"
    assert cli.main(["plot", "augment", "--out", str(out), "--image", *paths]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    drawn = cv2.imread(str(out))
    assert drawn is not None
    assert drawn.shape[0] > 1000
    operations, random_draws = figures[0].subfigs
    names = [text.get_text() for axes in operations.axes for text in axes.texts]
    assert tuple(names) == OPERATIONS
    rows = [text.get_text() for axes in random_draws.axes for text in axes.texts]
    assert rows == ["crop", "erasing"]
    assert len(random_draws.axes) == 2 * 7
    originals = [axes.images[0].get_array() for axes in operations.axes if axes.texts]
    assert [int(image[0, 0, 0]) for image in originals[:3]] == [60, 200, 60]  # in turn
    labels = {axes.get_title() for axes in operations.axes}
    assert {"+27°", "-9°", "bits: 1", "from 26", "+99", "x 1.81", "x 0.19", "+0.27"} <= labels


def test_a_recipe_with_its_own_images(figures, tmp_path):
    for kind in ("cat", "dog"):
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            for split in ("train", "val"):
                write_png(tmp_path / "data" / split / kind / f"{number}.png", pixels)
    out = tmp_path / "sheet.png"
    arguments = [
        "--config=cifar10_vit",
        "--config.data.source=folder",
        "--config.data.name=",
        f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.data.validation_split=None",
        "--config.data.test_split=None",
        "--config.data.rotation_degrees=0",
        "--config.data.horizontal_flip=false",
        "--config.model.kwargs.num_classes=2",
        "--config.model.kwargs.depth=1",
        "--config.model.kwargs.img_size=24",
        "--config.data.image_size=24",
        "--config.data.mean=(0.5,0.5,0.5)",
        "--config.data.std=(0.5,0.5,0.5)",
    ]
    assert cli.main(["plot", "augment", "--out", str(out), *arguments]) == 0
    assert out.is_file()
    axes = figures[0].subfigs[0].axes
    assert len(axes) == 8 * 7
    titles = [one.get_title() for one in axes[:7]]
    assert titles == ["as it is", *(f"epoch {epoch}" for epoch in range(1, 7))]
    # No method is on: every epoch shows the image as it is.
    shown = [np.asarray(one.images[0].get_array()) for one in axes[:7]]
    for image in shown:
        np.testing.assert_array_equal(image, shown[0])
    assert np.ptp(shown[0]) > 100


def test_a_recipe_that_crops_images_of_one_size(figures, tmp_path):
    arguments = ["--config=digits_vit", "--config.data.random_resized_crop=true"]
    arguments += ["--config.data.crop_scale=(0.3,0.6)", "--config.data.rotation_degrees=0"]
    assert cli.main(["plot", "augment", "--out", str(tmp_path / "sheet.png"), *arguments]) == 0
    for row in np.split(np.array(figures[0].subfigs[0].axes), 8):
        shown = [np.asarray(one.images[0].get_array()).tobytes() for one in row]
        assert len(set(shown)) == 7  # each epoch has a crop of its own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: WHAT"),
        (["augment"], "the following arguments are required: --out"),
        (["augment", "--out", "a.png", "--imag", "b"], "imag"),
        (["augment", "--out", "a.png", "--config=nowhere"], "no file 'nowhere' and no recipe"),
        (["augment", "--out", "a.png", "--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(
    arguments, message, capfd, figures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
