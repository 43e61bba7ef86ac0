"""What stands at several places of a program: a number, a table of positions, changed at some."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.inspect.stages import map_arrays
from vit_jax.parity.dissect.program import Apply, Program, Slot
from vit_jax.parity.dissect.watch import is_tensor, tensors_in
from vit_jax.parity.torch_run import import_torch

# Of these a number may be the size of a part of an axis.
_SIZED = frozenset(("getitem", "narrow", "arange", "div", "mul", "pow"))


@dataclasses.dataclass(frozen=True)
class Shared:
    """Attributes: fault, text, changes, see `search.Trial`; slot: what the text ends with."""

    fault: str
    text: str
    changes: dict[int, Apply]
    slot: int | None = None


def shared(program: Program, calls: list[int]) -> Iterator[Shared]:
    """Changes of what stands at several places.

    Args:
      calls: those that may be changed, in order.
    """
    yield from _other_sizes(program, calls)
    for index in calls:
        if program.calls[index].site.function == "arange":
            yield from _half_moved(program, calls, index)


def _other_sizes(program: Program, calls: list[int]) -> Iterator[Shared]:
    """A part of an axis, such as the rotated channels, of another size wherever it counts."""
    sized = [i for i in calls if program.calls[i].site.function in _SIZED]
    for index in sized:
        call = program.calls[index]
        if call.site.function != "getitem":
            continue
        shape = program.values[call.slots[0]].shape
        for bound in _numbers(call.args[1:]):
            users = [i for i in sized if bound in _numbers(_plain(program.calls[i].args))]
            names = dict.fromkeys(program.calls[i].site.function for i in users)
            if bound < 2 or len(names) < 2:
                continue
            for other in dict.fromkeys((*shape[1:], 2 * bound, bound // 2)):
                if other != bound:
                    text = f"{other} for {bound} in {', '.join(names)}"
                    yield Shared("size", text, dict.fromkeys(users, _renumbered(bound, other)))


def _plain(args: Any) -> Any:
    return tuple(part for part in args if not isinstance(part, Slot))


def _numbers(value: Any) -> list[int]:
    """The whole numbers in arguments."""
    if isinstance(value, slice):
        return _numbers((value.start, value.stop))
    if isinstance(value, tuple | list):
        return list(dict.fromkeys(n for part in value for n in _numbers(part)))
    return [value] if type(value) is int else []


def _renumbered(old: int, new: int) -> Apply:
    def change(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(change(value.start), change(value.stop), value.step)
        if type(value) in (tuple, list):
            return type(value)(map(change, value))
        return new if type(value) is int and value == old else value

    def apply(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        return function(*map(change, args), **{key: change(v) for key, v in kwargs.items()})

    return apply


def _half_moved(program: Program, calls: list[int], index: int) -> Iterator[Shared]:
    """Positions counted from another start for the first half of their uses, or for the last."""
    constant = _constants(program)
    if index not in constant:
        return
    for shift in (1, -1):
        values = {slot: program.values[slot] + shift for slot in program.calls[index].outputs}
        for i in (i for i in calls if i > index and i in constant):
            call = program.calls[i]
            if values.keys().isdisjoint(call.slots):
                continue

            def given(_: str, slot: Slot, values: dict[int, Any] = values) -> Any:
                return values.get(slot.index, program.values[slot.index])

            try:
                args, kwargs = map_arrays((call.args, call.kwargs), given, _is_slot)
                outputs = tensors_in(call.function(*args, **kwargs))
            except Exception:  # as of a table that ends before
                return
            values |= dict(zip(call.outputs, outputs, strict=True))
        uses = [
            i
            for i in calls
            if i not in constant and not values.keys().isdisjoint(program.calls[i].slots)
        ]
        if len(uses) < 2 or len(uses) % 2:
            continue
        tables = [(program.values[slot], value) for slot, value in values.items()]
        for half in (uses[: len(uses) // 2], uses[len(uses) // 2 :]):
            text = f"positions that are {abs(shift)} {'more' if shift > 0 else 'less'} for "
            changes = dict.fromkeys(half, _exchanged(tables))
            yield Shared("position", text, changes, _source(program, half, values))


def _constants(program: Program) -> set[int]:
    """The calls that depend on nothing that is given, nor on arrays of modules."""
    found: set[int] = set()
    for i, call in enumerate(program.calls):
        if all(program.made(slot) in found for slot in call.slots):
            found.add(i)
    return found


def _source(program: Program, uses: list[int], tables: dict[int, Any]) -> int:
    """What the first of some calls does with tables, back to where a module gave it."""
    slot = next(s for s in program.calls[uses[0]].slots if s not in tables)
    while (made := program.made(slot)) is not None:
        call = program.calls[made]
        if call.stages[-1] != program.calls[uses[0]].stages[-1] or not call.slots:
            break
        slot = call.slots[0]
    return slot


def _exchanged(tables: list[tuple[Any, Any]]) -> Apply:
    torch = import_torch()

    def apply(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        def given(_: str, tensor: Any) -> Any:
            return next((new for old, new in tables if torch.equal(old, tensor)), tensor)

        args, kwargs = map_arrays((args, kwargs), given, is_tensor)
        return function(*args, **kwargs)

    return apply


def _is_slot(value: Any) -> bool:
    return isinstance(value, Slot)
