"""A run to look at: the tiny one on the digits."""

import pathlib

import pytest

from tests.training.runs import tiny
from vit_jax.training import train


@pytest.fixture(scope="package")
def run(tmp_path_factory) -> pathlib.Path:
    """The work directory of 12 updates: images of 8x8x1, 10 classes, averaged weights beside."""
    workdir = tmp_path_factory.mktemp("run")
    train(tiny(ema__decay=0.9), workdir)
    return workdir
