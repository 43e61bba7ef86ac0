"""What a module with arrays may make of its input: norms, Linears, convolutions, patches."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.inspect.recorder import Event
from vit_jax.layers.unfold import unfold
from vit_jax.parity.forms.attributes import attribute
from vit_jax.parity.forms.base import (
    Form,
    Scene,
)
from vit_jax.parity.values import Whole

_EPSILONS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


def _normalise(x: jax.Array, eps: float, ddof: int = 0, outside: bool = False) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (x.shape[-1] - ddof)
    root = jnp.sqrt(variance) + eps if outside else jnp.sqrt(variance + eps)
    return centred / root


def _solved_epsilon(event: Event, scene: Scene, scale, bias) -> list[float]:
    """The epsilon that the reference's own values tell, to three digits."""
    expected = scene.expected
    x = np.asarray(event.frame.input, np.float64)
    if not isinstance(expected, Whole) or event.entered is not None or expected.shape != x.shape:
        return []
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        root = centred * np.asarray(scale) / (expected.array - np.asarray(bias))
        found = float(np.nanmedian(root**2 - variance))
    return [float(f"{found:.3g}")] if np.isfinite(found) and 0 < found < 1 else []


def layer_norms(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    if event.entered is not None or not frame.inputs or frame.input.shape != value.shape:
        return
    scale, bias = scene.of(event.path, "weight", 1), scene.of(event.path, "bias", 1)
    if scale is None or bias is None or scale.shape[0] != value.shape[-1]:
        return

    def form(text: str, function, fault: str = "layer_norm") -> Form:
        def compute(event: Event, value: jax.Array):
            w, b = scene.of(event.path, "weight", 1), scene.of(event.path, "bias", 1)
            x = event.frame.input
            if w is None or b is None or x.shape != value.shape or w.shape[0] != x.shape[-1]:
                return None
            return function(x, w, b)

        return Form("layer_norm", text, compute, fault=fault)

    own = attribute(event.module, "epsilon")
    epsilons: list[float] = [*([own] if own else []), *_EPSILONS]
    for eps in dict.fromkeys([*epsilons, *_solved_epsilon(event, scene, scale, bias)]):
        yield form(
            f"LayerNorm with epsilon {eps:g}",
            lambda x, w, b, eps=eps: _normalise(x, eps) * w + b,
            "layer_norm_eps",
        )
    own = own or 1e-6
    yield form("no normalisation", lambda x, w, b: x, "missing_norm")
    for text, function in (
        ("LayerNorm without its bias", lambda x, w, b: _normalise(x, own) * w),
        ("LayerNorm without its scale", lambda x, w, b: _normalise(x, own) + b),
        ("LayerNorm without scale and bias", lambda x, w, b: _normalise(x, own)),
        ("LayerNorm with the sample variance", lambda x, w, b: _normalise(x, own, ddof=1) * w + b),
        (
            "LayerNorm with epsilon outside the root",
            lambda x, w, b: _normalise(x, own, outside=True) * w + b,
        ),
        (
            "RMSNorm",
            lambda x, w, b: x / jnp.sqrt((x * x).mean(axis=-1, keepdims=True) + own) * w + b,
        ),
    ):
        yield form(text, function, "missing_bias" if text.endswith("its bias") else "layer_norm")


def skipped_norms(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    """A normalisation that the reference ran here and the model did not."""
    inside = f"{event.frame.path}." if event.frame.path else ""
    for path in scene.skipped:
        if not path.startswith(inside):
            continue
        name = path.removeprefix(inside)
        for eps in _EPSILONS:

            def compute(event: Event, value: jax.Array, name=name, eps=eps):
                own = f"{event.frame.path}.{name}" if event.frame.path else name
                scale, bias = scene.of(own, "weight", 1), scene.of(own, "bias", 1)
                if scale is None or bias is None or len(scale) != value.shape[-1]:
                    return None
                return _normalise(value, eps) * scale + bias

            text = f"{path} (LayerNorm with epsilon {eps:g}) before it"
            yield Form("skipped", text, compute, fault="missing_norm")


THIRDS = {
    "".join(names): tuple("qkv".index(name) for name in names)
    for names in itertools.permutations("qkv")
}


def linears(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    if event.entered is not None or frame.children or not frame.inputs:
        return
    weight = scene.of(event.path, "weight", 2)
    if weight is None:
        return

    def form(text: str, function, fault: str = "linear") -> Form:
        def compute(event: Event, value: jax.Array):
            w, b = scene.of(event.path, "weight", 2), scene.of(event.path, "bias", 1)
            x = event.frame.input
            if w is None or x.shape[-1] != w.shape[1] or value.shape[-1] != w.shape[0]:
                return None
            return function(x, w, jnp.zeros(w.shape[0], x.dtype) if b is None else b)

        return Form("linear", text, compute, fault=fault)

    yield form("x W^T + b", lambda x, w, b: x @ w.T + b)
    yield form("x W^T without the bias", lambda x, w, b: x @ w.T, "missing_bias")
    yield form("x W^T + 2 b", lambda x, w, b: x @ w.T + 2 * b, "bias_twice")
    if weight.shape[0] == weight.shape[1]:
        yield form("x W + b, the kernel transposed", lambda x, w, b: x @ w + b, "transposed_kernel")
        yield form(
            "x W, the kernel transposed, no bias", lambda x, w, b: x @ w, "transposed_kernel"
        )
    if weight.shape[0] % 3 == 0:
        for name, order in THIRDS.items():
            if name == "qkv":
                continue

            def permuted(x, w, b, order=order):
                thirds = jnp.split(w, 3)
                return x @ jnp.concatenate([thirds[i] for i in order]).T + b

            def all_permuted(x, w, b, order=order):
                thirds = jnp.split(x @ w.T + b, 3, axis=-1)
                return jnp.concatenate([thirds[i] for i in order], axis=-1)

            yield form(f"its thirds in the order {', '.join(name)}", all_permuted, "qkv_order")
            yield form(f"the kernel's thirds in the order {', '.join(name)}", permuted, "qkv_order")


def convolutions(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    if event.entered is not None or frame.children or not frame.inputs or frame.input.ndim != 4:
        return
    module = event.module
    found = None
    for inner in ("", ".proj", ".conv"):
        path = event.path.partition("#")[0] + inner
        if scene.of(path, "weight", 4) is not None:
            found = path
    if found is None:
        return
    if isinstance(module, nnx.Conv):
        stride, padding = module.strides, module.padding
    else:
        stride, padding = attribute(module, "patch_size"), "VALID"
    if stride is None:
        return
    strides = _pair(stride)
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    elif not isinstance(padding, str):
        padding = [_pair(side) for side in padding]

    def form(text: str, function, fault: str = "patch_order") -> Form:
        def compute(event: Event, value: jax.Array):
            w, b = scene.of(found, "weight", 4), scene.of(found, "bias", 1)
            assert w is not None
            kernel = function(w)
            y = jax.lax.conv_general_dilated(
                event.frame.input,
                kernel,
                strides,
                padding,
                dimension_numbers=("NHWC", "OIHW", "NHWC"),
            )
            if b is not None and "bias" not in text:
                y = y + b
            return y.reshape(value.shape) if y.size == value.size else None

        return Form("convolution", text, compute, fault=fault)

    yield form("the convolution of its kernel", lambda w: w, "convolution")
    yield form("the convolution without the bias", lambda w: w, "missing_bias")
    for text, function in KERNEL_ORDERS.items():
        yield form(text, function)


KERNEL_ORDERS: dict[str, Callable] = {
    "a patch's features in the order (height, width, channel)": lambda w: w.transpose(
        0, 2, 3, 1
    ).reshape(w.shape),
    "a patch's features in the order (width, height, channel)": lambda w: w.transpose(
        0, 3, 2, 1
    ).reshape(w.shape),
    "a patch with rows and columns exchanged": lambda w: (
        w.swapaxes(2, 3) if w.shape[2] == w.shape[3] else w
    ),
    "a kernel flipped in space (a true convolution)": lambda w: w[:, :, ::-1, ::-1],
    "channels in the reverse order (BGR)": lambda w: w[:, ::-1],
}


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns


def unfolds(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    if event.entered is not None or frame.children or not frame.inputs:
        return
    module, x = event.module, frame.input
    patch = getattr(module, "patch_size", None)
    kernel = getattr(module, "kernel_size", patch)
    if x.ndim != 4 or value.ndim != 3 or kernel is None or hasattr(module, "kernel"):
        return
    rows, columns = _pair(kernel)
    if x.shape[-1] * rows * columns != value.shape[-1]:
        return

    def form(text: str, function) -> Form:
        def compute(event: Event, value: jax.Array):
            images = event.frame.input
            split = getattr(event.module, "patch_size", getattr(event.module, "kernel_size", None))
            if images.ndim != 4 or split is None:
                return None
            size = _pair(split)
            step = _pair(getattr(event.module, "stride", size))
            y = function(images, size, step, _pair(getattr(event.module, "padding", 0)))
            return y if y is not None and y.shape == value.shape else None

        return Form("unfold", text, compute, fault="patch_order")

    def moved(images, size, step, pad, order):
        y = unfold(images, size, step, pad)
        windows = y.reshape(*y.shape[:2], images.shape[-1], *size)
        return windows.transpose(0, 1, *(2 + i for i in order)).reshape(y.shape)

    yield form("patches row by row, features (channel, height, width)", unfold)
    for names, order in (
        ("(height, width, channel)", (1, 2, 0)),
        ("(width, height, channel)", (2, 1, 0)),
        ("(channel, width, height)", (0, 2, 1)),
    ):
        yield form(
            f"features of a patch in the order {names}",
            lambda *a, order=order: moved(*a, order=order),
        )
    yield form(
        "patches column by column, and columns before rows in each",
        lambda images, *a: unfold(images.swapaxes(1, 2), *a),
    )

    def column_first(images, size, step, pad):
        y = unfold(images, size, step, pad)
        side = math.isqrt(y.shape[1])
        if side * side != y.shape[1]:
            return None
        return y.reshape(y.shape[0], side, side, -1).swapaxes(1, 2).reshape(y.shape)

    yield form("patches column by column", column_first)
