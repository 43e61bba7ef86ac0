"""Tensors, storages and NumPy arrays as a PyTorch file describes them, and what they become.

Nothing of torch or NumPy that a file names is called.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

# torch's name of each type of element -> NumPy's type.
DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}

# The storage classes of torch. Types without one are kept in an UntypedStorage, counted in bytes.
STORAGES: dict[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_MAX_DIMENSIONS = 32
_MAX_EXTENT = 2**47  # bytes; more than any machine addresses


def is_count(value: Any) -> bool:
    """Whether the value is an int from 0 that can count elements (a bool is not)."""
    return type(value) is int and 0 <= value <= _MAX_EXTENT


def checked_array(array: np.ndarray) -> np.ndarray:
    """The array; one of bools that holds other bytes than 0 and 1 has no meaning in NumPy."""
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise ValueError("a tensor of bools holds other bytes than 0 and 1")
    return array


class Storage:
    """A run of elements in the file, which tensors view. Its bytes may be found later."""

    def __init__(self, key: str, dtype: np.dtype, numel: int) -> None:
        self.key = key
        self.dtype = dtype
        self.numel = numel
        self.is_swapped = False
        self._bytes: np.ndarray | None = None
        self._parent: tuple[Storage, int] | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def part(self, offset: int, numel: int) -> "Storage":
        """The storage of `numel` elements from `offset` on, which shares the bytes of this one."""
        if offset + numel > self.numel:
            raise ValueError(
                f"a view of {numel} elements at {offset} reaches past the end of storage "
                f"{self.key!r} of {self.numel}"
            )
        child = Storage(self.key, self.dtype, numel)
        child._parent = (self, offset * self.dtype.itemsize)
        return child

    def fill(self, raw: np.ndarray, *, big_endian: bool) -> None:
        """Gives the storage its bytes (uint8, read-only); those of the other order are swapped."""
        if raw.size != self.nbytes:
            raise ValueError(
                f"storage {self.key!r} holds {raw.size} bytes where {self.numel} elements of "
                f"{self.dtype} take {self.nbytes}"
            )
        if big_endian and self.dtype.itemsize > 1:
            # Halves of a complex number are swapped each for itself.
            width = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
            raw = raw.reshape(-1, width)[:, ::-1].reshape(-1)
            raw.flags.writeable = False
        self.is_swapped = big_endian
        self._bytes = raw

    def raw_bytes(self) -> np.ndarray:
        """The bytes, in this machine's (little-endian) order."""
        if self._parent is not None:
            parent, start = self._parent
            return parent.raw_bytes()[start : start + self.nbytes]
        if self._bytes is None:
            raise ValueError(f"the file has no data for storage {self.key!r}")
        return self._bytes

    def array(self) -> np.ndarray:
        """The whole storage as an array of one dimension."""
        return Tensor(self, self.dtype, 0, (self.numel,), (1,)).array()


