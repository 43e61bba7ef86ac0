"""Preparing data sets: official archives, TFDS, and everything that can be wrong with either."""

import dataclasses
import fcntl
import gzip
import hashlib
import io
import os
import shutil
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.conftest import cifar_members, prepare_small, random_images, write_tar
from vit_jax.data import cifar_archive, idx_archive, imagenette_archive, open_splits
from vit_jax.data.prepare import prepare
from vit_jax.data.tar_files import read_tar_files

ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def small_archive(tmp_path: Path, name: str, **changes: bytes | None) -> Path:
    """An archive in the official format; `changes` replaces members, None leaves one out."""
    members = cifar_members(name, train=20, test=10)
    for member, data in changes.items():
        (key,) = (key for key in members if key.endswith(f"/{member}"))
        if data is None:
            del members[key]
        else:
            members[key] = data
    return write_tar(tmp_path / ARCHIVES[name], members)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_official_archive_becomes_a_set(tmp_path: Path, name: str) -> None:
    path = prepare(name, tmp_path / "data", small_archive(tmp_path, name))
    assert path == tmp_path / "data" / name / "3.0.2"
    splits = open_splits(
        "tfds",
        name,
        tmp_path / "data",
        validation_split="shuffled(test)[:70%]",
        test_split="shuffled(test)[70%:]",
    )
    assert [len(p) for p in (splits.train, splits.validation, splits.test) if p] == [20, 7, 3]
    assert splits.train.image_shape == (32, 32, 3)
    members = cifar_members(name, train=20, test=10)
    if name == "cifar10":
        assert splits.class_names == tuple(f"class{i}" for i in range(10))
        raw = b"".join(members[f"cifar-10-batches-bin/data_batch_{i}.bin"] for i in range(1, 6))
    else:
        assert splits.class_names == tuple(f"fine{i}" for i in range(100))
        raw = members["cifar-100-binary/train.bin"]
    records = np.frombuffer(raw, np.uint8).reshape(20, -1)
    for example, record in zip(splits.train.__getitems__(range(20)), records, strict=True):
        assert example["label"] == record[-3073]  # the fine label is the last before the pixels
        for channel in range(3):
            plane = record[-3072:][1024 * channel :][:1024].reshape(32, 32)
            np.testing.assert_array_equal(example["image"][:, :, channel], plane)


def test_tfdss_own_cifar100_reads_it(tmp_path: Path) -> None:
    prepare("cifar100", tmp_path / "data", small_archive(tmp_path, "cifar100"))
    builder: Any = tfds.builder("cifar100", data_dir=tmp_path / "data")
    example = builder.as_data_source("train")[0]
    assert set(example) == {"id", "image", "label", "coarse_label"}
    assert builder.info.features["coarse_label"].num_classes == 20
    assert example["id"] == b"train_00000"


@pytest.mark.parametrize(
    "raised",
    [
        OSError(28, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x"),  # array_record's
    ],
)
def test_nothing_is_overwritten_or_left_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    archive = small_archive(tmp_path, "cifar10")
    home = tmp_path / "data" / "cifar10"

    def break_off(*args: Any, **kwargs: Any) -> None:
        raise raised

    with monkeypatch.context() as patch:
        patch.setattr("vit_jax.data.prepared_writer._write_metadata", break_off)
        with pytest.raises(ValueError, match=r"cannot be written: .*No space left on device"):
            prepare("cifar10", tmp_path / "data", archive)
    assert list(home.iterdir()) == []
    killed, held = home / ".3.0.2.incomplete-x", home / ".3.0.2.incomplete-y"
    for left in (killed, held):
        left.mkdir()
        (left / "half").touch()
    writer = os.open(held, os.O_RDONLY)  # of another process, at work
    fcntl.flock(writer, fcntl.LOCK_EX)
    first = prepare("cifar10", tmp_path / "data", archive)
    assert [path.name for path in sorted(home.iterdir())] == [held.name, "3.0.2"]
    os.close(writer)
    shutil.rmtree(held)
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        prepare("cifar10", tmp_path / "data", archive)
    with pytest.raises(ValueError, match="exists already and is left as it is"):
        prepare_small(tmp_path / "data", "cifar10", "3.0.2")
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    assert [path.name for path in home.iterdir()] == ["3.0.2"]


def test_python_archive_is_refused_with_the_reason(tmp_path: Path) -> None:
    archive = write_tar(
        tmp_path / "cifar-100-python.tar.gz", {"cifar-100-python/train": b"\x80\x02pickle"}
    )
    with pytest.raises(ValueError, match="Python archive, whose pickles can run any code"):
        prepare("cifar100", tmp_path / "data", archive)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test.bin": None}, "lacks test.bin"),
        ({"fine_label_names.txt": None}, "lacks fine_label_names.txt"),
        ({"train.bin": b"x" * 3073}, "train.bin has 3073 bytes, not a multiple of the 3074"),
        ({"train.bin": b""}, "train.bin has 0 bytes"),
        ({"fine_label_names.txt": b"a\na\n"}, "must name each class once"),
        ({"fine_label_names.txt": b"\xff\xfe"}, "is not text"),
        ({"fine_label_names.txt": b"x" * 70_000}, "larger than the 65536 bytes"),
        (
            {"test.bin": b"\x63" * 3074},
            "record 0 of test.bin has coarse_label 99, but there are 20",
        ),
    ],
)
def test_bad_archives_are_one_clear_error(
    tmp_path: Path, changes: dict[str, bytes | None], message: str
) -> None:
    archive = small_archive(tmp_path, "cifar100", **changes)
    with pytest.raises(ValueError, match=message):
        prepare("cifar100", tmp_path / "data", archive)
    assert not (tmp_path / "data/cifar100/3.0.2").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95])
