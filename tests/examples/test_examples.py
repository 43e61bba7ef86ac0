"""Each script of examples/ runs, in a short form, and says what its docstring promises."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
SHORT = ["--epochs", "1", "--examples", "128", "--workdir", "run"]


def _run(name: str, words: list[str], directory: pathlib.Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", EXAMPLES / name, *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_and_look(tmp_path: pathlib.Path) -> None:
    said = _run("train_and_look.py", SHORT, tmp_path)
    assert "test top-1" in said
    assert said.count("\na ") == 8
    assert (tmp_path / "run" / "look.png").stat().st_size > 20_000


def test_bring_your_pytorch_weights(tmp_path: pathlib.Path) -> None:
    said = _run("bring_your_pytorch_weights.py", SHORT, tmp_path)
    assert "32 arrays loaded" in said
    assert "test top-1" in said
    assert (tmp_path / "run" / "fine_tuned" / "metrics.jsonl").exists()


def test_port_a_model(tmp_path: pathlib.Path) -> None:
    said = _run("port_a_model.py", [], tmp_path)
    assert "224 comparisons, all of them noise" in said
    assert "where: blocks.1.mlp_channels" in said
    assert "ours is GELU (tanh approximation)" in said


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_has_a_test(path: pathlib.Path) -> None:
    assert f"test_{path.stem}" in globals()
