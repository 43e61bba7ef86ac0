"""Small sets of every kind, made where a test runs."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from vit_jax.data import ArraySource
from vit_jax.data.prepared_writer import write_prepared

CLASSES = ("ant", "bee", "cow")


def random_images(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(count, side, side, channels) uint8."""
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def array_source(count: int, side: int = 8) -> ArraySource:
    """Random images whose label is the index modulo three."""
    return ArraySource(
        random_images(count, side), np.arange(count) % 3, class_names=CLASSES, name="memory"
    )


def prepare_small(data_dir: Path, name: str = "small", version: str = "1.0.0", **sizes: int) -> Any:
    """A prepared set with the given split sizes; image i of a split is `random_images(...)[i]`."""

    def split(size: int) -> Callable[[], Iterator[dict[str, Any]]]:
        return lambda: (
            {"id": str(i), "image": image, "label": i % 3}
            for i, image in enumerate(random_images(size))
        )

    return write_prepared(
        data_dir,
        name,
        version,
        {key: split(size) for key, size in (sizes or {"train": 20, "test": 10}).items()},
        image_shape=(8, 8, 3),
        labels={"label": CLASSES},
        description="Random pixels.",
    )


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an RGB image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def cifar_members(name: str, train: int, test: int) -> dict[str, bytes]:
    """The members of a small official binary archive, by path."""
    rng = np.random.default_rng(1)

    def records(count: int, *classes: int) -> bytes:
        table = rng.integers(0, 256, (count, len(classes) + 3072), dtype=np.uint8)
        for column, number in enumerate(classes):
            table[:, column] %= number
        return table.tobytes()

    def names(stem: str, count: int) -> bytes:
        return "".join(f"{stem}{i}\n" for i in range(count)).encode() + b"\n"

    if name == "cifar100":
        return {
            "cifar-100-binary/coarse_label_names.txt": names("coarse", 20),
            "cifar-100-binary/fine_label_names.txt": names("fine", 100),
            "cifar-100-binary/train.bin": records(train, 20, 100),
            "cifar-100-binary/test.bin": records(test, 20, 100),
        }
    return {
        "cifar-10-batches-bin/batches.meta.txt": names("class", 10),
        "cifar-10-batches-bin/readme.html": b"<html>",
        **{
            f"cifar-10-batches-bin/data_batch_{i}.bin": records(train // 5, 10) for i in range(1, 6)
        },
        "cifar-10-batches-bin/test_batch.bin": records(test, 10),
    }


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz of these members."""
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def explicit_types() -> Iterator[None]:
    """The augmentation runs inside the step, which allows no implicit promotion."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """A data directory that holds the set `small`: 20 training and 10 test images."""
    prepare_small(tmp_path)
    return tmp_path
