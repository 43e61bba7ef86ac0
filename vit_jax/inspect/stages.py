"""The names of values in a run: of a module's input, of its output, and of the parts of an output.

A stage is `before PATH` when a module is called and `PATH` when it ends, `PATH#1` at its second
call; the model's own path is empty. Of an output of several arrays one is the answer, `PATH`; the
others are `PATH[NAME]` by key, field or position: `[hidden.0]`.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

# An event is named by its module's dotted path, and with this before it for the value that the
# module was called with.
BEFORE = "before "
# Of an output with names, the array that is the answer.
_ANSWERS = ("logits", "last_hidden_state")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's name in parts: "before " or "", the module's path, "#1" or "", "[NAME]" or ""."""

    before: str
    path: str
    call: str
    part: str


def split_stage(name: str) -> Stage:
    path, bracket, part = name.removeprefix(BEFORE).partition("[")
    path, mark, call = path.partition("#")
    before = BEFORE if name.startswith(BEFORE) else ""
    return Stage(before, path, mark + call, bracket + part)


def path_of(name: str) -> str:
    """The module's path of a stage: `blocks.0` of `before blocks.0` and of `blocks.0#1`."""
    return split_stage(name).path


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The names of an output's arrays, in order, and which of them is the answer."""

    names: tuple[str, ...]
    answer: str

    def parts(self, like: "Outputs | None" = None) -> dict[str, str]:
        """The part of a stage's name that each array has: "" of the answer, "[NAME]" of others.

        Args:
          like: the other side's output. Its names count; where none of them is here and there are
            as many, position tells which array is which.
        """
        named = dict(zip(self.names, self.names, strict=True))
        answer = self.answer
        if like is not None:
            if len(like.names) == len(self.names) and not set(like.names) & set(self.names):
                named = dict(zip(self.names, like.names, strict=True))
            by_name = {new: old for old, new in named.items()}
            answer = by_name.get(like.answer, answer)
        return {name: "" if name == answer else f"[{new}]" for name, new in named.items()}


def outputs_of(names: Iterable[str], is_float: Callable[[str], bool]) -> Outputs | None:
    """The answer is named so, or the first that is floating point; None where there is no array."""
    names = tuple(names)
    floats = [name for name in names if is_float(name)]
    known = [answer for answer in _ANSWERS if answer in floats]
    first = [*known, *floats, *names]
    return Outputs(names, first[0]) if first else None


def map_arrays(
    value: Any,
    function: Callable[[str, Any], Any],
    is_array: Callable[[Any], bool],
    name: str = "",
) -> Any:
    """The value with each array in it replaced by what the function makes of (its name, it).

    Tuples, named ones too, lists, mappings and dataclasses are gone through; the rest stays.
    """
    if is_array(value):
        return function(name, value)
    below = f"{name}." if name else ""
    inside: dict[Any, Any]
    if isinstance(value, Mapping):
        inside = dict(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple | list):
        keys = getattr(value, "_fields", range(len(value)))
        inside = dict(zip(keys, value, strict=True))
    else:
        return value
    new = {
        key: map_arrays(part, function, is_array, f"{below}{key}") for key, part in inside.items()
    }
    if all(new[key] is inside[key] for key in new):
        return value
    if isinstance(value, MutableMapping):  # of any class, whatever it is made from
        value = copy.copy(value)
        for key, part in new.items():
            value[key] = part
        return value
    make: Any = type(value)
    if isinstance(value, tuple | list):
        return make(*new.values()) if hasattr(value, "_fields") else make(new.values())
    return make(new) if isinstance(value, Mapping) else dataclasses.replace(value, **new)


def arrays_of(value: Any, is_array: Callable[[Any], bool]) -> dict[str, Any]:
    """The arrays in a value by name, in order; a lone array's name is empty."""
    found: dict[str, Any] = {}

    def note(name: str, array: Any) -> Any:
        found[name] = array
        return array

    map_arrays(value, note, is_array)
    return found
