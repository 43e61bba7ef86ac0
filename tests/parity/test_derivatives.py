"""What is said of gradients: of values used twice, and once a fault of the values is repaired."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.ports import Port, linear, part
from tests.tiers import mostly_slow
from vit_jax.parity.dissect.functions import activations
from vit_jax.parity.torch_widen import ROUNDED_DERIVATIVES


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
HARD_SIGMOID = (
    lambda: torch.nn.Hardsigmoid(inplace=True),
    part(lambda _, x: jax.nn.hard_sigmoid(x))[1],
)
SIXTH = "PyTorch's own derivative of hardsigmoid holds 1/6 rounded to float32, in: "
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
    "a hard sigmoid": Port(
        lambda self, x: x * torch.nn.functional.hardsigmoid(self.fc(x)),
        lambda self, x: x * jax.nn.hard_sigmoid(self.fc(x)),
        grad=True,
        note=f"{SIXTH}the model itself (float64 is compared with the exact derivative)",
    ),
    "a hard sigmoid in place": Port(
        lambda self, x: x * self.act(self.fc(x)),
        lambda self, x: x * self.act(self.fc(x)),
        {"fc": linear(), "act": HARD_SIGMOID},
        grad=True,
        note=f"{SIXTH}act",
    ),
    "a hard sigmoid whose sixth is rounded": Port(
        lambda self, x: x * torch.nn.functional.hardsigmoid(self.fc(x)),
        lambda self, x: x * jnp.clip((self.fc(x) + 3) * float(np.float32(1 / 6)), 0, 1),
        grad=True,
        first=("forward", ""),
        fault="factor",
        says="in the model itself ours has the output of mul times 1.0000000298",
    ),
    "a sigmoid for a hard sigmoid": Port(
        lambda self, x: x * torch.nn.functional.hardsigmoid(self.fc(x)),
        lambda self, x: x * jax.nn.sigmoid(self.fc(x)),
        grad=True,
        first=("forward", ""),
        fault="activation",
        says="ours computes sigmoid() where the reference computes hardsigmoid()",
    ),
}
FAST = [
    "a hard sigmoid",
    "a hard sigmoid in place",
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


@pytest.mark.parametrize("name", activations())
def test_which_of_pytorchs_derivatives_are_rounded(name: str) -> None:
    """Those in the table, and no others; held against central differences of the sixth order."""
    function, step = activations()[name], 2e-3
    x = torch.linspace(-4.1, 4.1, 56, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    with torch.no_grad():
        slopes = sum(
            weight * (function(x + k * step) - function(x - k * step)) / step
            for k, weight in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
        )
    assert (float((slopes - slope).abs().max()) > 1e-9) == (name in ROUNDED_DERIVATIVES)


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
