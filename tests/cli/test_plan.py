"""`vit-jax plan` as a user meets it, where nothing is compiled."""

import importlib.util
import os

import pytest

from vit_jax import cli
from vit_jax.cli import jax_setup
from vit_jax.cli.plan import _parser
from vit_jax.config.recipes import recipe_names
from vit_jax.plan.libtpu import prepare_environment
from vit_jax.plan.topology import parse_topology

# Raised by beartype at annotations of the libraries when the command imports their modules.
pytestmark = pytest.mark.filterwarnings(
    "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
)
_SLICE = "--topology=v5e:4x4"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the command sets in its process is taken back; nothing is set up in this one."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda: None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "wanted --config RECIPE"),
        (["--config"], "--config"),
        (["--config=nowhere", _SLICE], "no recipe of that name"),
        (["--config=digits_vit"], "--topology: wanted GENERATION:SIZE"),
        (["--config=digits_vit", "--topology"], "--topology: expected one argument"),
        (["--config=digits_vit", "--topology=v9:4x4"], "generations and examples: v4:4x4x4"),
        (["--config=digits_vit", "--topology=v5p:4x4"], "3 axes"),
        (["--config=digits_vit", _SLICE, "--workdir=x"], "workdir"),
        (["--config=digits_vit", _SLICE, "--config.model.kwargs.depht=2"], "depth"),
        (["--config=digits_vit", _SLICE], "pip install 'vit-jax[tpu]'"),
        (["--config=digits_vit", "--topology=h100:8"], "--no-deps jax-cuda12-pjrt=="),
        (["--config=digits_vit", "--topology=h100:9"], "h100:8"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    os.environ.pop("TPU_LIBRARY_PATH", None)  # JAX sets it where it finds libtpu
    assert cli.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_help_names_the_slices(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["plan", "--help"])
    text = capsys.readouterr().out
    assert "TPU7x:" in text
    assert "h200:" in text
    assert "--search" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_can_be_planned(recipe):
    for given in ([f"--config={recipe}"], ["--config", recipe]):
        options, found = _parser().read_both([*given, "--topology", "v5e:4x4", "--json"])
        assert found.config.num_epochs > 0
        assert parse_topology(options.topology).name == "v5e:4x4"
        assert (options.json, options.search) == (True, False)


def test_the_compiler_is_loaded_without_asking_for_a_tpu():
    prepare_environment()
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
