"""Small ports made on the spot: parts by PyTorch's names and a function that calls them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import vit_jax
from vit_jax.parity import JaxFunction, Report, compare


class Torch(torch.nn.Module):
    def __init__(self, parts: Mapping[str, torch.nn.Module], call: Callable[..., Any]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.call = call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self, x)


class Jax(nnx.Module):
    def __init__(self, call: Callable[..., Any], **parts: nnx.Module):
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def __call__(self, x: Any) -> Any:
        return self.call(self, x)


class Unbiased(nnx.BatchNorm):
    """Flax's, with PyTorch's running variance: over n - 1; over n with a correction of 0."""

    correction: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        old = self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            n = x.size // x.shape[-1]
            kept = self.momentum * old
            self.var[...] = kept + (self.var[...] - kept) * (n / (n - self.correction))
        return y


TOKENS = np.random.default_rng(0).normal(size=(2, 6, 8))  # (B, N, D)
IDS = np.random.default_rng(0).integers(0, 11, size=(2, 6))


def linear(in_dim: int = 8, out_dim: int = 8, bias: bool = True) -> tuple[Any, Any]:
    return (
        lambda: torch.nn.Linear(in_dim, out_dim, bias),
        lambda: nnx.Linear(in_dim, out_dim, use_bias=bias, rngs=nnx.Rngs(0)),
    )


def part(call: Callable[..., Any], theirs: Callable[..., Any] | None = None) -> tuple[Any, Any]:
    """A module without arrays; the same code on both sides unless PyTorch's is given."""
    return lambda: Torch({}, theirs or call), lambda: Jax(call)


@dataclasses.dataclass(frozen=True)
class Port:
    """A PyTorch module, its port, and what the comparison has to say.

    Attributes:
      theirs, ours: what is called with (the module, its input).
      parts: of both, by PyTorch's names: pairs of functions that make them.
      first: section and name of the first row that is not noise; None where all is.
      says: a part of the diagnosis; "" where there has to be none.
      fault: its name.
    """

    theirs: Callable[..., Any]
    ours: Callable[..., Any]
    parts: Mapping[str, tuple[Any, Any]] = dataclasses.field(
        default_factory=lambda: {"fc": linear()}
    )
    inputs: np.ndarray = dataclasses.field(default_factory=lambda: TOKENS)
    grad: bool = False
    first: tuple[str, str] | None = None
    says: str = ""
    fault: str | None = None
    complete: bool = True
    note: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self) -> tuple[Jax, Torch]:
        """With equal weights."""
        torch.manual_seed(0)
        reference = Torch({name: theirs() for name, (theirs, _) in self.parts.items()}, self.theirs)
        model = Jax(self.ours, **{name: ours() for name, (_, ours) in self.parts.items()})
        vit_jax.load_state_dict(model, reference.state_dict())
        return model, reference

    def compare(self, model: nnx.Module | JaxFunction, reference: torch.nn.Module) -> Report:
        settings: dict[str, Any] = {"precisions": ("float64",), **self.settings}
        return compare(model, reference, self.inputs, grad=self.grad, **settings)

    def check(self) -> Report:
        report = self.compare(*self.make())
        found = None if report.first is None else (report.first.section, report.first.name)
        assert found == self.first, (report.first, report.where, report.diagnosis)
        if self.fault is None:
            assert report.diagnosis is None, report.diagnosis
        else:
            assert report.diagnosis is not None, report.where
            assert report.diagnosis.fault == self.fault, report.diagnosis
            assert report.diagnosis.complete == self.complete, report.diagnosis
            assert self.says in report.diagnosis.text, report.diagnosis
        assert any(self.note in note for note in (*report.notes, "")), report.notes
        return report
