"""PyTorch checkpoints read and written without torch, against torch."""

import argparse
import collections
import datetime
import decimal
import fractions
import os
import types
import uuid
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.commands import run_alone
from vit_jax.weights import torch_writer
from vit_jax.weights.torch_file import read_torch_file
from vit_jax.weights.torch_writer import write_torch_file

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.complex128,
)  # fmt: skip

UNTYPED = (torch.uint16, torch.uint32, torch.uint64)  # torch keeps them as mere bytes


def save(obj: Any, path: Path, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def bits(value: torch.Tensor | np.ndarray) -> tuple:
    """What must be equal, to the bit: type, shape, and the bytes in C order."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype).removeprefix("torch."), tuple(value.shape), raw
    return value.dtype.name, value.shape, value.tobytes()


def values(dtype: torch.dtype) -> torch.Tensor:
    noise = torch.randint(0, 256, (3, 5, 16), dtype=torch.uint8, generator=torch.manual_seed(0))
    return noise > 127 if dtype == torch.bool else noise.view(dtype)


@FORMS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_layout(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    """Each bit, NaNs with payloads among them."""
    whole = values(dtype)
    tensors = {
        "whole": whole,
        "transposed": whole.permute(2, 0, 1),
        "sliced": whole[1:, ::2, 1:],
        "scalar": whole[2, 3, 0],
        "empty": torch.zeros(0, 3, dtype=dtype),
        "expanded": whole[:1].expand(4, -1, -1),
        "alone": whole.clone(),
        "parameter": torch.nn.Parameter(whole.clone(), requires_grad=False),
    }
    arrays = read_torch_file(save(tensors, tmp_path / "a.pth.tar", zipped))
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert bits(arrays[name]) == bits(tensor), name
        assert not arrays[name].flags.writeable
    assert np.shares_memory(arrays["whole"], arrays["transposed"])  # a storage is read once
    assert not np.shares_memory(arrays["whole"], arrays["alone"])


def test_bfloat16_is_the_type_of_ml_dtypes(tmp_path: Path) -> None:
    array = read_torch_file(save(torch.ones(2, dtype=torch.bfloat16), tmp_path / "a.pt"))
    assert array.dtype == ml_dtypes.bfloat16


def checkpoint() -> dict[Any, Any]:
    """As training scripts write them (DeiT's among them)."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),  # an OrderedDict with `_metadata`
        "parameters": collections.OrderedDict(model.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(
            lr=0.1, device=torch.device("cuda", 1), dtype=torch.bfloat16, size=torch.Size([2, 3]),
            output_dir=Path("runs") / "a", names={"a", "b"}, rate=1 + 2j, none=None, flag=True,
            big=2**70, text="ä\n\U0001f600", frozen=frozenset([1]), raw=b"\x00\xff", nested=[(1,)],
        ),
        "epoch": 3,
        "best": np.float64(81.5),
        "numpy": {
            "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
            "big_endian": np.arange(3, dtype=">i4"),
            "empty": np.zeros((0, 2)),
            "bool": np.array([True, False]),
        },
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [1]}),
        (1, "key"): torch.float16,
    }  # fmt: skip


def assert_same(read: Any, written: Any) -> None:
    """Both are equal once tensors are arrays, and other types the plain ones documented."""
    if isinstance(written, torch.Tensor):
        assert bits(read) == bits(written)
    elif isinstance(written, np.ndarray):
        assert read.dtype == written.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, written)
    elif isinstance(written, argparse.Namespace):
        assert_same(read, vars(written))
    elif isinstance(written, dict):
        assert type(read) is dict
        assert list(read) == list(written)
        for key in written:
            assert_same(read[key], written[key])
    elif isinstance(written, list | tuple):
        assert type(read) is (tuple if isinstance(written, tuple) else list)
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            assert_same(one, other)
    elif isinstance(written, torch.dtype | torch.device | Path):
        assert read == str(written)
    else:
        assert type(read) is type(written)
        assert read == written


