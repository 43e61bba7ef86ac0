"""Train mode of Linen and Equinox modules: batch normalisation and dropout."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen

from tests.parity.planted.base import as_for_users
from vit_jax.parity import OptimizerSpec, Report, compare, from_equinox, from_linen

IMAGES = np.random.default_rng(0).normal(size=(4, 5, 6, 3))
N = 4 * 5 * 6


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(6)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        return self.head(x.mean((2, 3)))


class Unbiased(linen.Module):
    """Written by hand, with PyTorch's running variance."""

    use_running_average: bool
    momentum: float = 0.9
    use_fast_variance: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        scale, bias = (
            self.param(name, make, (size,))
            for name, make in (
                ("scale", linen.initializers.ones),
                ("bias", linen.initializers.zeros),
            )
        )
        kept = [self.variable("batch_stats", name, jnp.zeros, (size,)) for name in ("mean", "var")]
        mean, var = (variable.value for variable in kept)
        if not self.use_running_average:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new = (mean, var * N / (N - 1))
            for variable, value in zip(kept, new, strict=True):
                variable.value = self.momentum * variable.value + (1 - self.momentum) * value
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


class LinenNet(linen.Module):
    kind: Any = linen.BatchNorm
    momentum: float = 0.9
    rate: float = 0.5

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = linen.Conv(6, (3, 3), padding=1, name="conv")(x)
        settings = {"momentum": self.momentum, "use_fast_variance": False, "name": "bn"}
        x = linen.relu(self.kind(use_running_average=not train, **settings)(x))
        x = linen.Dropout(self.rate, name="drop")(x, deterministic=not train)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


class EquinoxUnbiased(eqx.nn.BatchNorm):
    def __call__(self, x: Any, state: Any, **keywords: Any) -> Any:
        assert self.batch_state_index is not None
        _, old = state.get(self.batch_state_index)
        y, state = super().__call__(x, state, **keywords)
        mean, var = state.get(self.batch_state_index)
        kept = self.momentum * old
        return y, state.set(self.batch_state_index, (mean, kept + (var - kept) * N / (N - 1)))


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, kind: Any = eqx.nn.BatchNorm, rate: float = 0.5, **norm: Any):
        key = jax.random.key(0)
        self.conv = eqx.nn.Conv2d(3, 6, 3, padding=1, key=key)
        self.bn = kind(6, "batch", **{"momentum": 0.9, "mode": "batch", **norm})
        self.drop = eqx.nn.Dropout(rate)
        self.head = eqx.nn.Linear(6, 5, key=key)

    def __call__(self, x: jax.Array, state: Any) -> Any:
        x, state = self.bn(self.conv(x), state)
        return self.head(self.drop(jax.nn.relu(x)).mean((1, 2))), state


def linen_port(reference: torch.nn.Module, train: bool = True, **fields: Any) -> Any:
    module = LinenNet(**fields)
    variables = module.init(jax.random.key(0), IMAGES.astype("float32"), train=False)
    return from_linen(module, variables, train=train).load(reference.state_dict())


def equinox_port(reference: torch.nn.Module, train: bool = True, **fields: Any) -> Any:
    module, state = eqx.nn.make_with_state(EquinoxNet)(**fields)
    module = eqx.nn.inference_mode(module, not train)
    return from_equinox(module, state=state).load(reference.state_dict())


PORTS = {"linen": linen_port, "equinox": equinox_port}
UNBIASED = {"linen": Unbiased, "equinox": EquinoxUnbiased}


def reference() -> TorchNet:
    torch.manual_seed(0)
    return TorchNet()


def in_train_mode(make: Any, **settings: Any) -> Report:
    theirs = reference()
    with as_for_users():
        return compare(make(theirs), theirs, IMAGES, mode="train", **settings)


def check(report: Report, fault: str, says: str) -> None:
    assert report.diagnosis is not None, (report.first, report.where)
    assert (report.stage, report.diagnosis.fault) == ("bn", fault)
    assert report.diagnosis.complete
    assert says in report.diagnosis.text


