"""A change of a call, and its arguments as code."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.parity.dissect.program import Apply, Call, Slot, bound

# Arguments that change no value, or write into what is given.
UNTOUCHED = frozenset(
    (
        *("inplace", "_stacklevel", "dtype", "device", "out", "requires_grad", "memory_format"),
        *("return_indices", "track_running_stats", "cudnn_enable", "recompute_scale_factor"),
    )
)


@dataclasses.dataclass(frozen=True)
class Change:
    """One way in which a call could differ.

    Attributes:
      fault: a short name.
      text: what is computed then, as code.
      apply: in the place of the call.
    """

    fault: str
    text: str
    apply: Apply


def text_of(call: Call, **changed: Any) -> str:
    """A call as code: its function, and its arguments that are no tensors."""
    shown = {}
    for name, (_, value) in bound(call).items():
        value = changed.get(name, value)
        is_new = value is not None or name in changed
        if is_new and not has_slots(value) and name not in UNTOUCHED:
            shown[name] = value
    parts = [v if (v := _code(x)) and n.isdigit() else f"{n}={_code(x)}" for n, x in shown.items()]
    return f"{call.site.function}({', '.join(parts)})"


def _code(value: Any) -> str:
    if isinstance(value, slice):
        ends = ["" if x is None else f"{x}" for x in (value.start, value.stop)]
        return ":".join(ends) + (f":{value.step}" if value.step else "")
    if isinstance(value, tuple):
        return (
            ", ".join(map(_code, value))
            if any(isinstance(x, slice) for x in value)
            else (f"({', '.join(map(_code, value))})")
        )
    if value is Ellipsis:
        return "..."
    return in_digits(value) if isinstance(value, float) else str(value)


def in_digits(value: float) -> str:
    """Six digits, and more of what would read as a round number and is none."""
    short = f"{value:.6g}"
    is_near = short == f"{value:.2g}" and abs(float(short) - value) > 1e-10 * abs(value)
    return f"{value:.12g}" if is_near else short


def has_slots(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(has_slots, value))
    return isinstance(value, Slot)


def with_argument(where: str | int, value: Any) -> Apply:
    """The same call with another argument; a keyword may be new."""

    def apply(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if isinstance(where, int):
            return function(*args[:where], value, *args[where + 1 :], **kwargs)
        return function(*args, **{**kwargs, where: value})

    return apply


def by_name(names: Sequence[str], args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments as keywords: those by position are of these names, in order."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def turned(where: str | int, turn: Callable[[Any], Any]) -> Apply:
    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        value = args[where] if isinstance(where, int) else kwargs[where]
        return with_argument(where, turn(value))(function, args, kwargs)

    return apply
