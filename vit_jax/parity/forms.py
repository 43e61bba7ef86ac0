"""What the code between two modules may compute, right or wrong, from the values around it.

Each form is a function of the call in which a value is made. Trying forms in the place of the
model's own value tells which of them it computes and which would make it agree with the reference.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers.unfold import unfold
from vit_jax.parity.recorder import Event, Frame
from vit_jax.parity.sides import is_dropout
from vit_jax.parity.values import Expected, Whole

# The value of a form in a call; None where it does not apply there.
Compute = Callable[[Event, jax.Array], jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Form:
    """One thing that may be computed.

    Attributes:
      kind: what it is a form of; forms of one kind are alternatives.
      text: what it computes, in words.
      compute: how.
      traits: what it is made of, where its kind has several (an order, a scale).
      fault: the short name of the fault of computing this where another form is right.
    """

    kind: str
    text: str
    compute: Compute
    traits: tuple[tuple[str, str], ...] = ()
    fault: str | None = None

    def __call__(self, event: Event, value: jax.Array) -> jax.Array | None:
        """What it gives in the place of a value; None where it does not apply."""
        try:
            # Whatever the caller's settings forbid.
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                found = self.compute(event, value)
        except (IndexError, TypeError, ValueError):  # shapes or calls that are not there
            return None
        return None if found is None or found.shape != value.shape else found.astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What forms are made from, beside the call: arrays of the reference by its names.

    Attributes:
      weights: the reference's arrays, in PyTorch's layout and the precision of the run.
      skipped: modules that the reference ran just before and the model did not.
      expected: what the reference has for the event, if it has it.
    """

    weights: Mapping[str, jax.Array]
    skipped: tuple[str, ...] = ()
    expected: Expected | None = None

    def of(self, path: str, leaf: str, ndim: int) -> jax.Array | None:
        array = self.weights.get(f"{path.partition('#')[0]}.{leaf}")
        return array if array is not None and array.ndim == ndim else None


def _outputs(frame: Frame) -> list[tuple[Frame, jax.Array]]:
    """What the calls inside gave, dropouts left out."""
    return [
        (child, output)
        for child, output in frame.children
        if not is_dropout(child.module) and isinstance(output, jax.Array)
    ]


def _last(frame: Frame) -> jax.Array | None:
    outputs = _outputs(frame)
    return outputs[-1][1] if outputs else None


# ---------------------------------------------------------------------------- activations


# Not those of jax.nn: what is tried has to be right where these were tampered with.
def _sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def _softmax(x: jax.Array, axis: int) -> jax.Array:
    weights = jnp.exp(x - jax.lax.stop_gradient(x.max(axis=axis, keepdims=True)))
    return weights / weights.sum(axis=axis, keepdims=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "GELU (erf)": lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x / math.sqrt(2))),
    "GELU (tanh approximation)": lambda x: (
        0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "GELU (sigmoid approximation)": lambda x: x * _sigmoid(1.702 * x),
    "ReLU": lambda x: jnp.maximum(x, 0),
    "SiLU": lambda x: x * _sigmoid(x),
    "tanh": jnp.tanh,
    "sigmoid": _sigmoid,
    "no activation": lambda x: x,
}


