"""What is said of gradients: of values used twice, and once a fault of the values is repaired."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.ports import Port, linear, part
from tests.tiers import mostly_slow


def _same(_: Any, x: Any) -> Any:
    return x


def _twice(self: Any, x: Any) -> Any:
    x = self.fc(x) * 2
    return self.short(x) + self.fc2(x)


def _used_inside(self: Any, x: Any) -> Any:
    value, gate = self.pair(self.fc(x))
    return value * gate


def _gated(_: Any, x: Any) -> tuple[Any, Any]:
    x = x * 3
    return x, x * x


def _shortcut_first(self: Any, x: Any) -> Any:
    x = self.fc(x)
    short = self.short(x)
    return self.fc2(self.act(x * 1)) + short


def _norm(epsilon: float) -> tuple[Any, Any]:
    return (
        lambda: torch.nn.LayerNorm(8, eps=1e-5),
        lambda: nnx.LayerNorm(8, epsilon=epsilon, rngs=nnx.Rngs(0)),
    )


def _straight_through(self: Any, x: Any) -> Any:
    """tanh by value, the identity by its derivative."""
    y = self.fc(self.norm(x))
    return jax.lax.stop_gradient(jnp.tanh(y) - y) + y


def _normed(tanh: Any) -> Any:
    return lambda self, x: tanh(self.fc(self.norm(x)))


THREE = {"fc": linear(), "short": part(_same), "fc2": linear()}
RELU = (lambda: torch.nn.ReLU(inplace=True), lambda: part(lambda _, x: jax.nn.relu(x))[1]())
IDENTITY = (torch.nn.Identity, part(_same)[1])
PORTS = {
    "identity on a value used twice": Port(_twice, _twice, {**THREE, "short": IDENTITY}, grad=True),
    "dropout in a sequence on a value used twice": Port(
        _twice,
        _twice,
        {**THREE, "short": (lambda: torch.nn.Sequential(torch.nn.Dropout()), part(_same)[1])},
        grad=True,
    ),
    "a part that uses what it returns": Port(
        _used_inside, _used_inside, {"fc": linear(), "pair": part(_gated)}, grad=True
    ),
    "identity before a value is written over": Port(
        _shortcut_first, _shortcut_first, {**THREE, "short": IDENTITY, "act": RELU}, grad=True
    ),
    "a shortcut without its derivative": Port(
        _twice,
        lambda self, x: (
            (y := self.fc(x) * 2) is not None and self.short(jax.lax.stop_gradient(y)) + self.fc2(y)
        ),
        {**THREE, "short": IDENTITY},
        grad=True,
        first=("backward", "fc"),
        fault="derivative_of_sum",
    ),
    "epsilon alone": Port(
        _normed(torch.tanh),
        _normed(jnp.tanh),
        {"norm": _norm(1e-6), "fc": linear()},
        grad=True,
        first=("forward", "norm"),
        fault="layer_norm_eps",
        says="; with this changed all values and gradients agree",
    ),
    "epsilon, gradients not asked for": Port(
        _normed(torch.tanh),
        _straight_through,
        {"norm": _norm(1e-6), "fc": linear()},
        first=("forward", "norm"),
        fault="layer_norm_eps",
        says="; with this changed every value agrees",
    ),
    "epsilon and a derivative": Port(
        _normed(torch.tanh),
        _straight_through,
        {"norm": _norm(1e-6), "fc": linear()},
        grad=True,
        first=("forward", "norm"),
        fault="layer_norm_eps",
        complete=False,
        says="; with this changed every value agrees, but not the gradient of fc.bias",
    ),
}
FAST = [
    "identity on a value used twice",
    "a part that uses what it returns",
    "identity before a value is written over",
    "a shortcut without its derivative",
    "epsilon alone",
    "epsilon and a derivative",
]


@pytest.mark.parametrize("name", mostly_slow(PORTS, FAST))
def test_derivatives(name: str) -> None:
    PORTS[name].check()


def test_a_repaired_array_leaves_a_wrong_derivative() -> None:
    port = PORTS["epsilon alone"]
    port = Port(port.theirs, _straight_through, {**port.parts, "norm": _norm(1e-5)}, grad=True)
    model, reference = port.make()
    weights = vit_jax.state_dict(model)
    vit_jax.load_state_dict(model, weights | {"fc.weight": weights["fc.weight"].T})
    report = port.compare(model, reference)
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "transposed_kernel"
    assert not report.diagnosis.complete
