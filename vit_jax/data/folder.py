"""A folder of images by class."""

import collections
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.decode import decode_image
from vit_jax.data.labels import LabelFile, Row, bad_rows, encode, read_label_file
from vit_jax.data.order import stratified_order
from vit_jax.data.sources import (
    ArraySource,
    Concatenation,
    Example,
    ImageSource,
    Subset,
    check_index,
)
from vit_jax.storage import read_bytes

# Those of torchvision's ImageFolder, all of which OpenCV reads.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What macOS archives and file servers add.
_FOREIGN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
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
        labels: the label of each: (N,) classes, or floats of any shape (N, ...).
        class_names: the class of each label.
        name: what logs and errors call it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        *,
        class_names: Sequence[str],
        name: str,
    ) -> None:
        self.paths = list(paths)
        self.labels = np.asarray(labels)
        if self.labels.dtype.kind == "f":
            self.label_shape, self.label_dtype = self.labels.shape[1:], self.labels.dtype
        else:
            self.labels = self.labels.astype(np.int64)
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
            data = read_bytes(Path(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        label = self.labels[index]
        is_class = label.dtype.kind == "i"
        return {"image": decode_image(data, 3, path), "label": int(label) if is_class else label}


def open_folder(
    root: str | os.PathLike[str],
    exclude: Collection[str] = (),
    labels_file: str | os.PathLike[str] | None = None,
    kind: str = "classification",
) -> tuple[dict[str, ImageSource], list[str]]:
    """The splits of a folder of images, classes in sorted order.

    Two layouts are read. `root/{train,val,test}/CLASS/*.jpg` gives the splits that are there, under
    the names train, validation, test; the training classes are the classes. `root/CLASS/*.jpg`
    gives a fixed stratified cut into 70% train, 10% validation and 20% test, and `all`; a class may
    be called train, where its folder holds images and no folders. Images below a class folder, at
    any depth, are the class's, in torchvision's order. Files that end in none of `SUFFIXES`, names
    that begin with a dot, and folders that archives and file servers add are left out.

    Args:
        root: the folder.
        exclude: images that are left out too, before anything is cut: their paths from `root`.
        labels_file: of the images, see `vit_jax.data.labels.read_label_file`: its rows are the
            images, in its splits or in the same cut (stratified by classes), and folders are none.
        kind: of its labels, see `vit_jax.data.labels.encode`.

    Returns:
        The splits, and what was left out: a phrase for each kind.

    Raises:
        ValueError: no such folder, no class folders, a class without images, a class that the
            training split does not have, two folders for one split.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"there is no folder {root}; wanted {root}/train/CLASS/*.jpg (with val and test beside "
            f"train), or {root}/CLASS/*.jpg; name the folder with --config.data.data_dir="
        )
    left_out = _LeftOut(root, exclude)
    if labels_file:
        return _open_labelled(read_label_file(labels_file, root), root, kind, left_out)
    if not _is_divided(root):
        whole = _scan(root, None, f"folder {root} all", left_out)
        return _cut_into_splits(whole), left_out.phrases()
    directories = _split_directories(root, left_out)
    train = _scan(directories["train"], None, f"folder {root} train", left_out)
    splits: dict[str, ImageSource] = {}
    for split, directory in directories.items():
        splits[split] = (
            train
            if split == "train"
            else _scan(directory, train.class_names, f"folder {root} {split}", left_out)
        )
    return splits, left_out.phrases()


def _open_labelled(
    file: LabelFile, root: Path, kind: str, left_out: "_LeftOut"
) -> tuple[dict[str, ImageSource], list[str]]:
    """The splits of a folder whose images a file labels."""
    labels, names = encode(file, kind)
    paths = [str(root / row.file) for row in file.rows]
    kept = set(left_out.without_excluded(paths))
    chosen = [place for place, path in enumerate(paths) if path in kept]
    rows, labels = [file.rows[place] for place in chosen], labels[chosen]
    stem = f"folder {root}, labels {file.path.name}"
    whole = FolderSource(
        [paths[place] for place in chosen], labels, class_names=names, name=f"{stem} all"
    )
    unnamed = len(set(_images_below(root, _LeftOut(root, ()))) - set(paths))
    phrases = left_out.phrases()
    if unnamed:
        phrases.append(f"{_count(unnamed, 'image')} that {file.path.name} does not name")
    if not any(row.split for row in rows):
        return _cut_into_splits(whole), phrases
    splits: dict[str, ImageSource] = {}
    for split in _SPLIT_DIRECTORIES:
        places = [place for place, row in enumerate(rows) if row.split == split]
        if places:
            splits[split] = Subset(whole, np.array(places), name=f"{stem} {split}")
    if "train" not in splits:
        raise ValueError(f"the label file {file.path}: no row has the split train")
    if kind == "classification":
        _check_trained(file, rows)
    return splits, phrases


def _check_trained(file: LabelFile, rows: Sequence[Row]) -> None:
    """Refuses classes that the training split does not have, as those of folders."""
    known = {row.labels for row in rows if row.split == "train"}
    if bad := [
        f"line {row.line}: no row of the split train has the class {row.labels[0]}"
        for row in rows
        if row.labels not in known
    ]:
        raise bad_rows(file.path, bad)


def labelled_paths(source: ImageSource) -> list[tuple[str, Any]]:
    """The file and the label of each image of a split of a folder; none of other sources."""
    if isinstance(source, FolderSource):
        labels = source.labels.tolist()
        as_keys = [tuple(label) if isinstance(label, list) else label for label in labels]
        return list(zip(source.paths, as_keys, strict=True))
    if isinstance(source, Subset):
        found = labelled_paths(source.source)
        return [found[index] for index in source.indices] if found else []
    if isinstance(source, Concatenation):
        return [each for part in source.sources for each in labelled_paths(part)]
    return []


def labels_of(source: ImageSource, indices: np.ndarray | None = None) -> np.ndarray:
    """The labels at indices, (N, ...); these images are read where nothing else has them.

    Args:
        source: a split.
        indices: (N,) positions in it from 0; None: all, in their order.
    """
    if indices is None:
        indices = np.arange(len(source))
    if not len(indices):
        return np.zeros((0, *source.label_shape), source.label_dtype)
    if isinstance(source, FolderSource | ArraySource):
        return source.labels[indices]
    if isinstance(source, Subset):
        return labels_of(source.source, source.indices[indices])
    if isinstance(source, Concatenation):
        which, places = source.places(indices)
        found = [labels_of(source.sources[n], places[which == n]) for n in np.unique(which)]
        return np.concatenate(found)[np.argsort(np.argsort(which, kind="stable"))]
    return np.stack([np.asarray(example["label"]) for example in source.stream(indices.tolist())])


class _LeftOut:
    """Collects what a folder holds and is not read."""

    def __init__(self, root: Path, exclude: Collection[str]) -> None:
        self.root = root
        self._exclude = {str(root / path) for path in exclude}
        self.excluded = 0
        self.folders: list[str] = []
        self.stray_images = 0
        self.suffixes: collections.Counter[str] = collections.Counter()

    def add_folder(self, path: Path) -> None:
        self.folders.append(str(path.relative_to(self.root)))

    def add_file(self, name: str, *, in_class: bool) -> None:
        if not in_class and _is_image(name):
            self.stray_images += 1
        else:
            self.suffixes[os.path.splitext(name)[1].lower() or "no suffix"] += 1

    def without_excluded(self, paths: list[str]) -> list[str]:
        kept = [path for path in paths if path not in self._exclude]
        self.excluded += len(paths) - len(kept)
        return kept

    def phrases(self) -> list[str]:
        phrases = []
        if self.excluded:
            phrases.append(f"{_count(self.excluded, 'image')} by config.data.exclude")
        if self.folders:
            phrases.append(
                f"folders {', '.join(self.folders[:5])}{', ...' * (len(self.folders) > 5)}"
            )
        if self.stray_images:
            phrases.append(f"{_count(self.stray_images, 'image')} outside the class folders")
        if self.suffixes:
            kinds = ", ".join(
                f"{suffix} ({count})" for suffix, count in self.suffixes.most_common(5)
            )
            phrases.append(f"{_count(self.suffixes.total(), 'other file')}: {kinds}")
        return phrases


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _entries(directory: Path) -> tuple[list[Path], list[str]]:
    """Folders (also links to them) and names of files, sorted, without the hidden ones."""
    folders: list[Path] = []
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(directory / entry.name)
            else:
                names.append(entry.name)
    return folders, names


def _is_divided(root: Path) -> bool:
    """Whether `root/train` is a split: it holds folders. A class of that name holds images."""
    train = root / "train"
    if not train.is_dir():
        return False
    folders, names = _entries(train)
    images = any(map(_is_image, names))
    splits = {name for names in _SPLIT_DIRECTORIES.values() for name in names}
    others = {path.name for path in _entries(root)[0]} - splits - set(_FOREIGN)
    if folders and images and others:
        raise ValueError(
            f"{train} holds folders and images, next to {', '.join(sorted(others)[:5])}: "
            "wanted folders of classes, if it is a split, or images alone, if it is a class"
        )
    return bool(folders) or not images


def _split_directories(root: Path, left_out: _LeftOut) -> dict[str, Path]:
    folders, names = _entries(root)
    for name in names:
        left_out.add_file(name, in_class=False)
    found = {path.name: path for path in folders}
    directories: dict[str, Path] = {}
    for split, known in _SPLIT_DIRECTORIES.items():
        present = [name for name in known if name in found]
        if len(present) > 1:
            raise ValueError(
                f"{root} holds {' and '.join(present)}: wanted one folder for the {split} split, "
                "for the other is not read"
            )
        if present:
            directories[split] = found.pop(present[0])
    for path in found.values():
        left_out.add_folder(path)
    return directories


def _scan(
    directory: Path, class_names: Sequence[str] | None, name: str, left_out: _LeftOut
) -> FolderSource:
    folders, names = _entries(directory)
    for file in names:
        left_out.add_file(file, in_class=False)
    for folder in folders:
        if folder.name in _FOREIGN:
            left_out.add_folder(folder)
    folders = [folder for folder in folders if folder.name not in _FOREIGN]
    found = [folder.name for folder in folders]
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
    for folder in folders:
        files = _images_below(folder, left_out)
        if not files:
            raise ValueError(
                f"{folder} holds no image; wanted files ending in {', '.join(SUFFIXES)}, or no "
                "such folder"
            )
        paths += files
        labels += [class_names.index(folder.name)] * len(files)
    return FolderSource(paths, labels, class_names=class_names, name=name)


def _images_below(folder: Path, left_out: _LeftOut) -> list[str]:
    """Folder by folder in the order of their paths, as torchvision's ImageFolder has them."""
    pending, visited = [folder], set[str]()
    found: dict[str, list[str]] = {}
    while pending:
        current = pending.pop()
        # A link may lead back to a folder above it.
        if (real := os.path.realpath(current)) in visited:
            continue
        visited.add(real)
        folders, names = _entries(current)
        for below in folders:
            if below.name in _FOREIGN:
                left_out.add_folder(below)
            else:
                pending.append(below)
        images = [str(current / name) for name in names if _is_image(name)]
        found[str(current)] = left_out.without_excluded(images)
        for name in names:
            if not _is_image(name):
                left_out.add_file(name, in_class=True)
    return [path for parent in sorted(found) for path in found[parent]]


def _cut_into_splits(whole: FolderSource) -> dict[str, ImageSource]:
    is_classes = whole.labels.dtype.kind == "i"
    labels = whole.labels if is_classes else np.zeros(len(whole), np.int64)
    order = stratified_order(labels, _SPLIT_SEED)
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
