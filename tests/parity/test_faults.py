"""Planted faults: found, placed and explained."""

import pytest

from tests.parity.faults import FAULTS, pair
from vit_jax.parity import compare


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FAULTS)
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