@FORMS
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_checkpoint_of_a_training_script(zipped: bool, protocol: int, tmp_path: Path) -> None:
    written = checkpoint()
    assert_same(read_torch_file(save(written, tmp_path / "a.pth", zipped, protocol)), written)


class Options:
    """Of a training script, with attributes."""

    def __init__(self) -> None:
        self.lr = 0.1


class Settings(dict):
    """As Lightning's AttributeDict."""


class Names(list):
    """As a ListConfig."""


DAY = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
FOREIGN = (
    DAY, DAY.date(), DAY.time(), DAY - DAY, decimal.Decimal("1.5"), fractions.Fraction(1, 3),
    uuid.UUID(int=5), range(3), collections.deque([1, 2]), types.SimpleNamespace(lr=1),
    Options(), Settings(lr=0.1), Names(["a", "b"]),
)  # fmt: skip


@FORMS
@pytest.mark.parametrize("protocol", [1, 2, 5])
def test_objects_of_other_classes_are_left_unread(
    zipped: bool, protocol: int, tmp_path: Path
) -> None:
    """One of them beside the weights does not make the file unreadable."""
    for value in FOREIGN:
        written = {"model": {"w": torch.ones(2)}, "args": [value, {"again": value}]}
        read = read_torch_file(save(written, tmp_path / "a.pth", zipped, protocol))
        np.testing.assert_array_equal(read["model"]["w"], np.ones(2))
        kind = type(value)
        said = f"an object of {kind.__module__}.{kind.__name__}"
        if protocol == 1 and isinstance(value, dict | list):
            continue  # made by a call of the base class with its items
        if isinstance(value, Settings):
            said = {"lr": 0.1}
        if isinstance(value, range) and protocol <= 2:  # as for Python 2
            said = "an object of builtins.xrange"
        assert read["args"] == [said, {"again": said}]


def test_tensor_with_attributes_and_bare_storage(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.arange(3.0))
    tensor.note = "kept by torch"  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: TypedStorage is deprecated
        storage = tensor.detach().clone().storage()
        read = read_torch_file(save([tensor, storage], tmp_path / "a.pth"))
    for array in read:
        np.testing.assert_array_equal(array, np.arange(3, dtype=np.float32))


def test_big_endian_file(tmp_path: Path) -> None:
    """A file as a big-endian machine writes it: torch reads the same from it."""
    tensors = {str(dtype): values(dtype) for dtype in DTYPES if dtype not in UNTYPED}
    little, big = save(tensors, tmp_path / "little.pth"), tmp_path / "big.pth"
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as target:
        for entry in source.infolist():
            raw = source.read(entry)
            if entry.filename.endswith("byteorder"):
                raw = b"big"
            elif "/data/" in entry.filename:
                tensor = list(tensors.values())[int(entry.filename.rpartition("/")[2])]
                width = tensor.dtype.itemsize // (2 if tensor.is_complex() else 1)
                raw = np.frombuffer(raw, np.uint8).reshape(-1, width)[:, ::-1].tobytes()
            target.writestr(entry.filename, raw)
    arrays = read_torch_file(big)
    theirs = torch.load(big, weights_only=True)
    for name, tensor in tensors.items():
        assert bits(arrays[name]) == bits(tensor) == bits(theirs[name]), name


def test_big_endian_bytes_of_unknown_width_are_refused(tmp_path: Path) -> None:
    """torch misreads them, silently."""
    path = save({"a": values(torch.uint16)}, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for entry in source.infolist():
            is_order = entry.filename.endswith("byteorder")
            target.writestr(entry.filename, b"big" if is_order else source.read(entry))
    with pytest.raises(ValueError, match="a big-endian file holds a tensor of uint16"):
        read_torch_file(tmp_path / "b.pth")


def test_checksums(tmp_path: Path) -> None:
    """A damaged tensor is found unless not asked for; the pickle's checksum always counts."""
    path = save({"weight": torch.arange(100.0)}, tmp_path / "a.pth")
    whole = path.read_bytes()
    place = whole.index(np.arange(100, dtype=np.float32).tobytes()) + 7
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="a/data/0' is damaged: its checksum"):
        read_torch_file(path)
    assert read_torch_file(path, verify=False)["weight"].shape == (100,)

    path.write_bytes(whole.replace(b"X\x06\x00\x00\x00weight", b"X\x06\x00\x00\x00height"))
    with pytest.raises(ValueError, match=r"data\.pkl' is damaged"):
        read_torch_file(path, verify=False)


