"""A folder of JPEG or PNG images by class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vit_jax.data.decode import decode_image
from vit_jax.data.order import stratified_order
from vit_jax.data.sources import Example, ImageSource, Subset, check_index

SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLIT_DIRECTORIES = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
# The cut of a folder that is not divided; the rest is for the test.
_TRAIN_FRACTION, _VALIDATION_FRACTION = 0.7, 0.1
_SPLIT_SEED = 0


class FolderSource(ImageSource):
    """Image files with a label each, read as RGB of varying size.

    Args:
        paths: the files.
        labels: the label of each.
        class_names: the class of each label.
        name: what logs and errors call it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        *,
        class_names: Sequence[str],
        name: str,
    ) -> None:
        self.paths = list(paths)
        self.labels = np.asarray(labels, np.int64)
        self.class_names = tuple(class_names)
        self.channels = 3
        self.image_shape = None
        self.name = name

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        index = check_index(self, index)
        path = self.paths[index]
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        return {"image": decode_image(data, 3, path), "label": int(self.labels[index])}


def open_folder(root: str | os.PathLike[str]) -> dict[str, ImageSource]:
    """The splits of a folder of images, classes in sorted order.

    Two layouts are read. `root/{train,val,test}/CLASS/*.jpg` gives the splits that are there, under
    the names train, validation, test; the training classes are the classes. `root/CLASS/*.jpg`
    gives a fixed stratified cut into 70% train, 10% validation and 20% test, and `all`. Files that
    are not .jpg, .jpeg or .png, and names that begin with a dot, are left out.

    Raises:
        ValueError: no such folder, no class folders, a class without images, a class that the
            training split does not have.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"there is no folder {root}; wanted {root}/train/CLASS/*.jpg (with val and test beside "
            f"train), or {root}/CLASS/*.jpg; name the folder with --config.data.data_dir="
        )
    directories = {
        split: root / name
        for split, names in _SPLIT_DIRECTORIES.items()
        for name in names
        if (root / name).is_dir()
    }
    if "train" not in directories:
        return _cut_into_splits(_scan(root, None, f"folder {root} all"))
    splits: dict[str, ImageSource] = {}
    train = _scan(directories["train"], None, f"folder {root} train")
    for split, directory in directories.items():
        splits[split] = (
            train
            if split == "train"
            else _scan(directory, train.class_names, f"folder {root} {split}")
        )
    return splits


def _scan(directory: Path, class_names: Sequence[str] | None, name: str) -> FolderSource:
    found = sorted(
        entry.name
        for entry in os.scandir(directory)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{directory} holds no class folders; wanted images in {directory}/CLASS/")
    class_names = found if class_names is None else list(class_names)
    if unknown := sorted(set(found) - set(class_names)):
        raise ValueError(
            f"{directory} has classes that the training folder lacks: {', '.join(unknown[:5])}; "
            f"the {len(class_names)} training classes are {', '.join(class_names[:5])}, ..."
        )
    paths: list[str] = []
    labels: list[int] = []
    for class_name in found:
        files = sorted(
            entry.path
            for entry in os.scandir(directory / class_name)
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
        if not files:
            raise ValueError(
                f"{directory / class_name} holds no image; wanted files ending in "
                f"{', '.join(SUFFIXES)}, or no such folder"
            )
        paths += files
        labels += [class_names.index(class_name)] * len(files)
    return FolderSource(paths, labels, class_names=class_names, name=name)


def _cut_into_splits(whole: FolderSource) -> dict[str, ImageSource]:
    order = stratified_order(whole.labels, _SPLIT_SEED)
    train_end = round(len(whole) * _TRAIN_FRACTION)
    validation_end = round(len(whole) * (_TRAIN_FRACTION + _VALIDATION_FRACTION))
    cuts = {
        "train": order[:train_end],
        "validation": order[train_end:validation_end],
        "test": order[validation_end:],
    }
    stem = whole.name.removesuffix(" all")
    splits: dict[str, ImageSource] = {"all": whole}
    for split, indices in cuts.items():
        splits[split] = Subset(whole, np.sort(indices), name=f"{stem} {split}")
    return splits
