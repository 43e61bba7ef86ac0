"""The fuzzer's judge sees what it is there for; `python -m tests.fuzz` runs the cases."""

import pathlib
from collections.abc import Callable

import pytest

from tests.fuzz import judge
from tests.fuzz.cases import Case, Out
from vit_jax import cli


def _raises() -> int:
    raise RuntimeError("a bug")


def _says(text: str, status: int) -> Callable[[], int]:
    def end() -> int:
        import sys

        print(text, file=sys.stderr)
        return status

    return end


def _writes(name: str, status: int = 2) -> Callable[[], int]:
    def end() -> int:
        pathlib.Path(name).write_text("other")
        return _says("error: it cannot be done", 2)() if status else 0

    return end


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (_raises, "a traceback"),
        (_raises, "status 70"),
        (lambda: 0, "status 0, and the result cannot be read"),
        (_says("", 2), "status 2 with 0 lines of error"),
        (_says("error: a\nerror: b", 2), "status 2 with 2 lines of error"),
        (_says("error: " + "x" * 3000, 2), "an error of 3007 characters"),
        (_says("error: done", 0), "status 0 with an error"),
        (_says("", 1), "status 1"),
        (_writes("input"), "changed or removed: input"),
        (_writes("beside"), "new beside the outputs: beside"),
        (_writes("out.png"), "status 2, and out.png is changed or new"),
        (_writes(".out.png.7"), "left over: .out.png.7"),
        (_writes("out.png", 0), "status 0, and the result cannot be read: UnidentifiedImageError"),
        (_says("error: wanted a number, got x", 2), None),
    ],
)
def test_the_judge_sees_what_is_wrong(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], int], fault: str
) -> None:
    (tmp_path / "input").write_text("mine")
    monkeypatch.setattr("vit_jax.cli.plot.run", lambda rest: end())
    assert "plot" in cli.COMMANDS
    case = Case(["plot", "curves", "input", "--out", Out("out.png")])
    before = judge.snapshot(tmp_path)
    ended = judge.run(case, tmp_path)
    found = judge.faults(case, ended, before, tmp_path, tmp_path)
    if fault is None:
        assert found == []
    else:
        assert any(fault in line for line in found), found


def test_the_judge_does_not_wait(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(judge, "LIMIT", 1)
    monkeypatch.setattr("vit_jax.cli.plot.run", lambda rest: time.sleep(30))
    case = Case(["plot"])
    ended = judge.run(case, tmp_path)
    assert "hung for 1 seconds" in judge.faults(case, ended, {}, tmp_path, tmp_path)