def test_file_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_torch_file(path)["a"], np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"plain text", "does not begin with the magic number"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "a tar file of torch before 0.1.10"),
    ],
)
def test_what_is_no_torch_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no PyTorch file .*none\.pth"):
        read_torch_file(tmp_path / "none.pth")


def test_other_zip_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ValueError, match=r"not of torch\.save"):
        read_torch_file(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b/data.pkl", "")
        archive.writestr("b/constants.pkl", "")
    with pytest.raises(ValueError, match="a TorchScript program"):
        read_torch_file(tmp_path / "b.zip")


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = save(checkpoint(), tmp_path / "a.pth")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vit_jax.weights.torch_file import read_torch_file\n"
        f"assert read_torch_file({str(path)!r})['epoch'] == 3\n"
        "assert 'jax' not in sys.modules and 'pickle' not in dir(sys.modules['__main__'])"
    )
    run_alone("-c", code)


# --- writing ---


def state_dict() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {str(dtype): values(dtype) for dtype in DTYPES if dtype != torch.bfloat16}
    return {
        **{name: tensor.numpy() for name, tensor in arrays.items()},
        "bfloat16": rng.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
        "transposed": rng.normal(size=(3, 4)).T,
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "Namen.mit.Umlauten.ä": np.ones(1, np.float32),
    }


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_is_written(mapped: bool, tmp_path: Path) -> None:
    arrays = state_dict()
    write_torch_file(tmp_path / "a.pth", arrays)
    tensors = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
    assert type(tensors) is collections.OrderedDict
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert bits(tensors[name]) == bits(array), name
        assert tensors[name].is_contiguous()
        assert tensors[name].data_ptr() % 64 == 0 or not array.size, name
    read = read_torch_file(tmp_path / "a.pth")
    assert {name: bits(array) for name, array in read.items()} == {
        name: bits(array) for name, array in arrays.items()
    }


def test_written_file_is_a_whole_zip_file(tmp_path: Path) -> None:
    """Also to Python's reader, checksums included; an entry that needs 64 bits too."""
    write_torch_file(tmp_path / "a.pth", state_dict())
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_big_entries_have_64_bit_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the border of 2 GiB moved to 100 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    arrays = {"a": np.arange(1000.0), "b": np.arange(1001.0)}
    write_torch_file(tmp_path / "a.pth", arrays)
    tensors = torch.load(tmp_path / "a.pth", weights_only=True, mmap=True)
    read = read_torch_file(tmp_path / "a.pth")
    for name, array in arrays.items():
        assert bits(tensors[name]) == bits(array) == bits(read[name])
        assert tensors[name].data_ptr() % 64 == 0


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a.pth", state_dict())
    write_torch_file(tmp_path / "sub" / "b.pth", state_dict())
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "sub" / "b.pth").read_bytes()


def test_big_endian_arrays_are_written_little_endian(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a.pth", {"a": np.arange(5, dtype=">f4")})
    tensor = torch.load(tmp_path / "a.pth", weights_only=True)["a"]
    assert bits(tensor) == bits(np.arange(5, dtype=np.float32))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"a": np.array(["text"])}, "'a' is of <U4: torch's types are"),
        ({"a": [1.0]}, "'a': wanted a string and a NumPy array, got a list"),
    ],
)
def test_what_torch_cannot_hold_is_refused(entry: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_torch_file(tmp_path / "a.pth", entry)
    assert not list(tmp_path.iterdir())


def test_names_are_strings() -> None:
    with pytest.raises(ValueError, match="1: wanted a string and a NumPy array"):
        torch_writer._native(1, np.ones(1))


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    write_torch_file(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch_writer.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_torch_file(path, {"a": np.zeros(300)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pth"]
