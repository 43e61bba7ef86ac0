"""Train mode of Linen and Equinox modules: batch normalisation and dropout."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import linen

from tests.parity.planted.base import as_for_users
from tests.parity.train_mode_ports import IMAGES, PORTS, UNBIASED, N, equinox_port, reference
from vit_jax.parity import OptimizerSpec, Report, compare, from_linen


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
        lambda theirs: equinox_port(theirs, mode="ema"),
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
