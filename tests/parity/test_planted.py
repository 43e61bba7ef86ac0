"""Planted faults over many architectures, and clean pairs: see `tests.parity.planted`.

By default six rows are run; the others take minutes. `python -m tests.parity.planted` prints what
each is said to be, beside the truth.
"""

import numpy as np
import pytest

from tests.parity.planted.base import can_run
from tests.parity.planted.judge import judge_clean, judge_fault
from tests.parity.planted.table import ARCHITECTURES, CLEAN, FAULTS
from tests.tiers import mostly_slow

# Rows of one architecture share compiled programs.
FAST = [
    "llama norm epsilon",
    "llama silu of up",
    "llama transposed kernel",
    "llama rounded head",
]
FAST_CLEAN = ["classifier", "sorted, gathered and summed up"]


@pytest.mark.parametrize("name", mostly_slow(FAULTS, FAST))
def test_a_fault_is_found_and_placed(name: str) -> None:
    row = FAULTS[name]
    if not can_run(row):
        pytest.skip(f"needs {row.needs}")
    facts = judge_fault(row)
    assert facts["found"], facts
    assert facts["placed"], facts
    assert not facts["to_judge"], facts  # no explanation, or a true one


@pytest.mark.parametrize("name", mostly_slow(CLEAN, FAST_CLEAN))
def test_a_correct_port_is_clean(name: str) -> None:
    row = CLEAN[name]
    if not can_run(row):
        pytest.skip(f"needs {row.needs}")
    facts = judge_clean(row)
    assert facts["ok"], facts


def test_the_table() -> None:
    """Every architecture has faults; a row plants something that its port knows."""
    assert {row.arch for row in FAULTS.values()} == set(ARCHITECTURES)
    assert len(FAULTS) >= 80
    assert len(CLEAN) >= 42
    for row in FAULTS.values():
        planted = bool(row.bugs) or row.edit is not None or row.arrays is not None
        assert planted or "transformation" in row.settings, row.name
        assert row.truth.endswith(".")


def test_inputs_do_not_change() -> None:
    for arch in ARCHITECTURES.values():
        np.testing.assert_array_equal(arch.inputs(), arch.inputs())
