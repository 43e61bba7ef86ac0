"""Other convolutions: their kernel flipped, their padding elsewhere."""

from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.parity.dissect.arguments import Change, by_name, turned
from vit_jax.parity.dissect.program import Apply, Call
from vit_jax.parity.torch_run import import_torch

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What XLA's "SAME" adds before and behind: the odd one behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _undilated(function: Any, args: tuple, kwargs: dict, axes: tuple[int, ...]) -> Any:
    given = by_name(_ARGUMENTS, args, kwargs)
    sizes = [given["weight"].shape[axis] for axis in axes]
    return function(**{**given, "dilation": 1, "padding": tuple(size // 2 for size in sizes)})


def _moved(shift: int, axes: tuple[int, ...]) -> Apply:
    """A transposed convolution whose output is cut out elsewhere."""
    functional = import_torch().nn.functional

    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
        given = by_name((*names, "dilation"), args, kwargs)
        output = function(*args, **kwargs)
        whole = function(**{**given, "padding": 0, "output_padding": 0})
        padding = given.get("padding", 0)
        cuts = []
        for i, axis in reversed(list(enumerate(axes))):
            start = (padding if isinstance(padding, int) else padding[i]) - shift
            cuts += [-start, start + output.shape[axis] - whole.shape[axis]]
        return functional.pad(whole, cuts)

    return apply


def convolutions_of(call: Call, arguments: dict[str, tuple[str | int, Any]]) -> Iterator[Change]:
    functional = import_torch().nn.functional
    name = call.site.function
    where, _ = arguments.get("weight", (1, None))
    fault = "conv_transpose_flip" if "transpose" in name else "flipped"
    axes = tuple(range(-int(name[-2]), 0)) if name[-1:] == "d" else (-2, -1)
    yield Change(fault, f"{name} with its kernel flipped", turned(where, lambda w: w.flip(axes)))
    yield Change(
        "transposed_kernel",
        f"{name} with its kernel's height and width exchanged",
        turned(where, lambda w: w.mT),
    )
    if "transpose" in name:
        for shift in (1, -1, 2, -2):
            yield Change(
                "conv_padding", f"{name} with its output moved by {shift}", _moved(shift, axes)
            )
        return

    def padded(text: str, ends: Callable[[int, int, int], tuple[int, int]]) -> Change:
        def apply(function: Any, args: tuple, kwargs: dict) -> Any:
            given = by_name(_ARGUMENTS, args, kwargs)
            strides, spread = given.get("stride", 1), given.get("dilation", 1)
            pads: list[int] = []
            for i, axis in reversed(list(enumerate(axes))):
                stride = strides if isinstance(strides, int) else strides[i]
                step = spread if isinstance(spread, int) else spread[i]
                kernel = (given["weight"].shape[axis] - 1) * step + 1
                pads += ends(given["input"].shape[axis], kernel, stride)
            given["input"] = functional.pad(given["input"], pads)
            return function(**{**given, "padding": 0})

        return Change("conv_padding", f"{name} with {text}", apply)

    yield Change(
        "dilation",
        f"{name} without dilation, padded to the same size",
        lambda f, args, kwargs: _undilated(f, args, kwargs, axes),
    )
    yield padded("padding='SAME', which is not symmetric", same_padding)
    yield padded("all padding before (causal)", lambda size, kernel, stride: (kernel - 1, 0))
    yield padded("all padding behind", lambda size, kernel, stride: (0, kernel - 1))
    yield padded("symmetric padding", lambda size, k, stride: ((k - 1) // 2, (k - 1) // 2))