def _activations(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    """A function of one call's output, or of all of them beside each other."""
    outputs = _outputs(event.frame)
    if not outputs or not hasattr(outputs[-1][0].module, "kernel"):
        return
    # The last call first.
    places = [i for i in reversed(range(len(outputs))) if outputs[i][1].shape == value.shape]
    if len(outputs) > 1 and sum(output.shape[-1] for _, output in outputs) == value.shape[-1]:
        places.append(-1)
    for place, (name, function) in itertools.product(places, ACTIVATIONS.items()):

        def compute(event: Event, value: jax.Array, place=place, function=function):
            outputs = [output for _, output in _outputs(event.frame)]
            if place < 0:
                return jnp.concatenate([function(output) for output in outputs], axis=-1)
            return function(outputs[place])

        yield Form("activation", name, compute, fault="gelu" if "GELU" in name else "activation")


# ---------------------------------------------------------------------------- modules with arrays

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


def _layer_norms(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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

    own = getattr(event.module, "epsilon", None)
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


def _skipped_norms(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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


def _linears(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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


def _convolutions(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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
        stride, padding = getattr(module, "patch_size", None), "VALID"
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


def _unfolds(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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


# ---------------------------------------------------------------------------- attention


def _heads(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _query_key_value(frame: Frame, width: int) -> list[jax.Array] | None:
    """Three arrays (B, N, width), in the order in which they stand."""
    outputs = [(child, out) for child, out in _outputs(frame) if out.ndim == 3]
    wide = [out for _, out in outputs if out.shape[-1] == 3 * width]
    if wide:
        return list(jnp.split(wide[0], 3, axis=-1))
    alone = [out for _, out in outputs if out.shape[-1] == width]
    if len(alone) >= 3:
        return alone[:3]
    halves = [out for _, out in outputs if 2 * out.shape[-1] == width]
    if len(halves) >= 6:  # each computed half, then its copy
        return [jnp.concatenate(halves[i : i + 2], axis=-1) for i in (0, 2, 4)]
    return None


_SCALES: dict[str, Callable[[Mapping[str, int]], float]] = {
    "head_dim ** -0.5": lambda sizes: sizes["head_dim"] ** -0.5,
    "dim ** -0.5": lambda sizes: sizes["dim"] ** -0.5,
    "input_dim ** -0.5": lambda sizes: sizes["input_dim"] ** -0.5,
    "1": lambda sizes: 1.0,
    "1 / head_dim": lambda sizes: 1 / sizes["head_dim"],
    "head_dim ** -0.25": lambda sizes: sizes["head_dim"] ** -0.25,
    "num_heads ** -0.5": lambda sizes: sizes["num_heads"] ** -0.5,
    "head_dim ** 0.5": lambda sizes: sizes["head_dim"] ** 0.5,
}


def _attentions(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    is_weights = value.ndim == 4 and value.shape[-1] == value.shape[-2]
    heads = getattr(frame.module, "num_heads", 1)
    outputs = [out for _, out in _outputs(frame) if out.ndim == 3]
    if not outputs or not isinstance(heads, int) or hasattr(frame.module, "w"):
        return
    if is_weights:
        width = outputs[0].shape[-1] // 3 if len(outputs) == 1 else outputs[0].shape[-1]
    elif value.ndim == 3:
        width = value.shape[-1]
    else:
        return
    parts = _query_key_value(frame, width)
    if parts is None or width % heads:
        return
    head_dim, dim, in_dim = width // heads, width, frame.input.shape[-1]
    sizes = {"head_dim": head_dim, "dim": dim, "input_dim": in_dim, "num_heads": heads}
    own = getattr(frame.module, "scale", None)
    layouts = ("(head, head_dim)", "(head_dim, head)", "(head, head_dim) and never put back")
    weightings = ("over keys", "over queries", "none", "causal")

    def attend(frame: Frame, value, order, scale_of, layout, weighting, only_weights):
        parts = _query_key_value(frame, width)
        if parts is None:
            return None
        scale = scale_of({**sizes, "input_dim": frame.input.shape[-1]})
        parts = [parts[i] for i in THIRDS[order]]
        if layout != layouts[1]:
            q, k, v = (_heads(x, heads) for x in parts)
        else:
            q, k, v = (
                x.reshape(*x.shape[:2], head_dim, heads).transpose(0, 3, 1, 2) for x in parts
            )
        # A norm on the heads of queries and keys.
        normed = [out for _, out in _outputs(frame) if out.shape == q.shape]
        if len(normed) >= 2:
            q, k = normed[:2]
        scores = q @ k.swapaxes(-1, -2) * scale
        if weighting == "causal":
            scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        if weighting == "none":
            weights = scores
        else:
            weights = _softmax(scores, -2 if weighting == "over queries" else -1)
        if only_weights:
            return weights if weights.shape == value.shape else None
        x = weights @ v
        if layout != layouts[2]:
            x = x.transpose(0, 2, 1, 3) if layout == layouts[0] else x.transpose(0, 2, 3, 1)
            return x.reshape(value.shape)
        return x.reshape(value.shape)

    scales = dict(_SCALES)
    if isinstance(own, float):
        scales["its own"] = lambda sizes: own
    for order, (name, scale_of), layout, weighting in itertools.product(
        THIRDS, scales.items(), layouts, weightings
    ):

        def compute(event, value, form=(order, scale_of, layout, weighting)):
            return attend(event.frame, value, *form, only_weights=value.ndim == 4)

        traits = (
            ("order", f"the thirds read as {', '.join(order)}"),
            ("scale", f"scores times {name} = {scale_of(sizes):.4g}"),
            ("layout", f"heads split as {layout}"),
            ("weighting", f"softmax {weighting}"),
        )
        yield Form("attention", "", compute, traits)


def _performers(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    features = scene.of(frame.path, "w", 2)
    if value.ndim != 3 or features is None or _query_key_value(frame, value.shape[-1]) is None:
        return

    def attend(event: Event, value, order, eps, kernel):
        parts = _query_key_value(event.frame, value.shape[-1])
        w = scene.of(event.frame.path, "w", 2)
        if parts is None or w is None:
            return None
        q, k, v = (parts[i] for i in THIRDS[order])

        def positive(x: jax.Array) -> jax.Array:
            exponent = x @ w.T
            if kernel != "without |x|^2 / 2":
                exponent = exponent - 0.5 * jnp.sum(x * x, axis=-1, keepdims=True)
            count = 1.0 if kernel == "without 1 / sqrt(m)" else math.sqrt(w.shape[0])
            return jnp.exp(exponent) / count

        kp, qp = positive(k), positive(q)
        denominator = jnp.einsum("bti,bi->bt", qp, kp.sum(axis=1))[..., None] + eps
        summary = jnp.einsum("bti,btn->bin", kp, v)
        summary = jnp.einsum("bti,bin->btn", qp, summary)
        return summary / denominator

    for order, eps, kernel in itertools.product(
        THIRDS,
        (1e-8, 0.0, 1e-6, 1e-12, 1e-5, 1e-4),
        ("positive", "without |x|^2 / 2", "without 1 / sqrt(m)"),
    ):

        def compute(event, value, order=order, eps=eps, kernel=kernel):
            return attend(event, value, order, eps, kernel)

        # THIRDS says where q, k and v stand; this is how the thirds are read.
        read = [""] * 3
        for name, place in zip("qkv", THIRDS[order], strict=True):
            read[place] = name
        traits = (
            ("order", f"the thirds read as {', '.join(read)}"),
            ("performer_eps", f"epsilon {eps:g} in the denominator"),
            ("kernel", f"random features {kernel}"),
        )
        yield Form("performer", "", compute, traits)


# ---------------------------------------------------------------------------- sums and tokens


def _terms(frame: Frame, shape: tuple[int, ...]) -> dict[str, Callable[[Frame], jax.Array]]:
    """Values of a shape in a call: its input, what calls inside it took and gave, and thirds."""
    terms: dict[str, Callable[[Frame], jax.Array]] = {}
    if frame.inputs and frame.input.shape == shape:
        terms["its input"] = lambda frame: frame.input
    elif frame.inputs and frame.input.ndim == len(shape) and frame.input.shape[-1] > shape[-1]:
        terms["the first features of its input"] = lambda frame: frame.input[..., : shape[-1]]
    for i, (child, output) in enumerate(frame.children):
        if is_dropout(child.module):
            continue
        name = child.path.rpartition(".")[2]
        if child.inputs and child.input.shape == shape:
            terms[f"the input of {name}"] = lambda frame, i=i: frame.children[i][0].input
        if output.shape == shape:
            terms[f"the output of {name}"] = lambda frame, i=i: frame.children[i][1]
        elif output.ndim == len(shape) and output.shape[-1] == 3 * shape[-1]:
            for third in range(3):
                terms[f"third {third + 1} of {name}"] = lambda frame, i=i, third=third: jnp.split(
                    frame.children[i][1], 3, axis=-1
                )[third]
    return terms


def _sums(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    frame = event.frame
    terms = _terms(frame, value.shape)
    outputs = {name for name in terms if name.startswith("the output of")}
    if not outputs:
        return
    for first, second in itertools.combinations_with_replacement([*terms, ""], 2):
        if not {first, second} & outputs or first == "":
            continue

        def compute(event: Event, value: jax.Array, first=first, second=second):
            terms = _terms(event.frame, value.shape)
            if first not in terms or (second and second not in terms):
                return None
            total = terms[first](event.frame)
            return total + terms[second](event.frame) if second else total

        text = f"{first} + {second}" if second else f"{first} alone"
        yield Form("sum", text, compute, fault="skip_connection")


def _tokens(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    """Class tokens before patches, and positions."""
    if value.ndim != 3:
        return
    dim = value.shape[-1]

    def table(name: str) -> jax.Array:
        return scene.weights[name].reshape(-1, dim)

    def names(*parts: str) -> list[str]:
        return [
            name
            for name, array in scene.weights.items()
            if any(part in name for part in parts)
            and array.shape[-1] == dim
            and array.ndim >= 2
            and not name.startswith(("blocks.", "layers."))
        ]

    positions = names("pos_emb", "position", "positon")
    prefix = [n for part in ("cls", "class_p", "dist_token", "reg_token") for n in names(part)]
    if not positions:
        return

    def pieces(event: Event, value: jax.Array):
        patches = _last(event.frame)
        if patches is None and event.frame.inputs:
            patches = event.frame.input
        if patches is None or patches.ndim != 3 or patches.shape[-1] != dim:
            return None
        batch = patches.shape[0]
        tokens = []
        if patches.shape[1] != value.shape[1]:
            for name in prefix:
                token = scene.weights[name]
                token = token.reshape(-1, *token.shape[-2:]) if token.ndim > 2 else token[None]
                tokens.append(jnp.broadcast_to(token, (batch, *token.shape[1:])))
        count = sum(token.shape[1] for token in tokens)
        return (tokens, count, patches) if count + patches.shape[1] == value.shape[1] else None

    def form(text: str, function, fault: str = "class_token_position") -> Form:
        def compute(event: Event, value: jax.Array):
            found = pieces(event, value)
            return None if found is None else function(*found)

        return Form("tokens", text, compute, fault=fault)

    def join(tokens, patches):
        return jnp.concatenate([*tokens, patches], axis=1)

    for name in positions:
        rows = table(name)

        def everywhere(tokens, count, patches, rows=rows):
            x = join(tokens, patches)
            return x + rows[: x.shape[1]] if len(rows) >= x.shape[1] else None

        def patches_only(tokens, count, patches, rows=rows):
            n = patches.shape[1]
            found = rows[count : count + n] if len(rows) >= count + n else rows[:n]
            return join(tokens, patches + found) if len(found) == n else None

        def from_the_first(tokens, count, patches, rows=rows):
            n = patches.shape[1]
            return join(tokens, patches + rows[:n]) if len(rows) >= n else None

        yield form("positions added to class tokens and patches", everywhere)
        yield form("positions added to the patches alone", patches_only)
        yield form("the first positions added to the patches alone", from_the_first)
    yield form("no positions", lambda tokens, count, patches: join(tokens, patches), "positions")
    yield form(
        "class tokens after the patches",
        lambda tokens, count, patches: (
            jnp.concatenate([patches, *tokens], axis=1)
            + table(positions[0])[: count + patches.shape[1]]
        ),
    )


def _pools(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    def source(event: Event):
        tokens = _last(event.frame)
        if tokens is None or tokens.ndim != 3:
            tokens = event.frame.input if event.frame.inputs else None
        return tokens if tokens is not None and tokens.ndim == 3 else None

    tokens = source(event)
    batch = value.shape[0]
    if tokens is None or value.size != batch * tokens.shape[-1] or tokens.shape[0] != batch:
        return
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "the class token": lambda x: x[:, 0],
        "the second token": lambda x: x[:, 1],
        "the last token": lambda x: x[:, -1],
        "the mean of all tokens": lambda x: x.mean(axis=1),
        "the mean without the class token": lambda x: x[:, 1:].mean(axis=1),
        "the mean without the first two tokens": lambda x: x[:, 2:].mean(axis=1),
        "the largest of all tokens": lambda x: x.max(axis=1),
        "the sum of all tokens": lambda x: x.sum(axis=1),
    }
    for text, function in functions.items():

        def compute(event: Event, value: jax.Array, function=function):
            tokens = source(event)
            if tokens is None or tokens.shape[1] < 3:
                return None
            pooled = function(tokens)
            return pooled.reshape(value.shape) if pooled.size == value.size else None

        yield Form("pool", text, compute, fault="pooling")


def _head_averages(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    if event.entered is not None:
        return
    same = [out for _, out in _outputs(event.frame) if out.shape == value.shape]
    if len(same) < 2:
        return
    for text, function in (
        ("the class head alone", lambda a, b: a),
        ("the distillation head alone", lambda a, b: b),
        ("the mean of both heads", lambda a, b: (a + b) / 2),
        ("the sum of both heads", lambda a, b: a + b),
    ):

        def compute(event: Event, value: jax.Array, function=function):
            same = [out for _, out in _outputs(event.frame) if out.shape == value.shape]
            return function(*same[-2:]) if len(same) >= 2 else None

        yield Form("heads", text, compute, fault="averaged_heads")


def _gates(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    gate = _last(event.frame)
    frame = event.frame
    if event.entered is not None or gate is None or not frame.inputs:
        return
    x = frame.input
    if x.shape != value.shape or gate.ndim != x.ndim or gate.shape[1] != 1 or x.shape[1] == 1:
        return
    for text, function in (
        ("x * sigmoid(gate)", lambda x, g: x * _sigmoid(g)),
        ("x * gate", lambda x, g: x * g),
        ("x + sigmoid(gate)", lambda x, g: x + _sigmoid(g)),
        ("x * (1 + sigmoid(gate))", lambda x, g: x * (1 + _sigmoid(g))),
        ("x * tanh(gate)", lambda x, g: x * jnp.tanh(g)),
        ("x without the gate", lambda x, g: x),
    ):

        def compute(event: Event, value: jax.Array, function=function):
            gate = _last(event.frame)
            return None if gate is None else function(event.frame.input, gate)

        yield Form("gate", text, compute, fault="gate")


_KINDS = (
    _skipped_norms,
    _layer_norms,
    _linears,
    _convolutions,
    _unfolds,
    _activations,
    _attentions,
    _performers,
    _head_averages,
    _pools,
    _gates,
    _tokens,
    _sums,
)


def forms_of(event: Event, value: jax.Array, scene: Scene) -> list[Form]:
    """All that may be computed at an event."""
    return [form for kind in _KINDS for form in kind(event, value, scene)]
