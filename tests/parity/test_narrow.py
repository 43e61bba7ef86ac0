"""bfloat16 and float16 beside PyTorch's own: clean pairs, faults, and what neither shows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.parity.ports import Port, linear
from tests.tiers import mostly_slow
from vit_jax.parity import OptimizerSpec, Reference, compare

TOKENS = np.random.default_rng(0).normal(size=(2, 320, 8))  # (B, N, D): 256 is bfloat16's last odd
_PARTS: dict[str, Any] = {
    "fc": linear(8, 16),
    "norm": (
        lambda: torch.nn.LayerNorm(16),
        lambda: nnx.LayerNorm(16, epsilon=1e-5, rngs=nnx.Rngs(0)),
    ),
    "head": linear(16, 5),
}


def theirs(self: Any, x: Any) -> Any:
    place = torch.arange(x.shape[1], dtype=torch.float32)[:, None]
    hidden = torch.nn.functional.gelu(self.norm(self.fc(x))) * place.cos().to(x.dtype)
    return self.head(hidden)


def ours(
    self: Any, x: Any, places: Any = jnp.float32, approximate: bool = False, factor: float = 1.0
) -> Any:
    place = jnp.arange(x.shape[1], dtype=places or x.dtype)[:, None]
    hidden = jax.nn.gelu(self.norm(self.fc(x)), approximate=approximate)
    return self.head(factor * hidden * jnp.cos(place).astype(x.dtype))


def port(**fault: Any) -> Port:
    return Port(theirs, lambda self, x: ours(self, x, **fault), _PARTS, inputs=TOKENS)


def compared(precision: str, grad: bool = False, **fault: Any) -> Any:
    one = port(**fault)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return compare(*one.make(), TOKENS, grad=grad, precisions=(precision,))


@pytest.mark.parametrize("precision", mostly_slow(["bfloat16", "float16"], ["bfloat16"]))
def test_a_correct_port_agrees(precision: str) -> None:
    report = compared(precision, grad=True)
    assert report.ok, report.first
    assert {row.precision for row in report.rows} == {precision}
    assert {row.section for row in report.rows} == {"forward", "backward", "gradients", "losses"}
    assert report.rows[-1].noise > 0
    (note,) = (note for note in report.notes if note.startswith(precision))
    assert "goes unseen, but for float64" in note
    assert "0.3 of a gradient's" in note
    text = " ".join(report.text().split())
    assert f"{precision.replace('float', 'f')}-f64" in text
    assert "the rms of differences counts" in text


def test_a_large_fault_is_found_and_named() -> None:
    """Named by the run in float64, which is made for that."""
    report = compared("bfloat16", factor=1.1)
    assert report.first is not None
    assert (report.first.precision, report.first.name) == ("bfloat16", "before head")
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "factor"
    assert report.diagnosis.complete


def test_what_rounds_in_bfloat16_alone_is_found() -> None:
    """Positions in bfloat16, of which there are none between 256 and 258."""
    report = compared("bfloat16", places=None)
    assert report.first is not None
    assert (report.stage, report.diagnosis) == ("", None)
    assert any(note.startswith("float64 agrees: in bfloat16 alone") for note in report.notes)


@pytest.mark.slow
def test_what_float32_shows_too_is_not_said_to_be_of_bfloat16_alone() -> None:
    """Positions in bfloat16, and in float32 half of a gradient; float64 agrees."""

    def halved(self: Any, x: Any) -> Any:
        return ours(self, x / 2 + jax.lax.stop_gradient(x) / 2 if x.dtype == "float32" else x, None)

    pair = Port(theirs, halved, _PARTS, inputs=TOKENS).make()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        report = compare(*pair, TOKENS, precisions=("float32", "bfloat16"))
    assert report.first is not None
    assert (report.first.precision, report.first.section) == ("bfloat16", "forward")
    apart = {row.precision for row in report.rows if row.verdict != "noise"}
    assert apart == {"float32", "bfloat16"}
    assert not any("alone the sides differ" in note for note in report.notes)


@pytest.mark.slow
def test_a_small_fault_goes_unseen() -> None:
    assert compared("bfloat16", approximate=True).ok
    assert not compared("float64", approximate=True).ok


def test_refusals() -> None:
    model, reference = port().make()

    class Distances(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, x)

    with pytest.raises(ValueError, match=r"wanted some of float64, .*, got \('float8',\)"):
        compare(model, reference, TOKENS, precisions=("float8",))
    with pytest.raises(ValueError, match=r"does not run in bfloat16 .*cdist"):
        compare(model, Distances(), TOKENS[:, :4], grad=False, precisions=("bfloat16",))
    held = Reference("a file", {}, TOKENS, None, TOKENS, {})
    with pytest.raises(ValueError, match="bfloat16 needs the PyTorch module itself"):
        compare(model, held, precisions=("bfloat16",))


@pytest.mark.slow
def test_beside_other_precisions() -> None:
    """Rows of all; steps of training in float64 and float32 alone; parameters are rounded once."""
    model, reference = port().make()
    precisions = ("bfloat16", "float64", "float32")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        report = compare(
            model,
            reference,
            TOKENS,
            optimizer=OptimizerSpec(steps=1),
            precisions=precisions,
        )
    assert report.ok, report.first
    assert {row.precision for row in report.rows if row.section == "trained"} == {
        "float64",
        "float32",
    }
    assert "steps of training are not compared in bfloat16" in report.notes
    assert "bf16 in" in report.text()
    assert all(dataclasses.asdict(row)["limit"] > 0 for row in report.rows)
