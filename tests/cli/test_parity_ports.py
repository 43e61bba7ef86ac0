"""`vit-jax parity MODULE:CALLABLE --torch MODULE:CALLABLE`: ports of the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit_jax import cli
from vit_jax.cli import jax_setup

PORT = """
import jax, numpy as np, torch
from flax import nnx

class Net(nnx.Module):
    def __init__(self, factor=1.0):
        self.fc = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.factor = factor

    def __call__(self, x, more=None):
        x = self.fc(x) * self.factor
        return x if more is None else x + more

class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 4)

    def forward(self, x, more=None):
        x = self.fc(x)
        return x if more is None else x + more

class Raising(Net):
    def __call__(self, x):
        raise KeyError("x\\nof two lines")

def wrong(): return Net(2.0)
def wide(): return nnx.Linear(5, 4, rngs=nnx.Rngs(0))
def nothing(): return None
def inputs(): return np.ones((2, 5, 3)) * np.arange(3)
def several(): return (inputs(), {"more": np.ones((2, 5, 4))})
def text(): return "inputs"
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x64: None) -> Iterator[None]:
    del x64
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda *, exact=False: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "port.py").write_text(PORT)
    yield
    sys.modules.pop("port", None)


def run(*arguments: str) -> object:
    return cli.main(["parity", "--precision=float64", *arguments])


@pytest.mark.parametrize(
    ("model", "inputs", "status"),
    [("Net", "inputs", 0), ("Net", "several", 0), ("wrong", "inputs", 1)],
)
def test_the_status_is_the_verdict(
    model: str, inputs: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (f"port:{model}", "--torch=port:Torch", f"--inputs=port:{inputs}", "--grad")
    assert run(*arguments) == status
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"port:{model} against port:Torch: ")
    assert ("equal to noise" in first) == (status == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("port:Net",), "--inputs: wanted MODULE:CALLABLE"),
        (("port:nothing", "--inputs=port:inputs"), "wanted it to return an nnx.Module"),
        (("port:wide", "--inputs=port:inputs"), "does not fit 'port:wide': missing: bias"),
        (("port:Net", "--inputs=port:text"), "wanted it to return an array"),
        (("port:Net", "--inputs=port:inputs", "--batch=2"), "--inputs brings its own"),
        (("port:Net", "--inputs=port:inputs", "--field=a=1"), "--field: port:Net is called as it"),
        (("port:Raising", "--inputs=port:inputs"), "running 'port:Raising' raised KeyError"),
        (("port:Ne", "--inputs=port:inputs"), "has no 'Ne'; near: Net"),
        (("nowhere:Net", "--inputs=port:inputs"), "no module 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--torch=port:Torch") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
