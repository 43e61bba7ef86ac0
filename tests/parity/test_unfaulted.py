"""Nothing is reported where nothing is wrong: random designs, sizes, weights and images.

A dozen runs, most of them marked slow; `VIT_JAX_UNFAULTED=30` makes thirty of them, each with
gradients and float32.
"""

import os

import numpy as np
import pytest
import torch

import vit_jax
from tests.parity.compare import Record
from tests.parity.live import randomised
from tests.tiers import mostly_slow
from tests.weights import designs
from vit_jax.parity import OptimizerSpec, Report, compare

RUNS = int(os.environ.get("VIT_JAX_UNFAULTED", "12"))
FAST = range(RUNS) if "VIT_JAX_UNFAULTED" in os.environ else (1, 9)
_NAMES = list(designs.ALL)


def run(number: int) -> Report:
    design = _NAMES[number % len(_NAMES)]
    generator = np.random.default_rng(number)
    heads = int(generator.choice([2, 4]))
    fields = {"img_size": tuple(int(n) for n in 16 * generator.integers(1, 4, size=2))}
    if design == "t2t dense":
        fields["growth_rate"] = 4 * heads
    else:
        fields["depth"] = int(generator.integers(1, 4))
        fields |= {"num_heads": heads, "embed_dim": heads * int(generator.choice([12, 16]))}
    if design in ("encoder", "modular"):
        fields["max_tokens"] = 1 + fields["img_size"][0] * fields["img_size"][1] // 16
    torch.manual_seed(number)
    reference = randomised(designs.reference(design, **fields).float())
    model = designs.make(design, **fields)
    vit_jax.load_state_dict(model, reference.state_dict())
    model.eval()
    batch = int(generator.integers(1, 4))
    images = generator.normal(size=(batch, *fields["img_size"], 3))
    # A gradient takes its compilation: of the dozen runs for two designs.
    whole = len(_NAMES) < RUNS or number in (0, 4)
    optimizer = (
        OptimizerSpec("sgd" if number % 2 else "adamw", steps=3) if number in (0, 5) else None
    )
    precisions = ("float64", "float32") if whole else ("float64",)
    return compare(
        model,
        reference,
        images,
        grad=whole or optimizer is not None,
        optimizer=optimizer,
        precisions=precisions,
    )


@pytest.mark.parametrize(
    "number",
    mostly_slow(range(RUNS), FAST),
    ids=lambda n: f"{n} {_NAMES[n % len(_NAMES)]}",
)
def test_nothing_is_reported(number: int, record: Record) -> None:
    report = run(number)
    assert report.ok, (report.first, report.stage, report.where)
    for section in ("forward", "gradients"):
        worst = report.worst(section)
        if worst is not None:
            record(section, worst.relative)