@pytest.mark.parametrize("library", PORTS)
def test_the_running_statistics_are_compared(library: str) -> None:
    """Both keep the biased variance; dropout is left out, without keys."""
    report = in_train_mode(
        lambda theirs: PORTS[library](theirs, momentum=0.99), precisions=("float64",), grad=False
    )
    check(report, "batch_norm_momentum", "take 0.01 of each batch, the reference's 0.1")
    assert report.diagnosis is not None
    assert f"over n - 1 (here n = {N})" in report.diagnosis.text
    assert any(note.endswith("other random numbers: drop") for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("library", PORTS)
def test_training_agrees(library: str) -> None:
    """Gradients go through the statistics of the batch, and the running ones follow the steps."""
    report = in_train_mode(
        lambda theirs: PORTS[library](theirs, kind=UNBIASED[library]),
        optimizer=OptimizerSpec(steps=2),
    )
    assert report.ok, (report.first, report.where)
    rows = {(row.section, row.name) for row in report.rows}
    assert {("statistics", "bn.running_var"), ("trained", "bn.running_var")} < rows


@pytest.mark.slow
def test_equinoxs_default_mode() -> None:
    report = in_train_mode(
        lambda theirs: equinox_port(theirs, mode="ema", kind=eqx.nn.BatchNorm),
        precisions=("float64",),
        grad=False,
    )
    assert report.diagnosis is not None
    assert (report.stage, report.diagnosis.fault) == ("bn", "batch_norm")
    assert "running statistics that this batch has just updated" in report.diagnosis.text


@pytest.mark.slow
@pytest.mark.parametrize("library", PORTS)
def test_modes_that_differ(library: str) -> None:
    with pytest.raises(ValueError, match="bn is in eval mode in the model and in train mode in"):
        in_train_mode(lambda theirs: PORTS[library](theirs, train=False))
    theirs = reference().eval()
    with as_for_users():
        left = PORTS[library](theirs, rate=0.0)
        report = compare(left, theirs, IMAGES, precisions=("float64",), grad=False)
    check(report, "batch_norm", "batch_norm(training=True")


@pytest.mark.slow
def test_dropout_left_on() -> None:
    """Linen's draws, and is told as dropout; Equinox's has no key, and is one line."""
    theirs = reference().eval()
    with as_for_users():
        with pytest.raises(ValueError, match=r"EquinoxNet cannot be run .*Dropout requires a key"):
            compare(equinox_port(theirs), theirs, IMAGES)

        class Dropping(linen.Module):
            @linen.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                drop = linen.Dropout(0.5, name="drop")  # its second call draws
                return linen.Dense(5, name="head")(drop(drop(x, True), False))

        module = Dropping()
        plain = torch.nn.Sequential()
        plain.add_module("drop", torch.nn.Dropout(0.5))
        plain.add_module("head", torch.nn.Linear(6, 5))
        tokens = np.random.default_rng(0).normal(size=(3, 6))
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        variables = module.init(keys, tokens.astype("float32"))
        model = from_linen(module, variables).load(plain.state_dict())
        report = compare(model, plain, tokens, precisions=("float64",), grad=False)
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "dropout"
    assert report.diagnosis.complete

    class Insisting(eqx.Module):
        drop: eqx.nn.Dropout
        head: eqx.nn.Linear

        def __call__(self, x: jax.Array, key: Any) -> jax.Array:
            return self.head(self.drop(x, key=key, inference=False))

    key = jax.random.key(0)
    insisting = Insisting(eqx.nn.Dropout(0.5, inference=True), eqx.nn.Linear(6, 5, key=key))
    with as_for_users():
        model = from_equinox(insisting, key=key).load(plain.state_dict())
        assert not compare(model, plain, tokens, precisions=("float64",), grad=False).ok
