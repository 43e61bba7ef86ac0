"""CIFAR-10 and CIFAR-100 from their official binary archives. The pickled ones are refused."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vit_jax.data.prepared_writer import write_prepared
from vit_jax.data.tar_files import read_tar_files

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
_MAX_NAMES_BYTES = 64 * 1024
_MAX_BYTES = 2**28  # of an archive, unpacked: they have 184 million
VERSION = "3.0.2"  # of TFDS's own cifar10 and cifar100, whose schema this is


@dataclass(frozen=True)
class CifarFormat:
    """What an official binary archive holds, and where it is had.

    Attributes:
        splits: the binary members of each split.
        labels: each label's byte in the order of a record, and the member with its class names.
        url: the archive.
        sha256: its checksum, as TFDS records it.
        max_records: most records in one member.
        description: what the set is.
    """

    splits: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str]
    url: str
    sha256: str
    max_records: int
    description: str


CIFAR_FORMATS = {
    "cifar10": CifarFormat(
        splits={
            "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        labels={"label": "batches.meta.txt"},
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        max_records=10_000,
        description="CIFAR-10: 60,000 colour images of 32x32 in 10 classes.",
    ),
    "cifar100": CifarFormat(
        splits={"train": ("train.bin",), "test": ("test.bin",)},
        labels={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        max_records=50_000,
        description="CIFAR-100: 60,000 colour images of 32x32 in 100 classes of 20 superclasses.",
    ),
}


def prepare_cifar_archive(
    name: str, data_dir: str | os.PathLike[str], archive: str | os.PathLike[str]
) -> Path:
    """Writes data_dir/NAME/3.0.2 from an official binary archive.

    A record is one byte for each label, then 1,024 bytes each of red, green and blue, row by row.
    Only the members named in `CIFAR_FORMATS` are read, and none is unpacked to disk.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: where prepared sets are.
        archive: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz.

    Returns:
        The directory written.

    Raises:
        ValueError: no such file, the pickled or another archive, one that is damaged or cut off, or
            the directory exists already.
    """
    layout = CIFAR_FORMATS[name]
    members = _read_members(name, layout, archive)
    labels = {
        key: _class_names(members[member], member, archive) for key, member in layout.labels.items()
    }
    return write_prepared(
        data_dir,
        name,
        VERSION,
        {
            split: _examples(split, [(file, members[file]) for file in files], labels, archive)
            for split, files in layout.splits.items()
        },
        image_shape=(_SIDE, _SIDE, 3),
        labels=labels,
        description=layout.description,
    )


def _read_members(
    name: str, layout: CifarFormat, archive: str | os.PathLike[str]
) -> dict[str, bytes]:
    """The wanted members by base name, each checked against the size that it may have."""
    record_bytes = len(layout.labels) + _PIXEL_BYTES
    limits = dict.fromkeys(layout.labels.values(), _MAX_NAMES_BYTES)
    for files in layout.splits.values():
        limits |= dict.fromkeys(files, layout.max_records * record_bytes)

    def choose(path: str) -> tuple[str, int] | None:
        base = PurePosixPath(path).name
        if "-py" in path or base == "data_batch_1":
            raise ValueError(
                f"{archive} is the Python archive, whose pickles can run any code when read, and "
                f"is refused; {_wanted(name, layout)}"
            )
        return (base, limits[base]) if base in limits else None

    members = read_tar_files(archive, choose, most_bytes=_MAX_BYTES, wanted=_wanted(name, layout))
    for base, data in members.items():
        if base.endswith(".bin") and (not data or len(data) % record_bytes):
            raise ValueError(
                f"{archive}: {base} has {len(data)} bytes, not a multiple of the {record_bytes} of "
                f"a record; {_wanted(name, layout)}"
            )
    if missing := sorted(set(limits) - set(members)):
        raise ValueError(f"{archive} lacks {', '.join(missing)}; {_wanted(name, layout)}")
    return members


def _wanted(name: str, layout: CifarFormat) -> str:
    return f"wanted the official binary archive of {name}, {layout.url}"


def _class_names(data: bytes, member: str, archive: str | os.PathLike[str]) -> list[str]:
    try:
        names = [line.strip() for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{archive}: {member} is not text") from error
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"{archive}: {member} must name each class once, it has {len(names)} names"
        )
    return names


def _examples(
    split: str,
    files: Iterable[tuple[str, bytes]],
    labels: Mapping[str, list[str]],
    archive: str | os.PathLike[str],
) -> Callable[[], Iterator[dict[str, Any]]]:
    def generate() -> Iterator[dict[str, Any]]:
        count = 0
        for file, data in files:
            records = np.frombuffer(data, np.uint8).reshape(-1, len(labels) + _PIXEL_BYTES)
            for row, record in enumerate(records):
                planes = record[len(labels) :].reshape(3, _SIDE, _SIDE)
                example: dict[str, Any] = {
                    "id": f"{split}_{count:05d}",
                    "image": np.ascontiguousarray(planes.transpose(1, 2, 0)),
                }
                for value, (key, class_names) in zip(record, labels.items(), strict=False):
                    if value >= len(class_names):
                        raise ValueError(
                            f"{archive}: record {row} of {file} has {key} {value}, but there are "
                            f"{len(class_names)} names"
                        )
                    example[key] = int(value)
                yield example
                count += 1

    return generate
