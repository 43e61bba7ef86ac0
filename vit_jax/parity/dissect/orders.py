"""Other orders of what a call cuts, joins or lays out."""

import itertools
from collections.abc import Iterator
from typing import Any

from vit_jax.parity.dissect.arguments import Change
from vit_jax.parity.dissect.program import Apply, Call, Program


def orders_of(call: Call, shapes: list[tuple[int, ...]], program: Program) -> Iterator[Change]:
    """Other orders of what a call cuts, joins or lays out."""
    name = call.site.function
    if name in ("chunk", "split", "unbind", "tensor_split") and 2 <= len(call.outputs) <= 4:
        count = len(call.outputs)
        for order in list(itertools.permutations(range(count)))[1:]:
            text = f"{name} with its parts in the order {order}"
            fault = "swapped_halves" if count == 2 else "qkv_order" if count == 3 else "reordered"
            yield Change(
                fault, text, lambda f, args, kwargs, order=order: _picked(f(*args, **kwargs), order)
            )
        sizes = {tuple(program.values[slot].shape) for slot in call.outputs}
        if len(sizes) == 1 and name != "unbind":
            size = program.values[call.outputs[0]].shape
            whole = shapes[0]
            axis = next((i for i, (a, b) in enumerate(zip(whole, size, strict=True)) if a != b), 0)
            yield Change(
                "reordered",
                f"parts that take every so many-th entry of axis {axis}, not {name}",
                lambda f, args, kwargs: tuple(
                    args[0].movedim(axis, 0)[i::count].movedim(0, axis) for i in range(count)
                ),
            )
    if name in ("cat", "stack") and 2 <= len(call.slots) <= 4:
        count = len(call.slots)
        for order in list(itertools.permutations(range(count)))[1:]:
            yield Change(
                "swapped_halves" if count == 2 else "reordered",
                f"{name} in the order {order}",
                lambda f, args, kwargs, order=order: f(
                    _picked(args[0], order), *args[1:], **kwargs
                ),
            )
    if name in ("reshape", "view", "flatten", "unflatten") and call.slots:
        is_attention = any(other.site.function == "softmax" for other in program.calls)
        turned = "head_layout" if is_attention else "permuted_axes"
        (given,), out = shapes[:1], tuple(program.values[call.outputs[0]].shape)
        for order in _axis_orders(len(given)):
            yield Change(
                "flatten_order" if len(out) < len(given) else turned,
                f"permute{order} before {name}",
                lambda f, args, kwargs, order=order: args[0].permute(order).reshape(out),
            )
        for order in _axis_orders(len(out)):
            sizes = tuple(out[axis] for axis in order)
            back = tuple(order.index(axis) for axis in range(len(out)))
            yield Change(
                turned if len(out) >= len(given) else "flatten_order",
                f"reshape{sizes}.permute{back} in the place of {name}",
                lambda f, args, kwargs, sizes=sizes, back=back: (
                    args[0].reshape(sizes).permute(back)
                ),
            )
    if name == "pixel_shuffle":
        yield Change(
            "reordered",
            "pixel_shuffle with the channels of a pixel last",
            lambda f, args, kwargs: f(
                args[0].unflatten(1, (args[1] ** 2, -1)).transpose(1, 2).flatten(1, 2), args[1]
            ),
        )
    if name in ("embedding", "gather", "index_select"):
        for shift in (1, -1):
            yield Change(
                "shifted",
                f"{name} with ids that are {abs(shift)} {'more' if shift > 0 else 'less'}",
                _shifted_ids(name, shift),
            )
    if name == "getitem" and len(call.slots) > 1 and isinstance(call.args[1], tuple):
        for text, turn in (
            ("one place later", lambda ids: ids + 1),
            ("one place earlier", lambda ids: ids - 1),
            ("at the first place", lambda ids: ids * 0),
            ("at the last place", lambda ids: ids * 0 - 1),
        ):
            yield Change(
                "another_input",
                f"the value {text}",
                lambda f, args, kwargs, turn=turn: f(args[0], (*args[1][:-1], turn(args[1][-1]))),
            )


def _shifted_ids(name: str, shift: int) -> Apply:
    where = 0 if name == "embedding" else 2

    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        size = args[1].shape[0] if name == "embedding" else args[0].shape[args[1]]
        ids = (args[where] + shift).clamp(0, size - 1)
        return function(*args[:where], ids, *args[where + 1 :], **kwargs)

    return apply


def _picked(parts: Any, order: tuple[int, ...]) -> Any:
    return tuple(parts[i] for i in order)


def _axis_orders(ndim: int) -> list[tuple[int, ...]]:
    """Other orders of the axes behind the batch; of many axes exchanges of two alone."""
    first = tuple(range(ndim))
    if ndim <= 5:
        return [(0, *rest) for rest in itertools.permutations(first[1:]) if (0, *rest) != first]
    found = []
    for i, j in itertools.combinations(first, 2):
        order = list(first)
        order[i], order[j] = j, i
        found.append(tuple(order))
    return found
