"""Sums of branches, class tokens and positions, pooling, heads and gates."""

import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from vit_jax.inspect.recorder import Event, Frame
from vit_jax.parity.forms.base import (
    Form,
    Scene,
    last_output,
    outputs_of,
    sigmoid,
)
from vit_jax.parity.sides import is_dropout


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


def sums(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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


def tokens(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
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
        patches = last_output(event.frame)
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


def pools(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    def source(event: Event):
        tokens = last_output(event.frame)
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


def head_averages(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    if event.entered is not None:
        return
    same = [out for _, out in outputs_of(event.frame) if out.shape == value.shape]
    if len(same) < 2:
        return
    for text, function in (
        ("the class head alone", lambda a, b: a),
        ("the distillation head alone", lambda a, b: b),
        ("the mean of both heads", lambda a, b: (a + b) / 2),
        ("the sum of both heads", lambda a, b: a + b),
    ):

        def compute(event: Event, value: jax.Array, function=function):
            same = [out for _, out in outputs_of(event.frame) if out.shape == value.shape]
            return function(*same[-2:]) if len(same) >= 2 else None

        yield Form("heads", text, compute, fault="averaged_heads")


def gates(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    gate = last_output(event.frame)
    frame = event.frame
    if event.entered is not None or gate is None or not frame.inputs:
        return
    x = frame.input
    if x.shape != value.shape or gate.ndim != x.ndim or gate.shape[1] != 1 or x.shape[1] == 1:
        return
    for text, function in (
        ("x * sigmoid(gate)", lambda x, g: x * sigmoid(g)),
        ("x * gate", lambda x, g: x * g),
        ("x + sigmoid(gate)", lambda x, g: x + sigmoid(g)),
        ("x * (1 + sigmoid(gate))", lambda x, g: x * (1 + sigmoid(g))),
        ("x * tanh(gate)", lambda x, g: x * jnp.tanh(g)),
        ("x without the gate", lambda x, g: x),
    ):

        def compute(event: Event, value: jax.Array, function=function):
            gate = last_output(event.frame)
            return None if gate is None else function(event.frame.input, gate)

        yield Form("gate", text, compute, fault="gate")
