"""What a run says, on a terminal and elsewhere."""

import io
import sys

import pytest

from vit_jax.training.progress import Progress, describe

TRAIN = {
    "step": 50,
    "epoch": 1.25,
    "split": "train",
    "loss": 1.23456,
    "top1": 0.5,
    "top5": 0.75,
    "images_per_second": 100.0,
}
VALIDATION = {"step": 80, "epoch": 2.0, "split": "validation", "loss": 1, "top1": 0.5, "top5": 1}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(mode: str) -> None:
    with Progress(mode, 200, 40, 32) as progress:
        progress.advance(50)
        progress.row(TRAIN)
        progress.row(VALIDATION)
        progress.say("[step] said")
        progress.warn("damage")


def test_plain_lines(capsys):
    show("auto")  # pytest's standard output is no terminal
    captured = capsys.readouterr()
    first, second, third = captured.out.splitlines()
    assert "step 50/200" in first
    assert "loss 1.2346  top1 0.5000  top5 0.7500  100 images/s  0:00:48 left" in first
    assert second.startswith("validation epoch 2.00")
    assert third == "[step] said"
    assert captured.err == "warning: damage\n"


@pytest.mark.parametrize(("num_classes", "shown"), [(5, False), (6, True), (None, True)])
def test_top5_of_up_to_five_classes_is_left_out(capsys, num_classes, shown):
    progress = Progress("plain", 200, 40, 32, num_classes)
    progress.row(TRAIN)
    progress.row(VALIDATION)
    assert [("top5" in line) for line in capsys.readouterr().out.splitlines()] == [shown] * 2


def test_none_leaves_warnings(capsys):
    show("none")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: damage\n")


@pytest.mark.parametrize("columns", ["100", "200"])
def test_a_bar_on_a_terminal(monkeypatch, columns):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    show("auto")
    text = terminal.getvalue()
    for part in ("50/200", "loss 1.2346", "top1 0.500", "100 images/s", "left", "[step] said"):
        assert part in text


def test_averaged_weights_are_told_beside():
    assert describe({**VALIDATION, "ema_loss": 0.5, "ema_top1": 0.75}).endswith("ema top1 0.7500")
    assert "ema" not in describe(VALIDATION)
