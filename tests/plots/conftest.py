"""What the tests of pictures look at."""

import matplotlib.figure
import pytest

from vit_jax.cli import jax_setup


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were written, in their order; commands leave this process's JAX alone."""
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda: None)  # it is for whole processes
    seen = []
    original = matplotlib.figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return seen
