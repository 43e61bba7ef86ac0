"""A run to look at: the tiny one on the digits."""

import functools
import pathlib

import jax
import pytest

from tests.training.runs import tiny
from vit_jax.training import train


def train_tiny(workdir: pathlib.Path) -> pathlib.Path:
    with jax.default_matmul_precision("highest"):
        train(tiny(ema__decay=0.9), workdir)
    return workdir


@functools.cache
def trained(folder: pathlib.Path) -> pathlib.Path:
    """The run, once a process, for tests of other folders too."""
    return train_tiny(folder / "tiny_run")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The work directory of 12 updates: images of 8x8x1, 10 classes, averaged weights beside.

    No test changes it. Those that use it are of the group "run": one worker trains.
    """
    return trained(tmp_path_factory.getbasetemp())
