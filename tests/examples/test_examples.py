"""Each script of examples/ runs, in a short form, and says what its docstring promises."""

import pathlib
import runpy
from collections.abc import Callable

import pytest

import vit_jax.config
from tests.commands import unchanged_process

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
Run = Callable[..., None]
SHORT = ["--epochs", "1", "--examples", "64", "--workdir", "run"]


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a script with arguments in an empty directory, in this process, its recipe shortened."""
    monkeypatch.chdir(tmp_path)
    recipe = vit_jax.config.load_recipe(vit_jax.config.find_recipe("digits_vit"))
    recipe.model.kwargs |= {"depth": 1, "drop_rate": 0.0}
    recipe.data.rotation_degrees = 0.0
    monkeypatch.setattr(vit_jax.config, "load_recipe", lambda path: recipe)

    def run_script(name: str, *words: str) -> None:
        monkeypatch.setattr("sys.argv", [name, *words])
        with unchanged_process():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_script


def test_train_and_look(
    run: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train_and_look.py", *SHORT)
    said = capsys.readouterr().out
    assert "test top-1" in said
    assert said.count("\na ") == 8
    assert (tmp_path / "run" / "look.png").stat().st_size > 20_000


@pytest.mark.slow  # as tests/inference/test_load.py and tests/training/test_start.py
def test_bring_your_pytorch_weights(
    run: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("bring_your_pytorch_weights.py", *SHORT)
    said = capsys.readouterr().out
    assert "32 arrays loaded" in said
    assert "test top-1" in said
    assert (tmp_path / "run" / "fine_tuned" / "metrics.jsonl").exists()


@pytest.mark.slow  # as tests/parity/test_any_port.py
def test_port_a_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("port_a_model.py")
    said = capsys.readouterr().out
    assert "222 comparisons, all of them noise" in said
    assert "where: blocks.1.mlp_channels" in said
    assert "ours is GELU (tanh approximation)" in said


def test_every_example_has_a_test() -> None:
    missing = {path.stem for path in EXAMPLES.glob("*.py") if f"test_{path.stem}" not in globals()}
    assert not missing


@pytest.mark.slow  # its parts run in tests/training/test_own.py and tests/models/test_segmenter.py
def test_segment_shapes(
    run: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("segment_shapes.py", *SHORT)
    said = capsys.readouterr().out
    assert said.count("mIoU 0.") == 3
    assert (tmp_path / "run" / "segmentation.png").stat().st_size > 20_000
