"""Planted faults: found, placed and explained."""

import pytest

from tests.parity.faults import FAULTS, pair
from tests.tiers import mostly_slow
from vit_jax.parity import compare

# Every diagnosis once, on the design where it is found soonest; and a few whose place is another: a
# performer, a window of patches, the model's own code, an array.
FAST = [
    "gelu_for_relu encoder",
    "scale_of_the_whole_width modular",
    "class_head_alone distilled",
    "class_token_without_position vit",
    "dropout_left_on vit",
    "tanh_gelu vit",
    "heads_not_put_back vit",
    "epsilon_of_flax encoder",
    "linear_without_bias encoder",
    "missing_bias vit",
    "no_last_norm vit",
    "patch_channels_last vit",
    "no_epsilon_in_the_performer t2t performer",
    "mean_for_the_class_token vit",
    "stacked_weights_in_another_order vit",
    "positions_resized_by_another_kernel vit",
    "softmax_over_queries vit",
    "transposed_kernel vit",
]


@pytest.mark.parametrize("name", mostly_slow(FAULTS, FAST))
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
    assert report.diagnosis.complete, report.diagnosis


def test_every_diagnosis_is_made_by_default() -> None:
    of_slow_ones = {"derivative_of_performer", "derivative_of_activation"}
    of_slow_ones |= {"positions", "skip_connection"}
    assert {FAULTS[name].name for name in FAST} | of_slow_ones == {f.name for f in FAULTS.values()}
