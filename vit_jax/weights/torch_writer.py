"""Checkpoints that `torch.load` reads, written without torch."""

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vit_jax.weights.atomic import whole
from vit_jax.weights.torch_tensors import DTYPES, STORAGES

_ROOT = "archive"
_ALIGNMENT = 64  # bytes; torch's own, so that a mapped tensor is aligned
_STORAGE_OF = {DTYPES[element]: storage for storage, element in STORAGES.items()}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_NO_CALL = b"ccollections\nOrderedDict\n)R"  # OrderedDict()


def write_torch_file(
    path: str | os.PathLike,
    state_dict: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a state dict in torch's zip form: an OrderedDict of tensors for `torch.load`.

    The same arrays give the same bytes. The file is put in place whole: a failure leaves the old
    one, and nothing beside it.

    Args:
      state_dict: name to array, of any layout in memory and either byte order. bfloat16 is
        `ml_dtypes.bfloat16`.
      extra: further entries of the zip, by name, which `torch.load` leaves alone; see
        `vit_jax.weights.torch_file.read_torch_entry`.

    Raises:
      ValueError: a name is no string, or a value no array of a type that torch has.
    """
    arrays = {name: _native(name, array) for name, array in state_dict.items()}
    with whole(Path(path)) as partial, partial.open("wb") as file:
        _write(file, arrays, extra or {})
        file.flush()
        os.fsync(file.fileno())


def _native(name: Any, array: Any) -> np.ndarray:
    """The array in little-endian order; what has no type in torch is refused."""
    if not (isinstance(name, str) and isinstance(array, np.ndarray)):
        raise ValueError(
            f"{name!r}: wanted a string and a NumPy array, got a {type(array).__name__}"
        )
    native = array.dtype.newbyteorder("=") if array.dtype.byteorder == ">" else array.dtype
    if native not in _NAME_OF:
        raise ValueError(f"{name!r} is of {array.dtype}: torch's types are {sorted(DTYPES)}")
    return array.astype(native, copy=False)


def _write(file: IO[bytes], arrays: Mapping[str, np.ndarray], extra: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", _pickle(arrays))
        _add(archive, file, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            contiguous = np.ascontiguousarray(array).reshape(-1)
            _add(archive, file, f"data/{key}", contiguous.view(np.uint8).data)
        _add(archive, file, "version", b"3\n")
        for name, content in extra.items():
            _add(archive, file, name, content)


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, content: bytes | memoryview) -> None:
    """Adds an entry whose content begins at a multiple of the alignment."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
    is_large = len(content) > zipfile.ZIP64_LIMIT
    entry.file_size = len(content)
    # The entry's own header, its sizes in 64 bits where they need it, and the padding's head.
    header = 30 + len(entry.filename) + (20 if is_large else 0) + 4
    padding = -(file.tell() + header) % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # torch's own field
    with archive.open(entry, "w", force_zip64=is_large) as stream:
        stream.write(content)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle, of protocol 2 as torch's, of an OrderedDict of tensors in C order."""
    parts = [b"\x80\x02", _NO_CALL, b"("]
    for key, (name, array) in enumerate(arrays.items()):
        parts += [_text(name), _tensor(str(key), array)]
    return b"".join([*parts, b"u."])


def _tensor(key: str, array: np.ndarray) -> bytes:
    storage = _STORAGE_OF.get(array.dtype)
    numel = array.size if storage else array.nbytes
    kind = f"ctorch\n{storage}\n" if storage else "ctorch.storage\nUntypedStorage\n"
    identity = [_text("storage"), kind.encode(), _text(key), _text("cpu"), _integer(numel)]
    strides, step = [], 1
    for size in reversed(array.shape):
        strides.append(step)
        step *= max(size, 1)
    arguments = [_tuple(*identity) + b"Q", _integer(0), _tuple(*map(_integer, array.shape))]
    arguments += [_tuple(*map(_integer, reversed(strides))), b"\x89", _NO_CALL]
    if not storage:
        arguments.append(f"ctorch\n{_NAME_OF[array.dtype]}\n".encode())
    function = "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3"
    return f"ctorch._utils\n{function}\n".encode() + _tuple(*arguments) + b"R"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)  # LONG1


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
