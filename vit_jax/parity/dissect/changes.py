"""What a call of PyTorch's could have been in a port that errs."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.parity.dissect.arguments import (
    UNTOUCHED,
    Change,
    has_slots,
    text_of,
    with_argument,
)
from vit_jax.parity.dissect.functions import (
    POOLS,
    functions_of,
    numbered_activations,
    tensor_arguments_of,
)
from vit_jax.parity.dissect.orders import orders_of
from vit_jax.parity.dissect.program import Apply, Call, Program, bound


@dataclasses.dataclass(frozen=True)
class Knob:
    """A number in a call that could be any other.

    Attributes:
      fault: a short name.
      text: of a number: what is computed then, as code.
      start: the reference's.
      apply: of a number: in the place of the call.
    """

    fault: str
    text: Callable[[float], str]
    start: float
    apply: Callable[[float], Apply]


# The faults of another argument, by function and parameter or by parameter alone.
_FAULTS = {
    ("layer_norm", "eps"): "layer_norm_eps",
    ("rms_norm", "eps"): "rms_norm_eps",
    ("group_norm", "eps"): "group_norm_eps",
    ("batch_norm", "eps"): "batch_norm_eps",
    ("batch_norm", "training"): "batch_norm",
    ("group_norm", "num_groups"): "group_norm_groups",
    ("softmax", "dim"): "softmax_axis",
    ("log_softmax", "dim"): "softmax_axis",
    ("gelu", "approximate"): "gelu",
    ("masked_fill", "value"): "mask",
    ("tril", "diagonal"): "mask",
    ("triu", "diagonal"): "mask",
    ("roll", "shifts"): "cyclic_shift",
    ("roll", "dims"): "cyclic_shift",
    ("arange", "start"): "position",
    ("arange", "end"): "position",
    ("arange", "step"): "position",
    ("interpolate", "align_corners"): "resize_alignment",
    ("interpolate", "mode"): "resize_method",
    ("interpolate", "antialias"): "resize_method",
    ("interpolate", "scale_factor"): "resize_alignment",
    ("pad", "pad"): "padding",
    ("pad", "mode"): "padding",
    ("var", "correction"): "variance",
    ("var", "unbiased"): "variance",
    ("std", "correction"): "variance",
    ("std", "unbiased"): "variance",
    ("getitem", "1"): "another_input",
}


_PARAMETER_FAULTS = {
    "eps": "eps",
    "min": "clamp",
    "max": "clamp",
    "padding": "conv_padding",
    "output_padding": "conv_padding",
    "stride": "stride",
    "dilation": "dilation",
    "groups": "groups",
    "count_include_pad": "pool_padding",
    "ceil_mode": "pool_padding",
    "negative_slope": "activation",
}


_AXES = ("dim", "dims", "axis")


# Of these another axis is another reduction, and of the rest another order of axes.
_REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "logsumexp",
        "norm",
        "prod",
        "cumsum",
        "cumprod",
        "normalize",
        "argmax",
        "argmin",
        "median",
    ]
)


# What a call of these gives is random, or no matter of numbers.
_LEFT = frozenset(
    ["dropout", "dropout1d", "dropout2d", "alpha_dropout", "to", "float", "double", "type", "clone"]
)


_MODES = {
    "mode": (
        *("nearest", "bilinear", "bicubic", "linear", "area", "nearest-exact"),
        *("constant", "reflect", "replicate", "circular"),
    ),
    "approximate": ("none", "tanh"),
    "reduction": ("mean", "sum"),
    "padding": ("valid", "same"),
}


def changes_of(call: Call, program: Program) -> Iterator[Change | Knob]:
    """All that a call could have been, the likely first."""
    if call.site.function in _LEFT:
        return
    arguments = bound(call)
    shapes = [tuple(program.values[slot].shape) for slot in call.slots]
    ndim = max(map(len, shapes), default=0)
    yield from functions_of(call, arguments)
    for text, start, function in numbered_activations().get(call.site.function, ()):
        yield Knob("activation", text.format, start, _numbered(function))
    for name, (where, value) in arguments.items():
        if has_slots(value) or name in UNTOUCHED:
            continue
        fault = _fault(call.site.function, name)
        for other in _others(call, name, value, ndim, shapes):
            yield Change(fault, text_of(call, **{name: other}), with_argument(where, other))
        is_scale = call.site.function in ("mul", "div", "add", "sub", "rsub", "pow", "full")
        is_number = isinstance(value, float) or (is_scale and type(value) is int)
        if is_number and math.isfinite(value):
            yield Knob(
                _scalar_fault(call, value) or fault,
                lambda number, name=name: text_of(call, **{name: number}),
                float(value),
                lambda number, where=where: with_argument(where, number),
            )
    yield from tensor_arguments_of(call, arguments, program)
    yield from orders_of(call, shapes, program)


def _numbered(function: Callable[[Any, float], Any]) -> Callable[[float], Apply]:
    return lambda number: lambda f, args, kwargs: function((*args, *kwargs.values())[0], number)


def _scalar_fault(call: Call, value: float) -> str | None:
    function = call.site.function
    if function in ("add", "sub", "rsub"):
        return "eps" if abs(value) <= 1e-3 and value else "offset"
    if function == "pow" and "r" in getattr(call.named, "__name__", "").partition("pow")[0]:
        return "rope_base"
    if function in ("mul", "div"):
        return "attention_scale" if call.site.inside else "factor"
    return None


def _fault(function: str, name: str) -> str:
    if (function, name) in _FAULTS:
        return _FAULTS[function, name]
    if name in _AXES or name in ("dim0", "dim1"):
        return "reduction_axis" if function in _REDUCTIONS else "permuted_axes"
    if name in _PARAMETER_FAULTS:
        fault = _PARAMETER_FAULTS[name]
        return "pool_padding" if fault == "conv_padding" and function in POOLS else fault
    return function


def _others(call: Call, name: str, value: Any, ndim: int, shapes: list) -> Iterator[Any]:
    """Other values of an argument."""
    function = call.site.function
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield from (mode for mode in _MODES.get(name, ()) if mode != value)
    elif name in (*_AXES, "dim0", "dim1") and isinstance(value, int | tuple | list):
        own = [value] if isinstance(value, int) else list(value)
        own = [axis % ndim for axis in own] if ndim else own
        if isinstance(value, int):
            yield from (axis for axis in range(ndim) if axis != own[0])
        else:
            orders = (
                itertools.permutations
                if function in ("permute", "roll")
                else (itertools.combinations)
            )
            for other in itertools.islice(orders(range(ndim), len(own)), 130):
                if list(other) != own:
                    yield other
    elif function == "getitem":
        yield from _indices(value, shapes[0])
    elif isinstance(value, int):
        if name == "num_groups":
            channels = shapes[0][1]
            yield from (g for g in range(1, channels + 1) if channels % g == 0 and g != value)
        elif function not in ("mul", "div", "add", "sub", "rsub", "pow", "full"):
            yield from dict.fromkeys(
                x for x in (value + 1, value - 1, -value, 0, 2 * value) if x != value
            )
    elif isinstance(value, tuple | list) and all(type(x) is int for x in value):
        value = tuple(value)
        ways = [tuple(-x for x in value), (0,) * len(value), value[::-1]]
        ways += itertools.islice(itertools.permutations(value), 24) if len(value) < 5 else []
        ways += [tuple(x + d for x in value) for d in (1, -1)]
        if len(value) % 2 == 0:  # what is padded at one end, at both
            pairs = [
                (sum(value[i : i + 2]) // 2, -(-sum(value[i : i + 2]) // 2))
                for i in range(0, len(value), 2)
            ]
            ways += [tuple(x for pair in pairs for x in pair)]
        for i in range(len(value)):
            ways += [(*value[:i], value[i] + d, *value[i + 1 :]) for d in (1, -1)]
        for i, j in itertools.combinations(range(len(value)), 2):
            moved = list(value)  # as (1, 1) to (0, 2)
            moved[i], moved[j] = moved[i] - 1, moved[j] + 1
            ways += [tuple(moved)]
            moved[i], moved[j] = value[i] + value[j], 0
            ways += [tuple(moved), tuple(0 if k == i else m for k, m in enumerate(moved[::-1]))]
        yield from dict.fromkeys(way for way in ways if way != value)


def _indices(index: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """Other indices that take as much: of each entry its neighbours, the other half."""
    is_lone = not isinstance(index, tuple)
    parts = [index] if is_lone else list(index)
    axis = 0
    for i, part in enumerate(parts):
        if part is Ellipsis:
            axis = len(shape) - sum(p is not None for p in parts[i + 1 :])
            continue
        if part is None or axis >= len(shape):
            continue
        size = shape[axis]
        axis += 1
        others: list[Any] = []
        if type(part) is int:
            others = [k for k in (*range(min(size, 4)), size - 1) if k != part % size]
        elif isinstance(part, slice):
            others = [x for x in _slices(part, size) if x != part]
        for other in others:
            changed = [*parts[:i], other, *parts[i + 1 :]]
            yield changed[0] if is_lone else tuple(changed)


def _slices(part: slice, size: int) -> list[slice]:
    start, stop, step = part.indices(size)
    count = len(range(start, stop, step))
    found = [slice(start + d, start + d + count) for d in (1, -1) if start + d >= 0 and step == 1]
    if count * 2 == size:
        found += [slice(None, count), slice(count, None), slice(0, None, 2), slice(1, None, 2)]
    elif step == 1 and count and size % count == 0:
        found += [slice(k * count, (k + 1) * count) for k in range(size // count)]
        found += [slice(k, None, size // count) for k in range(size // count)]
    elif count < size and step == 1:
        found += [slice(size - count, None), slice(None, count)]
    own = list(range(start, stop, step))
    return [x for x in found if list(range(*x.indices(size))) != own and x.stop != 0]