class Tensor:
    """A strided view of a storage, checked to lie inside it.

    Args:
      dtype: the elements' type; other than the storage's only where that is untyped.
      offset: of the first element, in elements.
      shape, strides: in elements.

    Raises:
      ValueError: an entry is not an int from 0 on (negative strides among them), the numbers are
        absurd, or the tensor reaches past the end of its storage.
    """

    def __init__(
        self,
        storage: Storage,
        dtype: np.dtype,
        offset: Any,
        shape: Sequence[Any],
        strides: Sequence[Any],
    ) -> None:
        name = f"a tensor in storage {storage.key!r}"
        if not (isinstance(shape, list | tuple) and isinstance(strides, list | tuple)):
            raise ValueError(f"{name}: its shape and strides are no tuples")
        if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(
                f"{name} has {len(shape)} dimensions and {len(strides)} strides: wanted as many of "
                f"each, {_MAX_DIMENSIONS} at most"
            )
        if not all(map(is_count, (offset, *shape, *strides))):
            raise ValueError(f"{name}: its offset, shape and strides must be counts from 0 on")
        if math.prod(max(size, 1) for size in shape) * dtype.itemsize > _MAX_EXTENT:
            raise ValueError(f"{name} has an absurd shape: {tuple(shape)}")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
            raise ValueError(
                f"{name} reaches past its end: element {last} of "
                f"{storage.nbytes // dtype.itemsize}, with shape {tuple(shape)}, strides "
                f"{tuple(strides)} and offset {offset}"
            )
        self.storage = storage
        self.dtype = dtype
        self.offset = offset
        self.shape = tuple(shape)
        # Where a dimension has one element its stride says nothing, and may be absurd.
        self.strides = tuple(step if n > 1 else 1 for n, step in zip(shape, strides, strict=True))

    def array(self) -> np.ndarray:
        """The tensor as a read-only view of the file's bytes."""
        width = self.dtype.itemsize
        if self.storage.is_swapped and self.dtype != self.storage.dtype:
            # The storage does not say what its bytes are; torch itself misreads these.
            raise ValueError(f"a big-endian file holds a tensor of {self.dtype}")
        if 0 in self.shape:
            empty = np.empty(self.shape, self.dtype)
            empty.flags.writeable = False
            return empty
        view = np.ndarray(
            self.shape,
            self.dtype,
            buffer=self.storage.raw_bytes(),
            offset=self.offset * width,
            strides=[step * width for step in self.strides],
        )
        return checked_array(view)


def want(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(f"{what} has other arguments than torch writes")


def count_args(args: tuple, least: int, most: int, name: str) -> None:
    want(least <= len(args) <= most, name)


def latin_1(text: str) -> bytes:
    """The bytes that a pickle holds as text, a character each."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("bytes are written as text that is not Latin-1") from None


class NumpyDType:
    """A numpy.dtype: made by a call, its byte order then set by its state."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class NumpyArray:
    """A numpy.ndarray: made empty by a call, then filled by its state."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None


_NUMPY_CODE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")


def numpy_dtype(args: tuple) -> NumpyDType:
    count_args(args, 1, 3, "a numpy.dtype")
    want(isinstance(args[0], str), "a numpy.dtype")
    if not _NUMPY_CODE.fullmatch(args[0]):
        raise ValueError(
            f"a NumPy array or number is of type {args[0][:40]!a}, which is no plain number"
        )
    return NumpyDType(args[0])


def numpy_data(raw: Any, shape: Any, dtype: Any, order: Any) -> np.ndarray:
    """The array over its bytes, in native byte order."""
    if isinstance(raw, str):  # Python 2's strings, read here as Latin-1
        raw = latin_1(raw)
    want(isinstance(dtype, NumpyDType) and order in ("C", "F"), "a NumPy array")
    if type(raw) is not bytes:
        raise ValueError("a NumPy array of objects is no part of weights")
    want(isinstance(shape, tuple) and len(shape) <= 32, "a NumPy array")
    want(all(map(is_count, shape)), "a NumPy array")
    kind = dtype.dtype()
    if math.prod(shape) * kind.itemsize != len(raw) or math.prod(n or 1 for n in shape) > 2**47:
        raise ValueError(f"a NumPy array of {kind} and shape {shape} has {len(raw)} bytes of data")
    array = checked_array(np.ndarray(shape, kind, buffer=raw, order=order))
    return array.astype(kind.newbyteorder("="), copy=False)


def numpy_empty(args: tuple) -> NumpyArray:
    count_args(args, 3, 3, "a NumPy array")
    return NumpyArray()


def numpy_from_buffer(args: tuple) -> NumpyArray:
    count_args(args, 4, 4, "a NumPy array")
    raw, dtype, shape, order = args
    result = NumpyArray()
    result.array = numpy_data(raw, shape, dtype, order)
    return result


def numpy_scalar(args: tuple) -> np.generic:
    count_args(args, 2, 2, "a NumPy number")
    return numpy_data(args[1], (1,), args[0], "C")[0]
