"""Other functions in the place of one of PyTorch's, and its tensors left out or turned."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.parity.dissect.arguments import Change, by_name, turned, with_argument
from vit_jax.parity.dissect.convolutions import convolutions_of, same_padding
from vit_jax.parity.dissect.norms import NORMS, norms_of
from vit_jax.parity.dissect.program import Apply, Call, Program, Slot
from vit_jax.parity.dissect.watch import is_tensor
from vit_jax.parity.torch_run import import_torch

# Masks of more keys are not tried one by one.
_MOST_KEYS = 16
POOLS = frozenset(
    f"{adaptive}{kind}_pool{n}d"
    for adaptive in ("", "adaptive_")
    for kind in ("avg", "max")
    for n in (1, 2, 3)
)


def functions_of(call: Call, arguments: dict[str, tuple[str | int, Any]]) -> Iterator[Change]:
    """Other functions in the place of one."""
    torch = import_torch()
    functional = torch.nn.functional
    name = call.site.function
    if name in activations():
        for other, function in activations().items():
            if other == name:
                continue
            fault = "gelu" if "gelu" in name and "gelu" in other else "activation"
            text = other if other.endswith(")") else f"{other}()"
            yield Change(fault, text, _applied(function))
    if name == "softmax":
        yield Change("softmax", "sigmoid()", _applied(torch.sigmoid))
        yield Change("softmax", "log_softmax()", _applied(lambda x: x.log_softmax(-1)))
    if name in NORMS:
        yield from norms_of(call, arguments)
    if name == "interpolate":
        yield from _interpolations()
    if name in ("avg_pool2d", "max_pool2d"):
        yield Change("pool_padding", f"{name} with padding='SAME'", _same_pool)
    for one, other in (("avg", "max"), ("max", "avg")):
        if name in POOLS and one in name:
            function = getattr(functional, name.replace(one, other))
            yield Change("pool_kind", name.replace(one, other), _pooled(function))
    if name in ("add", "sub", "mul", "div", "matmul", "bmm"):
        yield from _binary(call)
    if name in ("mean", "sum", "amax", "max"):
        for other in {"mean", "sum", "amax"} - {name}:
            yield Change("pool_kind", f"{other}()", _reduced(getattr(torch, other)))
    if name == "cumsum":
        yield Change("flipped", "cumsum from the end", _from_end)
        yield Change(
            "shifted",
            "cumsum without the entry itself",
            lambda f, args, kwargs: f(*args, **kwargs) - args[0],
        )
    if name in ("sin", "cos"):
        other = {"sin": "cos", "cos": "sin"}[name]
        yield Change("rope", f"{other}()", _applied(getattr(torch, other)))
    if name in ("repeat_interleave", "repeat", "tile"):
        yield Change("reordered", "repeated in the other order", _repeated)
    if name in ("masked_fill", "where"):
        yield Change("mask", "no mask", lambda f, args, kwargs: _unmasked(f, args))
    if name in ("clamp", "roll", "flip", "neg", "tanh", "exp", "sqrt", "abs", "pad", "softmax"):
        fault = {"clamp": "clamp", "roll": "cyclic_shift", "flip": "flipped", "neg": "sign"}
        yield Change(fault.get(name, "missing_term"), f"no {name}", _skipped)
    if name in NORMS or name in activations() or name == "normalize":
        kind = "activation" if name in activations() else name
        yield Change(kind, f"no {name}", _skipped)
    if "conv" in name:
        yield from convolutions_of(call, arguments)


def activations() -> dict[str, Callable[[Any], Any]]:
    """By name, functions of one tensor that stand for each other."""
    torch = import_torch()
    functional = torch.nn.functional
    return {
        "gelu": functional.gelu,
        "gelu(approximate='tanh')": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu": torch.relu,
        "silu": functional.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu6": functional.relu6,
        "leaky_relu": functional.leaky_relu,
        "hardtanh": functional.hardtanh,
        "hardswish": functional.hardswish,
        "hardsigmoid": functional.hardsigmoid,
        "hardsigmoid((x + 1) / 2)": lambda x: (x / 2 + 0.5).clamp(0, 1),
        "elu": functional.elu,
        "selu": functional.selu,
        "mish": functional.mish,
        "softplus": functional.softplus,
        "squared relu": lambda x: torch.relu(x) ** 2,
    }


def numbered_activations() -> dict[str, list[tuple[str, float, Callable[[Any, float], Any]]]]:
    """By name, an activation written out: its text, one of its numbers, and it with another one."""
    relu6, sigmoid = import_torch().nn.functional.relu6, import_torch().sigmoid
    return {
        "hardsigmoid": [
            ("relu6(x + {:.6g}) / 6", 3.0, lambda x, number: relu6(x + number) / 6),
            ("relu6(x + 3) * {:.6g}", 1 / 6, lambda x, number: relu6(x + 3) * number),
        ],
        "hardswish": [
            ("x * relu6(x + {:.6g}) / 6", 3.0, lambda x, number: x * relu6(x + number) / 6),
            ("x * relu6(x + 3) * {:.6g}", 1 / 6, lambda x, number: x * relu6(x + 3) * number),
        ],
        "silu": [("x * sigmoid({:.6g} * x)", 1.0, lambda x, number: x * sigmoid(number * x))],
    }


def _applied(other: Callable[[Any], Any]) -> Apply:
    return lambda function, args, kwargs: other(_first(args, kwargs))


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _skipped(function: Any, args: tuple, kwargs: dict) -> Any:
    del function
    return _first(args, kwargs).clone()


def _pooled(other: Callable[..., Any]) -> Apply:
    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        del function
        known = ("kernel_size", "stride", "padding", "output_size", "ceil_mode")
        return other(*args[:4], **{k: v for k, v in kwargs.items() if k in known})

    return apply


def _interpolations() -> Iterator[Change]:
    for mode in ("nearest", "nearest-exact", "area", "bilinear", "bicubic"):
        for align, smooth in ((None, False), (True, False), (None, True)):
            if (align or smooth) and mode not in ("bilinear", "bicubic"):
                continue
            changed = {"mode": mode, "align_corners": align, "antialias": smooth}

            def apply(function: Any, args: tuple, kwargs: dict, changed=changed) -> Any:
                names = ("size", "scale_factor")
                given = by_name(names, args[1:], kwargs)
                kept = {name: given[name] for name in names if name in given}
                return function(args[0] if args else kwargs["input"], **kept, **changed)

            fault = "resize_alignment" if align else "resize_method"
            ways = [f"mode={mode}", *(["align_corners=True"] * bool(align))]
            ways += ["antialias=True"] * smooth
            yield Change(fault, f"interpolate({', '.join(ways)})", apply)


def _same_pool(function: Any, args: tuple, kwargs: dict) -> Any:
    """Padded as XLA does."""
    functional = import_torch().nn.functional
    names = ("kernel_size", "stride", "padding")
    given = by_name(names, args[1:4], kwargs)
    kernel, stride = given["kernel_size"], given.get("stride") or given["kernel_size"]
    pads: list[int] = []
    for axis in (-1, -2):
        window = kernel if isinstance(kernel, int) else kernel[axis]
        step = stride if isinstance(stride, int) else stride[axis]
        pads += same_padding(args[0].shape[axis], window, step)
    is_max = "max" in function.__name__
    padded = functional.pad(args[0], pads, value=-math.inf if is_max else 0.0)
    pool = functional.max_pool2d if is_max else functional.avg_pool2d
    return pool(padded, kernel, stride)


def _reduced(other: Callable[..., Any]) -> Apply:
    def apply(function: Any, args: tuple, kwargs: dict) -> Any:
        del function
        given = by_name(("dim", "keepdim"), args[1:], kwargs)
        given = {k: v for k, v in given.items() if k in ("dim", "keepdim")}
        return other(args[0], **given)

    return apply


def _repeated(function: Any, args: tuple, kwargs: dict) -> Any:
    torch = import_torch()
    x = args[0]
    if "interleave" in getattr(function, "__name__", ""):
        given = by_name(("repeats", "dim"), args[1:], kwargs)
        return torch.cat([x] * given["repeats"], given["dim"])
    sizes = args[1] if isinstance(args[1], tuple | list) else args[1:]
    sizes = (*([1] * (len(sizes) - x.ndim)), *sizes)
    for axis, times in enumerate(sizes):
        x = x.repeat_interleave(times, axis)
    return x


def _from_end(function: Any, args: tuple, kwargs: dict) -> Any:
    axis = by_name(("dim",), args[1:], kwargs)["dim"]
    return function(args[0].flip(axis), axis).flip(axis)


def _unmasked(function: Any, args: tuple) -> Any:
    if getattr(function, "__name__", "") == "where":
        return args[1] if is_tensor(args[1]) and args[1].numel() > 1 else args[2]
    return args[0].clone()


def _binary(call: Call) -> Iterator[Change]:
    name = call.site.function
    tensors = [i for i, value in enumerate(call.args[:2]) if isinstance(value, Slot)]

    def change(fault: str, text: str, function: Callable[[Any, Any], Any]) -> Change:
        return Change(fault, text, lambda f, args, kwargs: function(args[0], args[1]))

    def like(one: Any, other: Any, result: Callable[[Any, Any], Any]) -> Any:
        return one.expand_as(result(one, other)).clone()

    if len(tensors) == 1:
        if tensors == [0]:
            fault = {"mul": "factor", "div": "factor"}.get(name, "offset")
            yield Change(fault, f"no {name}", _skipped)
        return
    if len(tensors) < 2:
        return
    if name in ("add", "sub"):
        sign = 1 if name == "add" else -1
        yield change(
            "missing_term", "a alone of a + b", lambda a, b: like(a, b, lambda a, b: a + b)
        )
        yield change(
            "missing_term", "b alone of a + b", lambda a, b: sign * like(b, a, lambda b, a: a + b)
        )
        yield change("sign", "a - b" if sign == 1 else "a + b", lambda a, b: a - sign * b)
        yield change("sign", "b - a" if sign == 1 else "-a - b", lambda a, b: sign * b - a)
        yield change("doubled_term", "a + 2 * b", lambda a, b: a + 2 * sign * b)
        yield change("doubled_term", "2 * a + b", lambda a, b: 2 * a + sign * b)
        yield change("factor", "(a + b) / 2", lambda a, b: (a + sign * b) / 2)
        yield change("residual", "a * b", lambda a, b: a * b)
    elif name == "mul":
        yield change(
            "missing_term", "a alone of a * b", lambda a, b: like(a, b, lambda a, b: a * b)
        )
        yield change(
            "missing_term", "b alone of a * b", lambda a, b: like(b, a, lambda b, a: a * b)
        )
        yield change("rms_norm", "a * (1 + b)", lambda a, b: a * (1 + b))
        yield change("rms_norm", "(1 + a) * b", lambda a, b: (1 + a) * b)
        yield change("gate", "a + b", lambda a, b: a + b)
    elif name == "div":
        yield change("factor", "a * b", lambda a, b: a * b)
        yield change("missing_term", "a alone of a / b", lambda a, b: a.clone())
    else:
        yield change("permuted_axes", "a @ b.mT", lambda a, b: a @ b.mT)
        yield change("permuted_axes", "a.mT @ b", lambda a, b: a.mT @ b)
        yield change("permuted_axes", "(a @ b).mT", lambda a, b: (a @ b).mT)


def tensor_arguments_of(
    call: Call, arguments: dict[str, tuple[str | int, Any]], program: Program
) -> Iterator[Change]:
    """Arguments that are tensors, left out or turned."""
    name = call.site.function
    for argument, (where, value) in arguments.items():
        if not isinstance(value, Slot):
            continue
        if argument in ("bias", "weight", "attn_mask") and not (
            argument == "weight" and ("conv" in name or name in ("linear", "embedding"))
        ):
            fault = {"bias": "missing_bias", "attn_mask": "mask"}.get(argument, "missing_term")
            yield Change(fault, f"{name} without its {argument}", with_argument(where, None))
        if argument == "weight" and name == "linear":
            yield Change(
                "transposed_kernel", "linear with its weight transposed", turned(where, _transpose)
            )
        if argument in ("mask", "condition", "attn_mask", "1") and name in ("masked_fill", "where"):
            for text, turn in _MASKS.items():
                yield Change("mask", f"{name} with the mask {text}", turned(where, turn))
            yield from _masks_of_some(name, where, program.values[value.index])
    if name in ("tril", "triu") and "diagonal" not in arguments:
        for diagonal in (1, -1):
            text = f"{name}(diagonal={diagonal})"
            yield Change("mask", text, with_argument("diagonal", diagonal))
    if name in ("var", "std") and not {"correction", "unbiased"} & arguments.keys():
        yield Change("variance", f"{name}(correction=0)", with_argument("correction", 0))
    if name == "masked_fill" and not math.isfinite(_scalar(arguments.get("value", (0, 0))[1])):
        yield Change("mask", "masked_fill with 0", with_argument(arguments["value"][0], 0.0))


def _masks_of_some(name: str, where: str | int, mask: Any) -> Iterator[Change]:
    """Masks of neighbours along the last axis, such as more keys or fewer, or of all but them."""
    size = mask.shape[-1] if mask.ndim else 0
    if not 1 < size <= _MOST_KEYS or mask.dtype != import_torch().bool:
        return
    for start, stop in itertools.combinations(range(size + 1), 2):

        def some(mask: Any, start: int = start, stop: int = stop) -> Any:
            new = mask & False
            new[..., start:stop] = True
            return new

        words = f"{start}:{stop} of its last axis"
        yield Change("mask", f"{name} with the mask of {words}", turned(where, some))
        if stop - start < size:
            text = f"{name} with the mask of all but {words}"
            yield Change("mask", text, turned(where, lambda mask, some=some: ~some(mask)))


def _scalar(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


_MASKS: dict[str, Callable[[Any], Any]] = {
    "inverted": lambda mask: ~mask,
    "transposed": lambda mask: mask.mT,
    "one place later": lambda mask: mask.roll(1, -1),
    "one place earlier": lambda mask: mask.roll(-1, -1),
    "one diagonal wider": lambda mask: mask & mask.roll(1, -1),
    "one diagonal narrower": lambda mask: mask | mask.roll(1, -2),
}


def _transpose(array: Any) -> Any:
    return array.T
