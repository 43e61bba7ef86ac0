"""NumPy's .npz, read with distrust: zipped .npy entries, each as long as its header says.

Source of the format: numpy/lib/format.py. Its own reader parses headers as Python, and `zipfile`
unpacks all there is before it looks at the size stated: neither is done here.
"""

import math
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

# As NumPy writes it: the keys are sorted, and a structured type would be a list.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][?a-zA-Z]\d{0,3})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}(?:, ?|(?=\))))*)\), \}\s*"
)
_LENGTHS = {b"\x01\x00": struct.Struct("<H"), b"\x02\x00": struct.Struct("<I")}
_MAX_HEADER = 10_000  # bytes; NumPy's own limit


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name.

    Raises:
      ValueError: it is damaged, holds anything but plain arrays, or would unpack to far more than
        it holds.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_sizes(entries, path.stat().st_size)
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"there are two entries {name}")
                arrays[name] = _read_entry(archive, entry)
    # zipfile, zlib and NumPy each have their own kinds.
    except Exception as error:
        raise ValueError(f"{str(path)!r} is not a whole .npz file: {error}") from error
    return arrays


def _check_sizes(entries: Sequence[zipfile.ZipInfo], packed: int) -> None:
    """Refuses what would unpack to far more than the file holds.

    Weights hardly shrink, but for an array of zeros, such as a head that was never trained.
    """
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is packed by a method that NumPy does not write")
    if sum(entry.compress_size for entry in entries) > packed:
        raise ValueError("its entries overlap")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > 10 * packed + 2**28:
        raise ValueError(f"its {packed:,} bytes would unpack to {unpacked:,}")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    name = entry.filename
    with archive.open(entry) as file:
        magic, version = file.read(6), file.read(2)
        if magic != b"\x93NUMPY" or version not in _LENGTHS:
            raise ValueError(f"{name} is of the unknown form {(magic + version)!r}")
        length = _LENGTHS[version]
        (size,) = length.unpack(file.read(length.size))
        header = _HEADER.fullmatch(file.read(min(size, _MAX_HEADER)))
        if header is None:
            raise ValueError(f"{name} has no header of a plain array")
        dtype = np.dtype(header[1].decode())
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        shape = tuple(int(side) for side in re.findall(rb"\d+", header[3]))
        wanted = dtype.itemsize * math.prod(shape)
        # Not all there is: it would be unpacked first, and then cut to the size stated.
        data = file.read(min(wanted, entry.file_size) + 1)
    if len(data) != wanted:
        raise ValueError(f"{name} has {len(data)} bytes, wanted {wanted}")
    if dtype == np.dtype("V2"):  # as NumPy writes bfloat16, which it has not
        dtype = np.dtype(ml_dtypes.bfloat16)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if header[2] == b"True" else "C")
