"""Softmax attention between its Linears, and that of the performer."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from vit_jax.inspect.recorder import Event, Frame
from vit_jax.parity.forms.attributes import attribute, numbers_of_heads
from vit_jax.parity.forms.base import (
    Form,
    Scene,
    outputs_of,
    softmax,
)
from vit_jax.parity.forms.modules import THIRDS


def _heads(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _query_key_value(frame: Frame, width: int) -> list[jax.Array] | None:
    """Three arrays (B, N, width), in the order in which they stand."""
    outputs = [(child, out) for child, out in outputs_of(frame) if out.ndim == 3]
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


def attentions(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    weights_heads = value.shape[1] if value.ndim == 4 else None
    for heads in numbers_of_heads(event.frame.module, value.shape[-1], weights_heads):
        yield from _attentions(event, value, scene, heads)


def _attentions(event: Event, value: jax.Array, scene: Scene, heads: int) -> Iterator[Form]:
    frame = event.frame
    is_weights = value.ndim == 4 and value.shape[-1] == value.shape[-2]
    outputs = [out for _, out in outputs_of(frame) if out.ndim == 3]
    if not outputs or hasattr(frame.module, "w"):
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
    own = attribute(frame.module, "scale")
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
        normed = [out for _, out in outputs_of(frame) if out.shape == q.shape]
        if len(normed) >= 2:
            q, k = normed[:2]
        scores = q @ k.swapaxes(-1, -2) * scale
        if weighting == "causal":
            scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
        if weighting == "none":
            weights = scores
        else:
            weights = softmax(scores, -2 if weighting == "over queries" else -1)
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


def performers(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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
