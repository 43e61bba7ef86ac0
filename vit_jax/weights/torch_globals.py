"""The names that a PyTorch checkpoint may hold, and what each stands for here.

A pickle names classes and functions of other packages and says which to call. Here a name is looked
up in one fixed table, and stands for a function of this file that makes plain data from plain data:
nothing is imported, nothing of the named package is called. An object of a class that is not in the
table, such as the options of a training script, becomes its class's name, and so does a date; a
kind of dict becomes a dict.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.weights.torch_tensors import (
    DTYPES,
    STORAGES,
    NumpyArray,
    NumpyDType,
    Storage,
    Tensor,
    count_args,
    is_count,
    latin_1,
    numpy_data,
    numpy_dtype,
    numpy_empty,
    numpy_from_buffer,
    numpy_scalar,
    want,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A known name.

    Attributes:
      name: with its module, as Python 3 spells it.
      make: from the list of arguments to what a call stands for; None where it cannot be called.
      dtype: of a storage class, or of a torch dtype.
      is_known: whether the name is in the table.
    """

    name: str
    make: Callable[[tuple], Any] | None = None
    dtype: np.dtype | None = None
    is_known: bool = True


class UnreadObject(str):
    """What is left of an object of a class that is not known here: its name, in words."""

    __slots__ = ()


class Foreign(dict):
    """An object of a class that is not known here: of what the file puts into it items are kept."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def extend(self, items: list) -> None:
        """As a list's, of which it may be a kind."""


class OrderedMapping(dict):
    """An OrderedDict or one of its kind. Its attributes (`_metadata`) are no part of it here."""


class Attributes(dict):
    """An argparse.Namespace, as the dict of its attributes."""


def key_of(value: Any) -> Any:
    """The value, if it can be the key of a dict or an item of a set.

    Only short scalars and flat tuples of them: to hash a nest of tuples can take exponential time,
    and to compare long strings again and again takes long too.
    """
    if isinstance(value, Global):
        return value.name if value.is_known else _no_key(value)
    if type(value) is tuple and len(value) <= 8:
        return tuple(key_of(item) if type(item) is not tuple else _no_key(item) for item in value)
    if type(value) in (str, bytes):
        return value if len(value) <= 4096 else _no_key(value)
    if type(value) is int:
        return value if value.bit_length() <= 64 else _no_key(value)
    return value if type(value) in (float, bool, type(None)) else _no_key(value)


def _no_key(value: Any) -> Any:
    raise ValueError(
        f"a dict has a key (or a set an item) of type {type(value).__name__}: wanted a short "
        "string, a number, or a flat tuple of them"
    )


# --- torch ---


def _tensor(args: tuple) -> Tensor:
    count_args(args, 4, 7, "a tensor")
    storage, offset, shape, strides = args[:4]
    want(isinstance(storage, Storage), "a tensor")
    _plain_number_bits(args[6] if len(args) == 7 else None)
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _tensor_of_dtype(args: tuple) -> Tensor:
    """`_rebuild_tensor_v3`: the tensor says its own type, the storage counts bytes."""
    count_args(args, 7, 8, "a tensor")
    storage, offset, shape, strides, dtype = (*args[:4], args[6])
    kind = dtype.dtype if isinstance(dtype, Global) else None
    want(isinstance(storage, Storage) and storage.dtype == np.uint8, "a tensor")
    if kind is None:
        raise ValueError("a tensor has no type that is known here")
    _plain_number_bits(args[7] if len(args) == 8 else None)
    return Tensor(storage, kind, offset, shape, strides)


def _plain_number_bits(metadata: Any) -> None:
    if metadata:
        raise ValueError("a tensor is marked as conjugate or negated (torch's lazy bits)")


def _parameter(args: tuple) -> Tensor:
    """A parameter is its tensor: whether it wants a gradient is no part of the weights."""
    count_args(args, 3, 4, "a parameter")
    want(isinstance(args[0], Tensor), "a parameter")
    return args[0]


