"""What the files of a folder of images are like: sizes, damage, and copies of each other."""

import collections
import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_jax.data.decode import decode_image
from vit_jax.data.folder import labelled_paths, open_folder
from vit_jax.data.sources import ImageSource
from vit_jax.storage import read_bytes
from vit_jax.watching import Watch, unwatched

# Splits of more files are not compared as a run starts: to ask for their sizes takes seconds.
_MOST_COMPARED = 20_000


@dataclass(frozen=True)
class ImageFile:
    """A file that was read and decoded.

    Attributes:
        path: of the file.
        size: (height, width) as it is seen; None of one that is damaged.
        digest: of its bytes, the same for files that are equal; None of one that cannot be read.
        damage: what is wrong with it; empty: nothing.
    """

    path: str
    size: tuple[int, int] | None
    digest: bytes | None
    damage: str = ""


@dataclass(frozen=True)
class CheckedFolder:
    """A folder of images of which every file was decoded.

    Attributes:
        splits, left_out: of `open_folder`.
        files: of all splits, each file once.
    """

    splits: dict[str, ImageSource]
    left_out: list[str]
    files: tuple[ImageFile, ...]

    @property
    def is_cut(self) -> bool:
        """Whether the folder is not divided, and its splits are a cut of ours."""
        return "all" in self.splits

    @property
    def parts(self) -> dict[str, ImageSource]:
        """The splits but `all`, which no image is in alone."""
        return {name: part for name, part in self.splits.items() if name != "all"}

    @property
    def damaged(self) -> list[ImageFile]:
        """The files that training refuses."""
        return [file for file in self.files if file.damage]

    @property
    def duplicates(self) -> list[list[str]]:
        """The paths of files that are equal byte by byte, group by group."""
        groups: dict[bytes, list[str]] = collections.defaultdict(list)
        for file in self.files:
            if file.digest is not None:
                groups[file.digest].append(file.path)
        return [paths for paths in groups.values() if len(paths) > 1]

    def across_splits(self) -> list[list[str]]:
        """The groups of `duplicates` that lie in several splits."""
        split_of = {
            path: name for name, part in self.parts.items() for path, _ in labelled_paths(part)
        }
        return self._across(split_of)

    def across_classes(self) -> list[list[str]]:
        """The groups of `duplicates` that lie in several classes: one label is wrong."""
        class_of = dict(each for part in self.parts.values() for each in labelled_paths(part))
        return self._across(class_of)

    def _across(self, part_of: Mapping[str, Any]) -> list[list[str]]:
        return [paths for paths in self.duplicates if len({part_of[path] for path in paths}) > 1]


def check_folder(
    root: str | os.PathLike[str],
    labels_file: str | os.PathLike[str] | None = None,
    kind: str = "classification",
    watch: Watch = unwatched,
) -> CheckedFolder:
    """Decodes each image of a folder as training does, on all processors.

    Args:
        root, labels_file, kind: see `open_folder`.
        watch: goes through the images; see `vit_jax.watching`.

    Raises:
        ValueError: see `open_folder`.
    """
    splits, left_out = open_folder(root, (), labels_file, kind)
    paths = {path: None for part in splits.values() for path, _ in labelled_paths(part)}
    with _quiet_opencv(), ThreadPoolExecutor(os.cpu_count()) as threads:
        looked = watch(threads.map(_look_at, paths), len(paths), "reading")
        return CheckedFolder(splits, left_out, tuple(looked))


def shared_images(train: ImageSource, *others: ImageSource | None) -> list[tuple[str, str]]:
    """Images of other splits that the training split holds too, as (of training, of the other).

    The same file, or one that is equal byte by byte; files are read only where sizes are equal.
    Empty for splits that are not of files, and for many files.
    """
    training, *rest = (
        [path for path, _ in labelled_paths(part)] for part in (train, *others) if part is not None
    )
    held_out = list(itertools.chain(*rest))
    if not training or not held_out or len(training) + len(held_out) > _MOST_COMPARED:
        return []
    by_size: dict[int, list[str]] = collections.defaultdict(list)
    for path in training:
        by_size[_byte_size(path)].append(path)
    alike = {path: by_size[size] for path in held_out if (size := _byte_size(path)) in by_size}
    digests = {path: _digest(path) for path in {*alike, *itertools.chain(*alike.values())}}
    first = {digests[path]: path for path in reversed(training) if path in digests}
    return [
        (first[digests[path]], path)
        for path in held_out
        if path in digests and digests[path] in first
    ]


def _look_at(path: str) -> ImageFile:
    try:
        data = read_bytes(Path(path))
    except OSError as error:
        return ImageFile(path, None, None, f"cannot be read: {error.strerror}")
    digest = _digest_of(data)
    try:
        height, width, _ = decode_image(data, 3, path).shape
    except ValueError as error:
        return ImageFile(path, None, digest, str(error).removeprefix(path).lstrip(": "))
    return ImageFile(path, (height, width), digest)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """OpenCV tells of a damaged file on standard error in lines of its own."""
    from cv2.utils import logging

    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _byte_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # it is named where it is read
        return -1


def _digest(path: str) -> bytes:
    try:
        return _digest_of(read_bytes(Path(path)))
    except OSError:
        return os.fsencode(path)


def _digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
