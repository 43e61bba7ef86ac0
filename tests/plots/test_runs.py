"""`vit-jax plot curves`: the lines are the rows of the runs."""

import json

import cv2
import numpy as np
import pytest

from tests.plots.test_curves import row
from vit_jax import cli

ROWS = {
    "a": [
        row("train", 1, 0.9),
        {**row("validation", 1, 0.8), "ema_loss": 0.7, "ema_top1": 0.3},
        row("train", 2, 0.5),
        {**row("validation", 2, 0.6), "ema_loss": 0.5, "ema_top1": 0.5},
        row("test", 2, 0.65),
    ],
    "b": [row("train", 1, 0.4), row("validation", 1, 0.3)],
    "c": [row("train", 1, 0.2)],
}


@pytest.fixture
def runs(tmp_path) -> list[str]:
    for name, rows in ROWS.items():
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps({"step": 1, **one}) + "\n" for one in rows)
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    return [str(tmp_path / name) for name in ROWS]


def test_curves_of_several_runs(figures, runs, tmp_path, capsys):
    out = tmp_path / "new" / "curves.png"
    assert cli.main(["plot", "curves", *runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    drawn = cv2.imread(str(out))
    assert drawn is not None
    assert drawn.shape[1] == 1210
    loss, accuracy = figures[0].axes
    lines = [(line.get_xdata(), line.get_ydata()) for line in loss.lines]
    wanted = [
        ([1, 2], [0.9, 0.5]),
        ([1, 2], [0.8, 0.6]),
        ([1, 2], [0.7, 0.5]),  # averaged weights
        ([2], [0.65]),
        ([1], [0.4]),
        ([1], [0.3]),
        ([1], [0.2]),
    ]
    for line, ours in zip(lines, wanted, strict=True):
        np.testing.assert_array_equal(line, ours)
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [0.1, 0.5])
    np.testing.assert_array_equal(accuracy.lines[2].get_ydata(), [0.3, 0.5])
    colours = [line.get_color() for line in loss.lines]
    assert len(set(colours[:4])) == 1  # a colour is a run
    assert len({colours[0], colours[4], colours[6]}) == 3
    names, kinds = ([text.get_text() for text in one.get_texts()] for one in figures[0].legends)
    assert names == ["a: test 0.350", "b: validation 0.700", "c"]
    assert kinds == ["training", "validation", "validation, averaged weights", "test"]
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"
    assert loss.get_ylabel() == "cross entropy (nats)"
    assert accuracy.get_ylabel() == "top-1 accuracy (fraction of images)"


def test_runs_of_one_name_are_told_apart(figures, runs, tmp_path):
    twin = tmp_path / "other" / "a"
    twin.mkdir(parents=True)
    (twin / "metrics.jsonl").write_text(json.dumps({"step": 1, **ROWS["c"][0]}) + "\n")
    assert cli.main(["plot", "curves", runs[0], str(twin), "--out", str(tmp_path / "o.png")]) == 0
    names = [text.get_text().split(":")[0] for text in figures[0].legends[0].get_texts()]
    assert names == [f"{tmp_path.name}/a", "other/a"]


def test_what_is_no_run(runs, tmp_path, capsys):
    out = ["--out", str(tmp_path / "o.png")]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").touch()
    for given, message in (
        ([str(tmp_path)], "is no work directory: it holds no metrics.jsonl"),
        ([str(tmp_path / "d")], "has no rows of metrics yet"),
        ([runs[0], runs[0] + "/"], "is given more than once"),
    ):
        assert cli.main(["plot", "curves", *given, *out]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    assert not (tmp_path / "o.png").exists()
