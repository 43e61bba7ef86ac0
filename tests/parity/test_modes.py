"""Train mode: batch normalisation, dropout, and what is left in the wrong mode."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.ports import TOKENS, Jax, Unbiased
from tests.tiers import mostly_slow
from vit_jax.parity import OptimizerSpec, Report, compare

NARROW = ("float64",)


class Net(nnx.Module):
    def __init__(self, kind: type[nnx.BatchNorm] = Unbiased, rate: float = 0.5, **norm: Any):
        norm = {"momentum": 0.9, "epsilon": 1e-5, **norm}
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=nnx.Rngs(0))
        self.bn = kind(6, **norm, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(rate, rngs=nnx.Rngs(0))
        self.fc = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
        self.bn2 = kind(5, **norm, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.drop(jax.nn.relu(self.bn(self.conv(x))))
        return self.bn2(self.fc(x.mean((1, 2))))


class TorchNet(torch.nn.Module):
    def __init__(self, momentum: float | None = 0.1, rate: float = 0.5):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(6, momentum=momentum)
        self.drop = torch.nn.Dropout(rate)
        self.fc = torch.nn.Linear(6, 5)
        self.bn2 = torch.nn.BatchNorm1d(5, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        return self.bn2(self.fc(x.mean((2, 3))))


IMAGES = np.random.default_rng(0).normal(size=(6, 4, 5, 3))


def pair(theirs: float | None = 0.1, rate: float = 0.5, **net: Any) -> tuple[Net, TorchNet]:
    """In train mode."""
    torch.manual_seed(0)
    reference, model = TorchNet(theirs, rate), Net(rate=rate, **net)
    for norm in (reference.bn, reference.bn2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    # Where the model has running statistics in its state dict too, they are loaded with the rest.
    known = vit_jax.state_dict(model)
    vit_jax.load_state_dict(model, {n: a for n, a in reference.state_dict().items() if n in known})
    return model, reference


def check(report: Report, fault: str | None, first: str | None, says: str = "") -> None:
    assert (None if report.first is None else report.first.name) == first, report.first
    if fault is None:
        assert report.diagnosis is None, report.diagnosis
        return
    assert report.diagnosis is not None, report.where
    assert report.diagnosis.fault == fault
    assert report.diagnosis.complete
    assert says in report.diagnosis.text


@pytest.mark.parametrize("name", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_batch_norm_in_train_mode(name: str) -> None:
    # In float32 the mean square less the squared mean is many times less exact.
    model, reference = pair(use_fast_variance=False)
    optimizer = OptimizerSpec(name, steps=3, learning_rate=0.01)
    before = {n: a.clone() for n, a in reference.state_dict().items()}
    report = compare(model, reference, IMAGES, mode="train", optimizer=optimizer)
    assert report.ok, (report.first, report.where)
    names = {f"{norm}.running_{kind}" for norm in ("bn", "bn2") for kind in ("mean", "var")}
    rows = [row for row in report.rows if row.precision == "float64"]
    assert {row.name for row in rows if row.section == "statistics"} == names
    assert names < {row.name for row in rows if row.section == "trained"}
    assert "bn.weight" in {row.name for row in rows if row.section == "gradients"}
    assert any(note.endswith("other random numbers: drop") for note in report.notes)
    # Both are left as they are.
    assert all(torch.equal(before[n], a) for n, a in reference.state_dict().items())
    np.testing.assert_array_equal(model.bn.mean[...], 0)
    assert reference.drop.training
    assert not model.drop.deterministic


TRAIN = {
    "biased": ({"kind": nnx.BatchNorm}, "batch_norm_unbiased", "over n - 1 (here n = 120)"),
    "momentum": ({"momentum": 0.99}, "batch_norm_momentum", "take 0.01 of each batch, the ref"),
    "momentum of PyTorch": ({"momentum": 0.1}, "batch_norm_momentum", "0.9 of each batch"),
    "their momentum": ({"momentum": 0.9, "theirs": None}, "batch_norm_momentum", "reference's 1 "),
    "both": ({"momentum": 0.99, "kind": nnx.BatchNorm}, "batch_norm_momentum", "over n - 1"),
    "never": ({"momentum": 1.0}, "batch_norm_frozen", "not updated"),
}


@pytest.mark.parametrize("name", mostly_slow(TRAIN, ["biased", "momentum"]))
def test_updates_of_running_statistics(name: str) -> None:
    settings, fault, says = TRAIN[name]
    model, reference = pair(**{"theirs": 0.1, **settings})
    report = compare(model, reference, IMAGES, mode="train", precisions=NARROW, grad=False)
    first = "bn.running_var" if fault == "batch_norm_unbiased" else "bn.running_mean"
    check(report, fault, first, says)
    assert report.stage == "bn"


def test_wrong_statistics_of_the_batch() -> None:
    """A fault that the update does not explain comes first, and is not called one of updates."""
    model, reference = pair()
    model.bn.epsilon = 1e-3
    report = compare(model, reference, IMAGES, mode="train", precisions=NARROW, grad=False)
    assert report.first is not None
    assert (report.first.section, report.stage) == ("forward", "bn")


def test_left_in_train_mode() -> None:
    model, reference = pair()
    report = compare(model, reference, IMAGES, precisions=NARROW)
    check(report, "batch_norm_mode", "bn", "normalises by the statistics of the batch")
    model.eval()
    model.drop.deterministic = False
    check(
        compare(model, reference, IMAGES, precisions=NARROW), "dropout", "before fc", "call model"
    )
    model.eval()
    assert compare(model, reference, IMAGES, precisions=NARROW).ok


def test_dropout_without_keys() -> None:
    torch.manual_seed(0)
    reference = torch.nn.Sequential(torch.nn.Dropout(0.5))
    model = Jax(lambda self, x: self.drop(x), drop=nnx.Dropout(0.5))
    report = compare(model, reference, TOKENS, precisions=NARROW, grad=False)
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "dropout"


def test_frozen_batch_norm() -> None:
    model, reference = pair(rate=0.0)
    reference.bn.eval()
    with pytest.raises(ValueError, match="bn is in train mode in the model and in eval mode in"):
        compare(model, reference, IMAGES, mode="train")
    model.bn.use_running_average = True
    report = compare(model, reference, IMAGES, mode="train", precisions=NARROW, grad=False)
    assert report.ok, report.first
    rows = {row.name for row in report.rows if row.section == "statistics"}
    assert rows == {"bn2.running_mean", "bn2.running_var"}
    assert not any("dropout" in note for note in report.notes)


def test_mistakes() -> None:
    model, reference = pair()
    with pytest.raises(ValueError, match="mode: wanted one of eval, train, got 'test'"):
        compare(model, reference, IMAGES, mode="test")
    model.eval()
    with pytest.raises(ValueError, match="bn is in eval mode in the model and in train mode in"):
        compare(model, reference, IMAGES, mode="train")
    with pytest.raises(ValueError, match=r"it is in eval mode: call its \.train\(\) first"):
        compare(model, reference.eval(), IMAGES, mode="train")


def test_dropout_by_a_rate_and_by_a_function() -> None:
    """PyTorch's attention drops by a rate; what drops by a function alone is refused."""
    encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.5, self.training)

    from vit_jax.parity.torch_trace import trace_torch

    reference = trace_torch(encoder, TOKENS, train=True, grad=False)
    assert reference.dropped == ("self_attn", "dropout", "dropout1", "dropout2")
    assert encoder.self_attn.dropout == 0.3
    with pytest.raises(ValueError, match="without dropout its second answer is"):
        trace_torch(Twice(), TOKENS, train=True, grad=False)
