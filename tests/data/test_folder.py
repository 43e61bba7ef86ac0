"""Folders of images by class."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import random_images, write_png
from vit_jax.data import open_splits


def make_classes(directory: Path, **counts: int) -> None:
    for name, count in counts.items():
        for i, image in enumerate(random_images(count, seed=len(name))):
            write_png(directory / name / f"{i:02d}.png", image)


def test_divided_folder_gives_its_splits(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", bee=3, ant=2)
    make_classes(tmp_path / "val", bee=1)
    make_classes(tmp_path / "test", ant=1, bee=2)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("left out")
    splits = open_splits("folder", data_dir=tmp_path)
    assert splits.class_names == ("ant", "bee")
    assert splits.train.image_shape is None
    assert [splits.train[i]["label"] for i in range(5)] == [0, 0, 1, 1, 1]
    np.testing.assert_array_equal(splits.train[3]["image"], random_images(3, seed=3)[1])
    assert splits.validation is not None
    assert [example["label"] for example in splits.validation.__getitems__([0])] == [1]
    assert splits.test is not None
    assert len(splits.test) == 3


def test_undivided_folder_is_cut_stratified_and_always_alike(tmp_path: Path) -> None:
    make_classes(tmp_path / "flowers", rose=40, tulip=20)

    def labels() -> list[list[int]]:
        splits = open_splits("folder", "flowers", tmp_path, seed=len(list(tmp_path.iterdir())))
        parts = (splits.train, splits.validation, splits.test)
        return [[part[i]["label"] for i in range(len(part))] for part in parts if part]

    first = labels()
    assert [len(part) for part in first] == [42, 6, 12]
    assert [sum(part) for part in first] == [14, 2, 4]
    (tmp_path / "other").mkdir()  # changes the seed above
    assert labels() == first


def test_corrupt_image_is_named_by_its_path(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", ant=4)
    bad = tmp_path / "train" / "ant" / "02.png"
    bad.write_bytes(bad.read_bytes()[:60])
    train = open_splits("folder", data_dir=tmp_path, validation_split=None, test_split=None).train
    with pytest.raises(ValueError, match=r"ant/02.png is not a readable image"):
        train[2]
    bad.unlink()
    with pytest.raises(ValueError, match=r"ant/02.png cannot be read: No such file"):
        train[2]


def test_folders_without_data_are_named(tmp_path: Path) -> None:
    def opening(message: str):
        return pytest.raises(ValueError, match=message)

    with opening("there is no folder .*nowhere; wanted"):
        open_splits("folder", "nowhere", tmp_path)
    with opening("holds no class folders"):
        open_splits("folder", data_dir=tmp_path)
    make_classes(tmp_path / "train", ant=1)
    with opening("no split 'validation'"):
        open_splits("folder", data_dir=tmp_path)
    make_classes(tmp_path / "val", cow=1)
    with opening("classes that the training folder lacks: cow"):
        open_splits("folder", data_dir=tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with opening("empty holds no image"):
        open_splits("folder", data_dir=tmp_path)
