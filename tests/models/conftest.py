"""Compiling takes most of the time here, and what is compiled runs once: XLA optimises little.

What the models compute when it optimises in full is held against PyTorch in tests/parity.
"""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
