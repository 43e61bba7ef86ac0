"""Fashion-MNIST from its four official IDX files, gzipped or not."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.data.prepared_writer import write_prepared

_SIDE = 28
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxFormat:
    """What a set of IDX files holds, and where it is had.

    Attributes:
        version: of TFDS's own set of the name.
        splits: the beginning of the names of each split's two files, and its number of images.
        class_names: the class of each label, which the files do not state.
        url: a page that links the files.
        description: what the set is.
    """

    version: str
    splits: dict[str, tuple[str, int]]
    class_names: tuple[str, ...]
    url: str
    description: str


IDX_FORMATS = {
    "fashion_mnist": IdxFormat(
        version="3.0.1",
        splits={"train": ("train", 60_000), "test": ("t10k", 10_000)},
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        url="https://github.com/zalandoresearch/fashion-mnist",
        description="Fashion-MNIST: 70,000 grey images of 28x28 of articles in 10 classes.",
    ),
}


def prepare_idx_archive(
    name: str, data_dir: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> Path:
    """Writes data_dir/NAME/VERSION from the official IDX files, which stay as they are.

    An IDX file is two zero bytes, the type of its elements (8: unsigned bytes), its number of
    dimensions, each of these as four bytes, the highest first, and the elements row by row.

    Args:
        name: a key of `IDX_FORMATS`.
        data_dir: where prepared sets are.
        directory: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of
            `t10k`, each plain or with `.gz`.

    Returns:
        The directory written.

    Raises:
        ValueError: a file that is missing, damaged, cut off or of another set, or the directory
            to be written exists already.
    """
    layout = IDX_FORMATS[name]
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no directory {folder}; {_wanted(name, layout)}")
    arrays = {
        split: _read_split(folder, stem, count, name, layout)
        for split, (stem, count) in layout.splits.items()
    }
    return write_prepared(
        data_dir,
        name,
        layout.version,
        {split: _examples(split, *pair) for split, pair in arrays.items()},
        image_shape=(_SIDE, _SIDE, 1),
        labels={"label": layout.class_names},
        description=layout.description,
    )


def _read_split(
    folder: Path, stem: str, count: int, name: str, layout: IdxFormat
) -> tuple[np.ndarray, np.ndarray]:
    """The images (count, 28, 28) and labels (count,) of one split, uint8."""
    images, _ = _read_idx(folder, f"{stem}-images-idx3-ubyte", (count, _SIDE, _SIDE), name, layout)
    labels, path = _read_idx(folder, f"{stem}-labels-idx1-ubyte", (count,), name, layout)
    if labels.max() >= len(layout.class_names):
        row = int(np.argmax(labels >= len(layout.class_names)))
        raise ValueError(
            f"{path}: label {row} is {labels[row]}, but {name} has {len(layout.class_names)} "
            f"classes (labels 0 to {len(layout.class_names) - 1})"
        )
    return images, labels


def _read_idx(
    folder: Path, file: str, shape: tuple[int, ...], name: str, layout: IdxFormat
) -> tuple[np.ndarray, Path]:
    """The elements of one file, uint8 of exactly this shape, and where they were read."""
    path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds neither {file} nor {file}.gz; {_wanted(name, layout)}")
    header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
    size = len(header) + int(np.prod(shape))
    data = _read_at_most(path, size + 1, name, layout)
    if data[:4] != header[:4]:
        raise ValueError(
            f"{path} is no IDX file of bytes in {len(shape)} dimensions: it begins with "
            f"{data[:4].hex(' ') or 'nothing'}, wanted {header[:4].hex(' ')}"
        )
    found = tuple(int(n) for n in np.frombuffer(data[4 : len(header)].ljust(12, b"\0"), ">u4"))
    if data[: len(header)] != header:
        raise ValueError(
            f"{path} states the shape {found[: len(shape)]}, wanted {shape}; "
            f"{_wanted(name, layout)}"
        )
    if len(data) != size:
        relation = "more than" if len(data) > size else f"{len(data):,} of"
        raise ValueError(f"{path} is damaged or cut off: {relation} the {size:,} bytes wanted")
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape), path


def _read_at_most(path: Path, limit: int, name: str, layout: IdxFormat) -> bytes:
    """The first bytes of a file, unpacked where it is gzipped: never more than `limit`."""
    try:
        with path.open("rb") as file:
            if file.read(2) != _GZIP_MAGIC:
                file.seek(0)
                return file.read(limit)
        with gzip.open(path) as unpacked:
            return unpacked.read(limit)  # `limit` is past its end, where its checksum is
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged, cut off, or cannot be read ({error}); {_wanted(name, layout)}"
        ) from error


def _wanted(name: str, layout: IdxFormat) -> str:
    return f"wanted the four official IDX files of {name}, {layout.url}"


def _examples(
    split: str, images: np.ndarray, labels: np.ndarray
) -> Callable[[], Iterator[dict[str, Any]]]:
    def generate() -> Iterator[dict[str, Any]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield {"id": f"{split}_{index:05d}", "image": image[:, :, None], "label": int(label)}

    return generate
