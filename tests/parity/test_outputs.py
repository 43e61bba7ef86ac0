"""Outputs of several arrays, of other layouts, of whole numbers; inputs that are whole numbers."""

import collections
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.parity.ports import IDS, Port, linear, part
from tests.tiers import mostly_slow
from vit_jax.parity import JaxFunction, assert_parity, compare

Pair = collections.namedtuple("Pair", ["value", "total"])


@dataclasses.dataclass
class Output:
    value: Any
    rest: Any = None


def both(self: Any, x: Any) -> tuple[Any, Any]:
    value = self.fc(x)
    return value, x.sum(-1)


def _embedding() -> tuple[Any, Any]:
    return lambda: torch.nn.Embedding(11, 8), lambda: nnx.Embed(11, 8, rngs=nnx.Rngs(0))


def _ids(ours: Any, **expected: Any) -> Port:
    return Port(
        lambda self, x: self.fc(self.wte(x)),
        lambda self, x: self.fc(self.wte(ours(x))),
        {"wte": _embedding(), "fc": linear()},
        IDS,
        **expected,
    )


def _conv(kernel: int) -> tuple[Any, Any]:
    return (
        lambda: torch.nn.Conv2d(3, 6, kernel, padding="same"),
        lambda: nnx.Conv(3, 6, (kernel, kernel), rngs=nnx.Rngs(0)),
    )


def _map(ours: Any, shape: tuple[int, int] = (6, 7), **expected: Any) -> Port:
    images = np.random.default_rng(0).normal(size=(2, *shape, 3))
    call = lambda self, x: self.conv(x)  # noqa: E731
    return Port(call, ours, {"conv": _conv(3)}, images, **expected)


PORTS = {
    # All outputs, by name.
    "tuple": Port(both, both, grad=True),
    "second of a tuple doubled": Port(
        both, lambda self, x: (self.fc(x), 2 * x.sum(-1)), first=("forward", "[1]")
    ),
    "named tuple": Port(
        lambda self, x: Pair(*both(self, x)), lambda self, x: Pair(*both(self, x)), grad=True
    ),
    "second of a named tuple doubled": Port(
        lambda self, x: Pair(*both(self, x)),
        lambda self, x: Pair(self.fc(x), 2 * x.sum(-1)),
        first=("forward", "[total]"),
        fault="factor",
        says="the output of sum times 2",
    ),
    "mapping in another order": Port(
        lambda self, x: {"z": self.fc(x), "b": x * 2},
        lambda self, x: {"b": x * 2, "z": self.fc(x)},
        grad=True,
    ),
    "tuple for a mapping, its second doubled": Port(
        lambda self, x: {"z": self.fc(x), "b": x.sum(-1)},
        lambda self, x: (self.fc(x), 2 * x.sum(-1)),
        first=("forward", "[b]"),
        fault="factor",
        says="the output of sum times 2",
    ),
    "one of a list in a dataclass shifted": Port(
        lambda self, x: Output(self.fc(x), [x, x * 2]),
        lambda self, x: Output(self.fc(x), [x, x * 2 + 1]),
        first=("forward", "[rest.1]"),
        fault="offset",
        says="the output of mul plus 1",
    ),
    "second of a part doubled": Port(
        lambda self, x: self.pair(self.fc(x))[0],
        lambda self, x: self.pair(self.fc(x))[0],
        {"fc": linear(), "pair": part(lambda _, x: (x, 2 * x), lambda _, x: (x, x))},
        first=("forward", "pair[1]"),
        fault="factor",
        says="it is 2 times the reference's",
        complete=False,
    ),
    "classes that are not the largest": Port(
        lambda self, x: (y := self.fc(x), y.argmax(-1)),
        lambda self, x: (y := self.fc(x), y.argmin(-1)),
        first=("forward", "[1]"),
    ),
    "an output left out": Port(
        both, lambda self, x: self.fc(x), note="outputs that the reference alone has: [1]"
    ),
    "an output more": Port(
        lambda self, x: self.fc(x), both, note="outputs that the model alone has: [1]"
    ),
    # The model's own output has one layout.
    "transposed": Port(
        lambda self, x: self.fc(x),
        lambda self, x: self.fc(x).transpose(0, 2, 1),
        first=("forward", ""),
        fault="layout",
        says="in another order: (2, 8, 6), not (2, 6, 8); with this changed every value agrees",
    ),
    "transposed, with gradients": Port(
        lambda self, x: self.fc(x),
        lambda self, x: self.fc(x).transpose(0, 2, 1),
        grad=True,
        first=("forward", ""),
        fault="layout",
        says="with this changed all values and gradients agree",
    ),
    "an axis too many": Port(
        lambda self, x: self.fc(x).mean(-1),
        lambda self, x: self.fc(x).mean(-1)[..., None],
        grad=True,
        first=("forward", ""),
        fault="layout",
        says="reshaped: (2, 6, 1), not (2, 6)",
    ),
    "fewer tokens": Port(
        lambda self, x: self.fc(x),
        lambda self, x: self.fc(x)[:, 1:],
        grad=True,
        first=("forward", ""),
        note="the model's output is (2, 5, 8), the reference's (2, 6, 8)",
    ),
    "a map has its channels last": _map(lambda self, x: self.conv(x), grad=True),
    "a map with as many rows as channels": _map(lambda self, x: self.conv(x), (6, 6), grad=True),
    "a map on its side": _map(
        lambda self, x: self.conv(x).transpose(0, 2, 1, 3),
        (6, 7),
        first=("forward", ""),
        fault="layout",
    ),
    # Whole numbers.
    "ids": _ids(lambda x: x, grad=True),
    "ids shifted": _ids(lambda x: (x + 1) % 11, grad=True, first=("forward", "before wte")),
    "ids reversed": _ids(lambda x: x[:, ::-1], first=("forward", "before wte")),
}
FAST = [
    "second of a named tuple doubled",
    "mapping in another order",
    "tuple for a mapping, its second doubled",
    "one of a list in a dataclass shifted",
    "second of a part doubled",
    "classes that are not the largest",
    "an output left out",
    "transposed, with gradients",
    "an axis too many",
    "a map with as many rows as channels",
    "ids",
    "ids shifted",
]


@pytest.mark.parametrize("name", mostly_slow(PORTS, FAST))
def test_outputs_and_inputs(name: str) -> None:
    PORTS[name].check()


def test_outputs_of_a_function() -> None:
    reference = torch.nn.Linear(8, 8)
    params = {name: array.numpy() for name, array in reference.state_dict().items()}

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = reference

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.fc(x), "total": x.sum(-1)}

    def apply(params: Any, x: Any, factor: float = 1.0) -> dict[str, Any]:
        out = x @ params["fc.weight"].T + params["fc.bias"].reshape(1, 1, -1)
        return {"total": factor * x.sum(-1), "out": out}

    params = {f"fc.{name}": array for name, array in params.items()}
    tokens = PORTS["tuple"].inputs
    assert_parity(JaxFunction(apply, params), Both(), tokens)
    wrong = JaxFunction(lambda params, x: apply(params, x, 2.0), params)
    report = compare(wrong, Both(), tokens, grad=False, precisions=("float64",))
    assert report.first is not None
    assert report.first.name == "[total]"


def test_no_floats_come_out() -> None:
    port = PORTS["tuple"]
    model, reference = port.make()
    model.call = lambda self, x: jnp.argmax(x, -1)
    with pytest.raises(ValueError, match="wanted a model that answers with a floating-point array"):
        port.compare(model, reference)
