"""What changes a port, or the arrays that it is given."""

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tests.parity.planted.base import Arrays


def put(path: str, **fields: Any) -> Callable[[Any], None]:
    """Sets fields of the module at a path."""

    def edit(port: Any) -> None:
        module = functools.reduce(
            lambda node, part: node[int(part)] if part.isdigit() else getattr(node, part),
            path.split("."),
            port,
        )
        for name, value in fields.items():
            assert hasattr(module, name), (path, name)
            setattr(module, name, value)

    return edit


def change(name: str, function: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    """Another array in the place of one."""

    def edit(arrays: Arrays) -> None:
        arrays[name] = np.ascontiguousarray(function(arrays[name]))

    return edit


def exchange(first: str, second: str) -> Callable[[Arrays], None]:
    def edit(arrays: Arrays) -> None:
        arrays[first], arrays[second] = arrays[second], arrays[first]

    return edit


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(array.dtype)