def test_truncated_archive_is_named(tmp_path: Path, share: float) -> None:
    archive = small_archive(tmp_path, "cifar100")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="damaged, cut off, or no tar archive"):
        prepare("cifar100", tmp_path / "data", archive)


def test_flipped_byte_is_caught_by_the_checksum_of_gzip(tmp_path: Path) -> None:
    archive = small_archive(tmp_path, "cifar100")
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="damaged, cut off"):
        prepare("cifar100", tmp_path / "data", archive)


def test_members_elsewhere_in_the_tar_are_never_written(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-100-binary.tar.gz"
    members = cifar_members("cifar100", train=20, test=10)
    write_tar(archive, {**members, "../../escaped.txt": b"x", "/absolute.txt": b"x"})
    with tarfile.open(tmp_path / "linked.tar", "w") as tar:
        link = tarfile.TarInfo("cifar-100-binary/train.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    prepare("cifar100", tmp_path / "a" / "data", archive)
    assert not list(tmp_path.rglob("escaped.txt"))
    with pytest.raises(ValueError, match=r"lacks .*train.bin"):
        prepare("cifar100", tmp_path / "b", tmp_path / "linked.tar")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar10", "archive": "nowhere.tar.gz"}, "there is no archive nowhere.tar.gz"),
        ({"name": "imagenette", "archive": "x"}, "--archive is for cifar10, cifar100, fashion_mni"),
        ({"name": "fashion_mnist", "archive": "nowhere"}, "there is no directory nowhere"),
        (
            {"name": "fashion_mnist:1.0.0", "archive": "x"},
            "prepared in version 3.0.1, 1.0.0 was asked for",
        ),
        ({"name": "cifar10:1.0.0"}, "prepared in version 3.0.2, 1.0.0 was asked for"),
        ({"name": "cifra10"}, "TFDS knows no data set 'cifra10'; did you mean cifar10"),
        ({"name": "a b"}, "not of the form"),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(**arguments, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar100", "fashion_mnist", "imagenette", "imagenette128"])
def test_without_a_network_the_ways_out_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(ValueError, match=r"not reachable .*Ways out: .*--config.data.data_dir="):
        prepare(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_network_that_swallows_everything_ends_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def swallow(*args: Any, **kwargs: Any) -> io.BytesIO:
        done.wait(10)
        return io.BytesIO()

    monkeypatch.setattr(urllib.request, "urlopen", swallow)
    module = sys.modules[prepare.__module__]  # the package's name `prepare` is the function
    monkeypatch.setattr(module, "_REACH_TIMEOUT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(ValueError, match="no answer in"):
        prepare("cifar10", tmp_path)
    assert time.monotonic() - start < 2
    done.set()


def test_download_is_checked_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_archive(tmp_path, "cifar10").read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO(data))
    with pytest.raises(ValueError, match=r"came with checksum .* cut off or changed"):
        prepare("cifar10", tmp_path / "data")
    layout = cifar_archive.CIFAR_FORMATS["cifar10"]
    right = cifar_archive.CifarFormat(
        **{**vars(layout), "sha256": hashlib.sha256(data).hexdigest()}
    )
    monkeypatch.setitem(cifar_archive.CIFAR_FORMATS, "cifar10", right)
    assert prepare("cifar10", tmp_path / "data").name == "3.0.2"


# --------------------------------------------------------------------------------------- IDX files


@pytest.fixture
def small_idx(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files of a Fashion-MNIST of 20 and 10 images."""
    layout = idx_archive.IDX_FORMATS["fashion_mnist"]
    splits = {"train": ("train", 20), "test": ("t10k", 10)}
    small = dataclasses.replace(layout, splits=splits)
    monkeypatch.setitem(idx_archive.IDX_FORMATS, "fashion_mnist", small)
    draw = np.random.default_rng(0).integers
    files = {}
    for stem, count in splits.values():
        images = draw(0, 256, (count, 28, 28), np.uint8)
        labels = draw(0, 10, (count,), np.uint8)
        for file, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = np.array(array.shape, ">u4").tobytes()
            header = bytes((0, 0, 8, array.ndim)) + sizes
            files[f"{stem}-{file}-ubyte"] = header + array.tobytes()
    return files


def write_idx(folder: Path, files: dict[str, bytes], *, zipped: bool = True) -> Path:
    """The files in a new folder."""
    folder.mkdir()
    for name, data in files.items():
        path = folder / f"{name}.gz" if zipped else folder / name
        path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_become_a_set(tmp_path: Path, small_idx: dict[str, bytes], zipped: bool) -> None:
    path = prepare("fashion_mnist", tmp_path, write_idx(tmp_path / "idx", small_idx, zipped=zipped))
    assert path == tmp_path / "fashion_mnist" / "3.0.1"
    splits = open_splits("tfds", "fashion_mnist", tmp_path, validation_split="train[:5]")
    assert splits.test is not None
    assert [len(splits.train), len(splits.test)] == [20, 10]
    assert splits.class_names[0::9] == ("T-shirt/top", "Ankle boot")
    for part, stem in ((splits.train, "train"), (splits.test, "t10k")):
        pixels = np.frombuffer(small_idx[f"{stem}-images-idx3-ubyte"][16:], np.uint8)
        labels = small_idx[f"{stem}-labels-idx1-ubyte"][8:]
        for index, image in enumerate(pixels.reshape(-1, 28, 28, 1)):
            np.testing.assert_array_equal(part[index]["image"], image)
            assert part[index]["label"] == labels[index]
    with pytest.raises(ValueError, match="exists already; remove it first"):
        prepare("fashion_mnist", tmp_path, tmp_path / "idx")


def test_tfdss_own_fashion_mnist_reads_it(tmp_path: Path, small_idx: dict[str, bytes]) -> None:
    prepare("fashion_mnist", tmp_path, write_idx(tmp_path / "idx", small_idx))
    builder: Any = tfds.builder("fashion_mnist", data_dir=tmp_path)
    assert builder.info.features["label"].names[8] == "Bag"
    assert builder.as_data_source("test")[0]["image"].shape == (28, 28, 1)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train-images-idx3", lambda d: None, "holds neither train-images-idx3-ubyte nor"),
        ("train-images-idx3", lambda d: d[:-1], r"cut off: 15,695 of the 15,696 bytes"),
        ("train-images-idx3", lambda d: d + b"x", r"more than the 15,696 bytes"),
        ("train-images-idx3", lambda d: b"", "it begins with nothing, wanted 00 00 08 03"),
        ("t10k-images-idx3", lambda d: b"\0\0\x09" + d[3:], "begins with 00 00 09 03, wanted 00"),
        (
            "t10k-images-idx3",
            lambda d: d[:7] + b"\x09" + d[8:],
            r"shape \(9, 28, 28\), wanted \(10",
        ),
        ("t10k-images-idx3", lambda d: d[:9], r"shape \(10, 0, 0\), wanted \(10, 28, 28\)"),
        ("t10k-labels-idx1", lambda d: d[:7] + b"\x14" + d[8:], r"shape \(20,\), wanted \(10,\)"),
        ("t10k-labels-idx1", lambda d: d[:-1] + b"\x0a", "label 9 is 10, but fashion_mnist has 10"),
        ("t10k-labels-idx1", lambda d: b"\x1f\x8b" + d, "damaged, cut off, or cannot be read"),
    ],
)
def test_bad_idx_files_are_one_clear_error(
    tmp_path: Path, small_idx: dict[str, bytes], file: str, change: Any, message: str
) -> None:
    changed = change(small_idx.pop(f"{file}-ubyte"))
    folder = write_idx(tmp_path / "idx", small_idx, zipped=False)
    if changed is not None:
        (folder / f"{file}-ubyte").write_bytes(changed)
    with pytest.raises(ValueError, match=message) as raised:
        prepare("fashion_mnist", tmp_path, folder)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "fashion_mnist").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_gzip_is_named(tmp_path: Path, small_idx: dict[str, bytes], damage: str) -> None:
    folder = write_idx(tmp_path / "idx", small_idx)
    path = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data) if damage == "flipped" else path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="damaged, cut off, or cannot be read"):
        prepare("fashion_mnist", tmp_path, folder)


# -------------------------------------------------------------------------------------- Imagenette


@pytest.fixture
def small_imagenette(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The members of an imagenette2-160.tgz of 20 and 10 images of 24x20 pixels."""
    counts = {"train": 20, "validation": 10}
    for name, layout in imagenette_archive.IMAGENETTE_FORMATS.items():
        small = dataclasses.replace(layout, counts=counts, side=16)
        monkeypatch.setitem(imagenette_archive.IMAGENETTE_FORMATS, name, small)
    members = {"imagenette2-160/noisy_imagenette.csv": b"path", "imagenette2-160/.DS_Store": b"x"}
    for folder, count in (("train", 20), ("val", 10)):
        for number, pixels in enumerate(random_images(count, side=24, seed=count)):
            wnid = list(imagenette_archive._CLASSES)[number % 10]
            file = io.BytesIO()
            Image.fromarray(pixels[:20]).save(file, "JPEG")
            path = f"imagenette2-160/{folder}/{wnid}/{wnid}_{number}.JPEG"
            members[path] = file.getvalue()
    return members


def test_fast_ais_archive_becomes_a_set(tmp_path: Path, small_imagenette: dict[str, bytes]) -> None:
    archive = write_tar(tmp_path / "imagenette2-160.tgz", small_imagenette)
    path = prepare("imagenette128", tmp_path / "data", archive)
    assert path == tmp_path / "data" / "imagenette128" / "1.0.0"
    splits = open_splits("tfds", "imagenette128", tmp_path / "data", test_split=None)
    assert splits.validation is not None
    assert [len(splits.train), len(splits.validation)] == [20, 10]
    assert splits.class_names[::9] == ("tench", "parachute")
    assert splits.train.image_shape == (16, 16, 3)
    records: Any = tfds.builder_from_directory(path).as_data_source("train")
    seen = []
    for number in range(20):
        example = splits.train[number]
        record = records[number]
        wnid, _, index = record["id"].decode().partition("_")
        assert example["label"] == list(imagenette_archive._CLASSES).index(wnid)
        member = f"imagenette2-160/train/{wnid}/{wnid}_{index}.JPEG"
        image = Image.open(io.BytesIO(small_imagenette[member]))
        resized = image.resize((19, 16), Image.Resampling.BICUBIC).crop((2, 0, 18, 16))
        np.testing.assert_array_equal(example["image"], np.asarray(resized))
        seen.append(index)
    assert sorted(seen, key=int) == [str(i) for i in range(20)]
    assert sorted(splits.train[i]["label"] for i in range(10)) == list(range(10))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("imagenette224", lambda m: m, "holds 'imagenette2-160'; wanted imagenette2-320.tgz from"),
        (
            "imagenette128",
            lambda m: dict(list(m.items())[:-1]),
            "holds 9 images of the validation split, not 10; wanted imagenette2-160.tgz",
        ),
        ("imagenette128", lambda m: {"x/train/a": b"1"}, "holds 0 images of the train split"),
        (
            "imagenette128",
            lambda m: m | {next(reversed(m)): b"no JPEG"},
            r"val/n03888257/n03888257_9.JPEG is not a readable image",
        ),
        (
            "imagenette128",
            lambda m: m | {next(reversed(m)): bytes(2**22 + 1)},
            "appears twice or is larger than the 4194304 bytes",
        ),
        (
            "imagenette128",
            lambda m: {"bomb": bytes(2**24)} | m,
            "unpacks to more than 16,000,000 bytes",
        ),
    ],
)
def test_other_archives_than_fast_ais_are_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_imagenette: dict[str, bytes],
    name: str,
    change: Any,
    message: str,
) -> None:
    monkeypatch.setattr(imagenette_archive, "_MAX_BYTES", 16_000_000)
    archive = write_tar(tmp_path / "imagenette2-160.tgz", change(small_imagenette))
    with pytest.raises(ValueError, match=message) as raised:
        prepare(name, tmp_path / "data", archive)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("data/*/*"))


def test_no_more_is_unpacked_than_an_archive_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what tar reads whole into memory by itself: headers that are as long as they say."""
    archive = tmp_path / "long.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * 2**20}
        tar.addfile(info)
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size: asked.append(size) or read(self, size)
    )
    with pytest.raises(ValueError, match=r"long.tar.gz .*unpacks to more than 10,000 bytes"):
        read_tar_files(archive, lambda path: (path, 9), most_bytes=10_000, wanted="w")
    assert max(asked) <= 10_001
    with tarfile.open(archive, "w:gz") as tar:  # of a sparse file an archive holds no zeros
        info = tarfile.TarInfo("a")
        info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info)
    assert read_tar_files(archive, lambda path: (path, 9), most_bytes=20_000, wanted="w") == {}