def _tensor_with_attributes(args: tuple) -> Tensor:
    """`_rebuild_from_type_v2(function, type, arguments, state)`, without type and state."""
    count_args(args, 4, 4, "a tensor with attributes")
    function = args[0]
    want(isinstance(function, Global) and type(args[2]) is tuple, "a tensor with attributes")
    want(function.name in _TENSOR_CALLS, "a tensor with attributes")
    return _TENSOR_CALLS[function.name](args[2])


def _size(args: tuple) -> tuple:
    count_args(args, 1, 1, "torch.Size")
    want(isinstance(args[0], list | tuple) and all(map(is_count, args[0])), "torch.Size")
    return tuple(args[0])


def _device(args: tuple) -> str:
    count_args(args, 1, 2, "torch.device")
    want(isinstance(args[0], str) and all(map(is_count, args[1:])), "torch.device")
    return ":".join(map(str, args))


def _layout(args: tuple) -> str:
    count_args(args, 1, 1, "a layout")
    want(isinstance(args[0], str), "a layout")
    return args[0]


_TENSOR_CALLS: dict[str, Callable[[tuple], Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}

# --- plain Python ---


def _ordered(args: tuple) -> OrderedMapping:
    count_args(args, 0, 1, "an OrderedDict")
    want(all(isinstance(arg, dict | list | tuple) for arg in args), "an OrderedDict")
    pairs = [p for arg in args for p in (arg.items() if isinstance(arg, dict) else arg)]
    want(all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs), "an OrderedDict")
    return OrderedMapping((key_of(key), value) for key, value in pairs)


def _default_dict(args: tuple) -> OrderedMapping:
    count_args(args, 0, 1, "a defaultdict")
    want(all(arg is None or isinstance(arg, Global) for arg in args), "a defaultdict")
    for factory in filter(None, args):
        refuse_unknown(factory)
    return OrderedMapping()


def _set(kind: type) -> Callable[[tuple], Any]:
    def make(args: tuple) -> Any:
        count_args(args, 0, 1, "a set")
        want(all(isinstance(arg, list | tuple | set | frozenset) for arg in args), "a set")
        return kind(key_of(item) for arg in args for item in arg)

    return make


def _bytes(args: tuple) -> bytes:
    count_args(args, 0, 1, "bytes")
    want(all(isinstance(arg, bytes) for arg in args), "bytes")
    return b"".join(args)


