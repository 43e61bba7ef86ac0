"""Planted faults: found, placed and explained."""

import pytest

from tests.parity.faults import FAULTS, pair
from tests.tiers import mostly_slow
from vit_jax.parity import compare

# Each takes ten seconds to two minutes; in most, the kind is planted in another design too.
SLOW = [
    "values_cut_off t2t performer",
    "tanh_gelu t2t dense",
    "tanh_gelu t2t ghost",
    "tanh_gelu classifier",
    "skip_from_the_keys t2t performer",
    "skip_from_the_normalised modular",
    "no_norm_in_a_block t2t se",
    "value_before_key classifier",
    "value_before_key encoder",
    "soft_split_channels_last t2t se",
    "scale_of_the_whole_width t2t se",
    "epsilon_of_one vit",
    "epsilon_of_flax t2t transformer",
    "epsilon_of_flax modular",
    "dropout_left_on t2t performer",
]


@pytest.mark.parametrize("name", mostly_slow(FAULTS, [name for name in FAULTS if name not in SLOW]))
def test_a_fault_is_found_placed_and_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    models = pair(fault.design, **fault.fields)
    fault.plant(models, monkeypatch)
    backward = fault.name.startswith("derivative")
    report = compare(models.model, models.reference, grad=backward, precisions=("float64",))
    assert not report.ok
    assert report.stage == fault.stage, report.where
    assert report.diagnosis is not None, report.where
    assert report.diagnosis.fault == fault.name, report.diagnosis
    assert report.diagnosis.complete == fault.complete, report.diagnosis
