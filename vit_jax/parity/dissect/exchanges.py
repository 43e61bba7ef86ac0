"""Two calls in another order, or a function of the other of two operands."""

from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.inspect.stages import map_arrays
from vit_jax.parity.dissect.program import Apply, Call, Program, Slot
from vit_jax.parity.dissect.watch import tensors_in
from vit_jax.parity.torch_run import import_torch

# What turns an array and changes none of its numbers.
_WAYS = frozenset(
    ("permute", "transpose", "swapaxes", "movedim", "reshape", "view", "flatten", "contiguous")
)


def other_operands(program: Program, index: int) -> Iterator[tuple[str, dict[int, Apply]]]:
    """A function of one operand of a call that is taken of the other."""
    call = program.calls[index]
    operands = call.args[:2]
    if len(operands) < 2 or not all(isinstance(part, Slot) for part in operands):
        return
    for place, operand in enumerate(operands):
        made = program.made(operand.index)
        if made is None or len(program.calls[made].slots) != 1:
            continue
        unary = program.calls[made]

        def apply(f: Any, args: tuple, kwargs: dict, place=place, unary=unary) -> Any:
            other = unary.function(args[1 - place], *unary.args[1:], **unary.kwargs)
            mixed = (args[0], other) if place == 0 else (other, args[1])
            return f(*mixed, *args[2:], **kwargs)

        names = (unary.site.function, call.site.function)
        yield (
            "{} of the other operand of {}".format(*names),
            {made: _through, index: apply},
        )


def written_out(program: Program, index: int) -> Iterator[tuple[str, dict[int, Apply]]]:
    """A sigmoid in the place of a hard one that two calls make six times of."""
    call = program.calls[index]
    if call.site.function not in ("relu6", "clamp", "hardtanh") or not call.slots:
        return
    before = program.made(call.slots[0])
    if before is None or program.calls[before].site.function != "add":
        return
    sigmoid = import_torch().sigmoid
    changes = {before: _through, index: lambda f, args, kwargs: 6 * sigmoid(args[0])}
    if 3 in program.calls[before].args and (call.site.function == "relu6" or 6 in _rest(call)):
        yield "6 * sigmoid(x) in the place of {0}(x + 3)", changes


def _rest(call: Call) -> list[Any]:
    return [*call.args[1:], *call.kwargs.values()]


def scaled_sums(program: Program, index: int) -> Iterator[tuple[str, dict[int, Apply]]]:
    """A factor of one term of a sum that is one of the sum, whatever way the term was turned."""
    call = program.calls[index]
    if call.site.function not in ("add", "sub") or len(call.slots) != 2:
        return
    for slot in call.slots:
        ways: list[int] = []
        made = program.made(slot)
        while made is not None and program.calls[made].site.function in _WAYS:
            ways.append(made)
            slot = program.calls[made].slots[0]
            made = program.made(slot)
        if made is None or not ways or program.calls[made].site.function != "mul":
            continue
        one = program.calls[made]
        for place in range(len(one.slots)) if len(one.slots) == 2 else ():
            shape = program.values[slot].shape
            if program.values[one.slots[1 - place]].shape != shape:
                continue
            factor = program.values[one.slots[place]].expand(shape)
            for way in reversed(ways):
                factor = _alone(program, program.calls[way], 0)(factor)

            def scaled(f: Any, args: tuple, kwargs: dict, factor: Any = factor) -> Any:
                return f(*args, **kwargs) * factor

            yield "mul of the sum, not of one term in {0}", {made: _nth(1 - place), index: scaled}


def exchanges(program: Program, before: int, index: int) -> Iterator[tuple[str, dict[int, Apply]]]:
    """Two calls, the second of what the first gives, in the other order.

    Yields:
      Words, for the names of the second and of the first; and the changes.
    """
    one, other = program.calls[before], program.calls[index]
    own = other.slots.index(one.outputs[0]) if one.outputs[0] in other.slots else -1
    if own < 0 or not all(isinstance(call.args[0], Slot) for call in (one, other) if call.args):
        return
    if not one.args or not other.args:
        return
    adds = ("add", "sub")
    if other.site.function in ("rsqrt", "sqrt", "pow") and one.site.function == "add":
        first = _alone(program, one, 0)
        is_root = other.site.function == "sqrt"
        yield (
            "epsilon added to the root, not under it",
            {
                before: _through,
                index: lambda f, args, kwargs: (
                    first(args[0].sqrt()) if is_root else 1 / first(args[0].sqrt())
                ),
            },
        )
    if own == 0 and one.site.function in (*adds, "mul") and len(one.slots) == 2:
        last = _alone(program, other, 0)
        for text, which in (
            ("{0} of a alone in {1} of a and b", (0,)),
            ("{0} of b alone in {1} of a and b", (1,)),
            ("{0} of a and of b before {1} of them", (0, 1)),
        ):
            yield text, {before: _inside(last, which), index: _through}
    if other.site.function in adds and len(other.slots) == 2 and own < 2:
        # What is done to one term is done to the sum.
        for place in range(len(one.slots[:2])):
            first = _alone(program, one, place)
            yield (
                "{1} of the sum, not of one term in {0}",
                {
                    before: _nth(place),
                    index: lambda f, args, kwargs, first=first: first(f(*args, **kwargs)),
                },
            )
        return
    if own == 0 and len(one.slots) < 3:
        first, last = _alone(program, one, 0), _alone(program, other, 0)
        yield (
            "{0} before {1}, not behind it",
            {
                before: lambda f, args, kwargs: last(args[0]),
                index: lambda f, args, kwargs: first(args[0]),
            },
        )


def _alone(program: Program, call: Call, place: int) -> Callable[[Any], Any]:
    """A call as a function of one of its tensors, the others as they were."""

    def apply(x: Any) -> Any:
        def resolve(_: str, slot: Slot) -> Any:
            return x if slot.index == call.slots[place] else program.values[slot.index]

        args, kwargs = map_arrays(
            (call.args, call.kwargs), resolve, lambda part: isinstance(part, Slot)
        )
        return call.function(*args, **kwargs)

    return apply


def _inside(last: Callable[[Any], Any], which: tuple[int, ...]) -> Apply:
    def apply(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        args = tuple(last(a) if i in which else a for i, a in enumerate(args))
        return function(*args, **kwargs)

    return apply


def _through(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    del function, kwargs
    return args[0].clone()


def _nth(place: int) -> Apply:
    def apply(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        del function
        return tensors_in((args, kwargs))[place].clone()

    return apply