def _encode(args: tuple) -> bytes:
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes for Python 2."""
    want(len(args) == 2 and isinstance(args[0], str), "_codecs.encode")
    want(args[1] in ("latin1", "latin-1"), "_codecs.encode")
    return latin_1(args[0])


def _complex(args: tuple) -> complex:
    want(len(args) == 2 and all(type(arg) in (int, float) for arg in args), "a complex number")
    return complex(*args)


def _namespace(args: tuple) -> Attributes:
    count_args(args, 0, 0, "a Namespace")
    return Attributes()


def _reconstructor(args: tuple) -> Attributes | Foreign:
    """`copyreg._reconstructor`: how protocols 0 and 1 make an object of a plain class."""
    want(len(args) == 3 and isinstance(args[0], Global), "copyreg._reconstructor")
    kind = args[0]
    if kind.name == "argparse.Namespace":
        return Attributes()
    want(not kind.is_known or kind.name in _CLASSES, "copyreg._reconstructor")
    return Foreign(kind.name)


def _path(args: tuple) -> str:
    want(len(args) <= 256 and all(isinstance(part, str) for part in args), "a path")
    return str(pathlib.PurePosixPath(*args))


def set_state(target: Any, state: Any) -> None:
    """What the pickle instruction BUILD stands for: gives an object its state.

    Raises:
      ValueError: the object is of a kind that has none here, or the state is not what is written.
    """
    if isinstance(target, Foreign):
        return
    if isinstance(target, OrderedMapping):
        want(isinstance(state, dict), "the state of an OrderedDict")
    elif isinstance(target, Attributes):
        want(isinstance(state, dict) and all(isinstance(k, str) for k in state), "a Namespace")
        target.update(state)
    elif isinstance(target, NumpyDType):
        want(isinstance(state, tuple) and len(state) in (8, 9), "a numpy.dtype")
        want(state[1] in ("<", ">", "|", "=") and state[2:5] == (None,) * 3, "a numpy.dtype")
        target.order = state[1]
    elif isinstance(target, NumpyArray):
        want(isinstance(state, tuple) and len(state) == 5, "a NumPy array")
        _, shape, dtype, is_fortran, raw = state
        target.array = numpy_data(raw, shape, dtype, "F" if is_fortran is True else "C")
    else:
        raise ValueError(
            f"the file sets the state of a {type(target).__name__}, which has none in weights"
        )


# Classes of Python's own that a pickle makes by a call.
_CLASSES = (
    *(f"builtins.{name}" for name in ("range", "xrange", "slice")),
    "collections.deque",
    "types.SimpleNamespace",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
)


def _foreign(name: str, args: tuple) -> Foreign:
    return Foreign(name)


def _table() -> dict[str, Global]:
    calls: dict[str, Callable[[tuple], Any]] = {
        **_TENSOR_CALLS,
        "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
        "torch.Size": _size,
        "torch.device": _device,
        "torch.serialization._get_layout": _layout,
        "collections.OrderedDict": _ordered,
        "collections.Counter": _ordered,
        "collections.defaultdict": _default_dict,
        "builtins.set": _set(set),
        "builtins.frozenset": _set(frozenset),
        "builtins.bytes": _bytes,
        "builtins.bytearray": _bytes,
        "builtins.complex": _complex,
        "_codecs.encode": _encode,
        "argparse.Namespace": _namespace,
        "copyreg._reconstructor": _reconstructor,
        "numpy.dtype": numpy_dtype,
    }
    for module in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        calls[f"{module}.multiarray._reconstruct"] = numpy_empty
        calls[f"{module}.multiarray.scalar"] = numpy_scalar
        calls[f"{module}.numeric._frombuffer"] = numpy_from_buffer
    for module in ("pathlib", "pathlib._local"):  # the second is Python 3.13's
        calls[f"{module}.PosixPath"] = calls[f"{module}.WindowsPath"] = _path
    table = {name: Global(name, make) for name, make in calls.items()}

    dtypes = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
    dtypes |= {f"torch.{name}": DTYPES[element] for name, element in STORAGES.items()}
    dtypes |= {"torch.storage.UntypedStorage": DTYPES["uint8"]}
    table |= {name: Global(name, dtype=dtype) for name, dtype in dtypes.items()}
    for name in _CLASSES:
        table[name] = Global(name, functools.partial(_foreign, name))
    # Named, but never called: the class of a tensor with attributes, and types that options hold.
    for name in ("torch.Tensor", "torch.nn.parameter.Parameter", "numpy.ndarray"):
        table[name] = Global(name)
    for name in ("object", "int", "float", "bool", "str", "list", "tuple", "dict"):
        table[f"builtins.{name}"] = Global(f"builtins.{name}")
    return table


_GLOBALS = _table()
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def find_global(module: Any, name: Any) -> Global:
    """The known name, or one that is not known, which nothing but a new object can be made of.

    Raises:
      ValueError: it is no name.
    """
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("the file names a class or function by something that is no string")
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    return _GLOBALS.get(full) or Global(ascii(full[:120])[1:-1][:120], is_known=False)


def refuse_unknown(name: Global) -> None:
    """Raises ValueError for a name that is not in the table."""
    if not name.is_known:
        raise ValueError(f"the file names {name.name}, which is no part of weights: it is not read")
