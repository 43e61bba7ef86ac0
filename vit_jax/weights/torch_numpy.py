"""NumPy's arrays, numbers and types as a pickle describes them: rebuilt without its functions."""

import math
import re
from typing import Any

import numpy as np

from vit_jax.weights.torch_tensors import checked_array, is_count


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
