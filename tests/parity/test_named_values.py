"""Values that JAX code names by `checkpoint_name` are stages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import vit_jax
from tests.parity.planted.base import as_for_users
from tests.tiers import mostly_slow
from vit_jax.parity import JaxFunction, Report, compare

TOKENS = np.random.default_rng(0).normal(size=(4, 6, 8))
NAMED = ["fc1", "act", "fc2"]


def reference() -> torch.nn.Sequential:
    torch.manual_seed(0)
    module = torch.nn.Sequential()
    module.add_module("fc1", torch.nn.Linear(8, 16))
    module.add_module("act", torch.nn.GELU())
    module.add_module("fc2", torch.nn.Linear(16, 8))
    module.add_module("head", torch.nn.Linear(8, 5))
    return module


def function(p: Any, x: Any, approximate: bool = False, prefix: str = "") -> Any:
    x = checkpoint_name(x @ p["fc1.weight"].T + p["fc1.bias"], f"{prefix}fc1")
    x = checkpoint_name(jax.nn.gelu(x, approximate=approximate), f"{prefix}act")
    x = checkpoint_name(x @ p["fc2.weight"].T + p["fc2.bias"], f"{prefix}fc2")
    return x @ p["head.weight"].T + p["head.bias"]


def compared(apply: Any, **settings: Any) -> Report:
    theirs = reference()
    params = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    with as_for_users():
        return compare(
            JaxFunction(apply, params), theirs, TOKENS, precisions=("float64",), **settings
        )


def names(report: Report, section: str) -> list[str]:
    return [row.name for row in report.rows if row.section == section]


WAYS = {
    "plain": function,
    "compiled": jax.jit(function),
    "rematerialised": jax.checkpoint(function),
    "of single examples": lambda p, x: jax.vmap(lambda one: function(p, one))(x),
    "in float32": lambda p, x: function(p, x.astype(jnp.float32)).astype(x.dtype),
}


@pytest.mark.parametrize("way", mostly_slow(WAYS, ["rematerialised"]))
def test_of_a_function(way: str) -> None:
    report = compared(WAYS[way])
    assert report.ok, report.first
    assert names(report, "forward") == [*NAMED, ""]
    assert names(report, "backward") == ["images", *NAMED]


def test_place_a_fault() -> None:
    def apply(p: Any, x: Any) -> Any:
        return function(p, x, approximate=True, prefix="mlp_")

    report = compared(apply, names=[(r"^(fc1|act|fc2)\.$", r"mlp_\1.")], grad=False)
    assert (report.stage, report.where) == ("mlp_act", "after mlp_fc1, at mlp_act")
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "gelu"


class Port(nnx.Module):
    def __init__(self, approximate: bool):
        rngs = nnx.Rngs(0)
        self.fc1, self.fc2 = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)
        self.approximate = approximate

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(self.fc1(x), approximate=self.approximate)
        return self.head(self.fc2(checkpoint_name(x, "act")))


@pytest.mark.slow
@pytest.mark.parametrize("approximate", [False, True])
def test_of_a_module(approximate: bool) -> None:
    """The name is one inside of the module that runs; the derivative by the value is compared."""
    model, theirs = Port(approximate), reference()
    vit_jax.load_state_dict(model, theirs.state_dict())
    with as_for_users():
        report = compare(model, theirs, TOKENS, precisions=("float64",))
    assert report.ok is not approximate
    assert {"act"} < set(names(report, "backward"))
    assert report.stage == ("act" if approximate else None)


@pytest.mark.slow
def test_a_wrong_derivative_lies_between_two_of_them() -> None:
    def apply(p: Any, x: Any) -> Any:
        x = function({**p, "head.weight": jnp.eye(8), "head.bias": 0.0}, x)
        x = 0.5 * x + jax.lax.stop_gradient(0.5 * x)
        return x @ p["head.weight"].T + p["head.bias"]

    report = compared(apply)
    assert report.first is not None
    assert (report.first.section, report.first.name) == ("backward", "fc2")
