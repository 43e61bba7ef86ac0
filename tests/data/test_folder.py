"""Folders of images by class."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.data.conftest import random_images, write_png
from vit_jax.data import open_splits
from vit_jax.data.decode import decode_image
from vit_jax.data.folder import FolderSource, labels_of
from vit_jax.data.sources import Concatenation, Example, ImageSource, Subset
from vit_jax.inference.images import read_image


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_training_sees_images_upright_as_prediction_does(tmp_path: Path, kind: str) -> None:
    """EXIF's eight orientations, also of a file whose remarks are damaged."""
    image = Image.fromarray(random_images(1, seed=5)[0])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.img"
        image.save(path, kind, exif=exif, quality=95)
        with Image.open(path) as stored:
            want = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
        found = decode_image(path.read_bytes(), 3, "it")
        assert found.shape == want.shape
        assert np.abs(found.astype(int) - want).max() <= 3  # of decoders
        np.testing.assert_array_equal(found, read_image(path))
    image.save(path, kind, exif=b"Exif\0\0no TIFF header")
    assert decode_image(path.read_bytes(), 3, "it").shape == (*image.size[::-1], 3)


def test_images_of_every_kind_and_depth_are_found(tmp_path: Path) -> None:
    """torchvision's: nested folders, its suffixes, its order; also folders that are links."""
    image = Image.fromarray(random_images(1, seed=5)[0])
    ant = tmp_path / "train" / "ant"
    (ant / "b" / "deep").mkdir(parents=True)
    for place in ("c.PNG", "a.webp", "b/x.bmp", "b/deep/y.tif", "b/z.tiff", "d.ppm"):
        image.save(ant / place, None if place != "c.PNG" else "PNG")
    make_classes(tmp_path / "elsewhere", cow=2)
    (tmp_path / "train" / "cow").symlink_to(tmp_path / "elsewhere" / "cow")
    (ant / "b" / "again").symlink_to(ant)  # leads back
    splits = open_splits("folder", data_dir=tmp_path, validation_split=None, test_split=None)
    assert isinstance(splits.train, FolderSource)
    names = [str(Path(path).relative_to(tmp_path / "train")) for path in splits.train.paths]
    assert names == [
        *(
            "ant/a.webp",
            "ant/c.PNG",
            "ant/d.ppm",
            "ant/b/x.bmp",
            "ant/b/z.tiff",
            "ant/b/deep/y.tif",
        ),
        *("cow/00.png", "cow/01.png"),
    ]
    for index, name in enumerate(names[:6]):
        found = splits.train[index]["image"]
        np.testing.assert_array_equal(found, read_image(ant.parent / name), err_msg=name)
    assert splits.describe() == "2 classes, images: 8 train; left out: folders elsewhere"


def test_what_a_folder_holds_besides_is_said(tmp_path: Path) -> None:
    make_classes(tmp_path / "train", ant=3)
    make_classes(tmp_path / "train" / "__MACOSX", ant=1)
    make_classes(tmp_path / "train" / "ant" / "@eaDir", x=1)
    make_classes(tmp_path / "notebooks", x=1)
    for place in ("LICENSE", "train/labels.csv", "train/ant/Thumbs.db", "train/ant/.hidden"):
        (tmp_path / place).write_text("")
    write_png(tmp_path / "stray.png", random_images(1, seed=0)[0])
    splits = open_splits("folder", data_dir=tmp_path, validation_split=None, test_split=None)
    assert splits.class_names == ("ant",)
    assert len(splits.train) == 3
    assert splits.left_out == (
        "folders notebooks, train/__MACOSX, train/ant/@eaDir",
        "1 image outside the class folders",
        "3 other files: no suffix (1), .csv (1), .db (1)",
    )


def test_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    make_classes(tmp_path, train=10, bus=10, test=10)
    assert open_splits("folder", data_dir=tmp_path).class_names == ("bus", "test", "train")
    make_classes(tmp_path / "train", small=2)
    with pytest.raises(ValueError, match="train holds folders and images, next to bus"):
        open_splits("folder", data_dir=tmp_path)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "valid"):
        make_classes(tmp_path / split, ant=1)
    with pytest.raises(ValueError, match="holds val and valid: wanted one folder for the valid"):
        open_splits("folder", data_dir=tmp_path)


def test_an_image_beside_the_classes_of_a_split_is_left_out(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        make_classes(tmp_path / split, ant=1, bee=1)
    write_png(tmp_path / "train" / "stray.png", random_images(1, seed=0)[0])
    splits = open_splits("folder", data_dir=tmp_path, test_split=None)
    assert splits.class_names == ("ant", "bee")
    assert splits.left_out == ("1 image outside the class folders",)


class Asked(ImageSource):
    """Its labels are no arrays: it notes which images are read for them."""

    name, class_names, channels, image_shape = "asked", (), 1, (1, 1, 1)

    def __init__(self, labels: range) -> None:
        self.labels, self.read = labels, []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        self.read.append(index)
        return {"image": np.zeros((1, 1, 1), np.uint8), "label": self.labels[index]}


def test_the_labels_of_a_subset_cost_its_own_images_alone() -> None:
    first, second, third = sources = [Asked(range(n, n + 10)) for n in (0, 10, 20)]
    whole = Concatenation(sources, name="all")
    twice = Subset(Subset(whole, np.arange(5, 30), name="most"), np.array([20, 1, 24, 0]), name="4")
    assert labels_of(twice).tolist() == [25, 6, 29, 5]
    assert labels_of(whole, np.arange(0)).shape == (0,)
    assert (sorted(first.read), second.read, sorted(third.read)) == ([5, 6], [], [5, 9])
    assert labels_of(whole).tolist() == [whole[n]["label"] for n in range(30)] == [*range(30)]
