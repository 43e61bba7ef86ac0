"""What a look at a folder of images finds."""

from pathlib import Path

import pytest

from tests.data.conftest import random_images, write_png
from tests.data.test_folder import make_classes
from vit_jax.data import open_splits
from vit_jax.data.folder_check import check_folder, shared_images


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def names(groups: list[list[str]], root: Path) -> list[list[str]]:
    return [[str(Path(path).relative_to(root)) for path in paths] for paths in groups]


def test_damaged_files_and_copies_are_found(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    make_classes(tmp_path / "train", ant=4, wasp=3)
    make_classes(tmp_path / "val", ant=1, wasp=1)  # the first images of the training classes
    train = tmp_path / "train"
    copy(train / "ant" / "01.png", train / "ant" / "copy.png")
    copy(train / "ant" / "02.png", train / "wasp" / "wrong.png")
    (train / "ant" / "cut.png").write_bytes((train / "ant" / "03.png").read_bytes()[:100])
    (train / "wasp" / "none.jpg").touch()
    (train / "wasp" / "gone.jpg").symlink_to("nowhere")
    checked = check_folder(tmp_path)
    damage = {Path(file.path).name: file.damage for file in checked.damaged}
    assert sorted(damage) == ["cut.png", "gone.jpg", "none.jpg"]
    assert damage["none.jpg"] == "is not a readable image (0 bytes): damaged or cut off"
    assert damage["gone.jpg"] == "cannot be read: No such file or directory"
    assert {file.size for file in checked.files if not file.damage} == {(8, 8)}
    assert not checked.is_cut
    assert names(checked.across_splits(), tmp_path) == [
        ["train/ant/00.png", "val/ant/00.png"],
        ["train/wasp/00.png", "val/wasp/00.png"],
    ]
    assert names(checked.across_classes(), tmp_path) == [
        ["train/ant/02.png", "train/wasp/wrong.png"]
    ]
    assert len(checked.duplicates) == 4
    assert capfd.readouterr().err == ""  # OpenCV's


def test_excluded_images_are_not_there_when_a_folder_is_cut(tmp_path: Path) -> None:
    make_classes(tmp_path, ant=10, bee=10)
    (tmp_path / "ant" / "03.png").write_bytes(b"damaged")
    checked = check_folder(tmp_path)
    assert checked.is_cut
    assert [len(part) for part in checked.parts.values()] == [14, 2, 4]
    splits = open_splits("folder", data_dir=tmp_path, exclude=["ant/03.png", "bee/04.png"])
    assert len(splits.train) + len(splits.validation or ()) + len(splits.test or ()) == 18
    assert splits.left_out == ("2 images by config.data.exclude",)
    with pytest.raises(ValueError, match="ant holds no image"):
        open_splits("folder", data_dir=tmp_path, exclude=[f"ant/{i:02d}.png" for i in range(10)])


def test_held_out_images_that_are_trained_on_are_found(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        for i, image in enumerate(random_images(6, seed=number)):
            write_png(tmp_path / split / "ab"[i % 2] / f"{i}.png", image)
    copy(tmp_path / "train" / "a" / "2.png", tmp_path / "val" / "b" / "2.png")

    def shared(validation: str) -> list[tuple[str, str]]:
        splits = open_splits(
            "folder", data_dir=tmp_path, validation_split=validation, test_split=None
        )
        return shared_images(splits.train, splits.validation, splits.test)

    same = (str(tmp_path / "train" / "a" / "2.png"), str(tmp_path / "val" / "b" / "2.png"))
    assert shared("validation") == [same]
    first = str(tmp_path / "train" / "a" / "0.png")
    assert shared("train[:1]") == [(first, first)]
    assert shared("validation+train[:1]") == [same, (first, first)]
    (tmp_path / "val" / "b" / "2.png").unlink()
    assert shared("validation") == []
    assert shared_images(open_splits("digits").train, open_splits("digits").test) == []
