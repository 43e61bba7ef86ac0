"""Several inputs of a model, by position and by keyword, for both sides of a comparison."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

# Channels last to channels first, and back.
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclasses.dataclass(frozen=True)
class Untouched:
    """An array of rank 4 that is no image: both sides are given it as it is."""

    array: Any


@jax.tree_util.register_pytree_node_class
class Inputs:
    """Arguments by position and by keyword; arrays among them are given to both sides.

    Args:
      values: by position (from 0) or keyword.
      images: the keys of images.
    """

    def __init__(self, values: Mapping[int | str, Any], images: frozenset[int | str] = frozenset()):
        self.values, self.images = dict(values), images

    def tree_flatten(self) -> tuple[list[Any], Any]:
        arrays = {key: value for key, value in self.values.items() if _is_array(value)}
        rest = tuple((key, None if key in arrays else v) for key, v in self.values.items())
        return list(arrays.values()), (tuple(arrays), rest, self.images)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> "Inputs":
        keys, rest, images = aux
        return cls({**dict(rest), **dict(zip(keys, children, strict=True))}, images)

    def arrays(self) -> dict[str, Any]:
        """By position or keyword as text."""
        return {str(key): value for key, value in self.values.items() if _is_array(value)}

    def map(self, function: Callable[[str, Any], Any]) -> "Inputs":
        """The same with each array replaced by what the function makes of (its name, it)."""
        new = {k: function(str(k), v) if _is_array(v) else v for k, v in self.values.items()}
        return Inputs(new, self.images)

    def is_image(self, name: str) -> bool:
        return any(str(key) == name for key in self.images)

    def turned(self, to_first: bool) -> "Inputs":
        """With images in the other layout."""
        order = _FIRST if to_first else _LAST
        return self.map(lambda name, v: v.transpose(order) if self.is_image(name) else v)

    def call(self, model: Callable[..., Any], *before: Any, **more: Any) -> Any:
        args = [value for key, value in self.values.items() if isinstance(key, int)]
        named = {key: value for key, value in self.values.items() if isinstance(key, str)}
        return model(*before, *args, **named, **more)

    def __len__(self) -> int:
        """The size of the batch: that of the first array."""
        return len(next(iter(self.arrays().values())))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def as_inputs(given: Any) -> Inputs:
    """What was given as a tuple, or a mapping of keywords, in PyTorch's layout.

    Args:
      given: arrays of floats, whole numbers or booleans; an array of floats of rank 4 is an image
        (B, H, W, C) unless it is `Untouched`. What is no array (None, a flag) is handed on. The
        last of a tuple may be a mapping of keywords.

    Raises:
      ValueError: no array, or one of another type.
    """
    args, named = ((), given) if isinstance(given, Mapping) else (tuple(given), {})
    if args and isinstance(args[-1], Mapping):
        args, named = args[:-1], args[-1]
    values: dict[int | str, Any] = {}
    images: set[int | str] = set()
    for key, value in [*enumerate(args), *named.items()]:
        is_untouched = isinstance(value, Untouched)
        array = value.array if is_untouched else value
        if not _is_array(array):
            values[key] = array
            continue
        array = np.asarray(array)
        if array.dtype.kind not in "fiub" or not array.size:
            raise ValueError(
                f"input {key!r}: wanted floats, whole numbers or booleans, got {array.dtype} "
                f"{list(array.shape)}"
            )
        kind = {"f": np.float64, "b": np.bool_}.get(array.dtype.kind, np.int64)
        if array.dtype.kind == "f" and array.ndim == 4 and not is_untouched:
            images.add(key)
            array = array.transpose(_FIRST)
        values[key] = np.array(array, kind, order="C")
    found = Inputs(values, frozenset(images))
    if not found.arrays():
        raise ValueError("inputs: wanted at least one array")
    return found


def float_arrays(images: Any) -> dict[str, Any]:
    """The arrays of floats among a model's inputs by name; a lone one's name is empty."""
    arrays = images.arrays() if isinstance(images, Inputs) else {"": images}
    return {n: a for n, a in arrays.items() if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)}


def with_arrays(images: Any, arrays: Mapping[str, Any]) -> Any:
    """The inputs with some of their arrays replaced, by name."""
    if isinstance(images, Inputs):
        return images.map(lambda name, value: arrays.get(name, value))
    return arrays.get("", images)
