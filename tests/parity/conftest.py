"""The record of parity figures, printed at the end of a run."""

import pytest
import torch

from tests.parity.compare import Record

# Two workers with two threads each wait for one another.
torch.set_num_threads(1)


@pytest.fixture
def record(request: pytest.FixtureRequest, record_property) -> Record:
    """Call with a stage and its worst error; the terminal summary shows them by fixture."""
    callspec = getattr(request.node, "callspec", None)
    subject = callspec.id if callspec else request.node.name
    precision = "float64" if "x64" in request.fixturenames else "float32"
    return lambda stage, figure: record_property(f"parity:{subject} {precision}:{stage}", figure)
