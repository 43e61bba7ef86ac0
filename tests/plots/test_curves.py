"""The curves' pictures: what is drawn is what the rows say."""

import numpy as np

from vit_jax.plots.curves import plot_curves


def row(split: str, epoch: float, loss: float) -> dict:
    return {"split": split, "epoch": epoch, "loss": loss, "top1": 1 - loss, "top5": 1 - loss / 2}


ROWS = [
    row("train", 0.5, 0.9),
    row("train", 1.0, 0.7),
    row("validation", 1.0, 0.8),
    row("train", 2.0, 0.5),
    row("validation", 2.0, 0.6),
    row("test", 2.0, 0.65),
]


def test_both_pictures(figures, tmp_path):
    paths = plot_curves(ROWS, tmp_path / "plots")
    assert [path.name for path in paths] == ["loss.png", "accuracy.png"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
    loss, accuracy = (figure.axes[0] for figure in figures)
    lines = {line.get_label(): line for line in loss.lines}
    assert list(lines) == ["train: 0.500", "validation: 0.600", "test: 0.650"]
    np.testing.assert_array_equal(lines["train: 0.500"].get_xdata(), [0.5, 1, 2])
    np.testing.assert_array_equal(lines["train: 0.500"].get_ydata(), [0.9, 0.7, 0.5])
    labels = [line.get_label() for line in accuracy.lines]
    assert labels == [
        "train top-1: 0.500",
        "train top-5: 0.750",
        "validation top-1: 0.400",
        "validation top-5: 0.700",
        "test top-1: 0.350",
        "test top-5: 0.675",
    ]
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == (
        "epoch",
        "cross entropy",
        "accuracy",
    )


def test_averaged_weights_are_drawn_beside(figures, tmp_path):
    ema = {"ema_loss": 0.5, "ema_top1": 0.55, "ema_top5": 0.9}
    plot_curves([ROWS[0], {**ROWS[2], **ema}, {**ROWS[4], **ema}], tmp_path)
    for figure, label in zip(figures, (", averaged", " top-1, averaged"), strict=True):
        value = "0.500" if label.startswith(",") else "0.550"
        lines = {line.get_label(): line for line in figure.axes[0].lines}
        line = lines[f"validation{label} weights: {value}"]
        np.testing.assert_array_equal(line.get_xdata(), [1, 2])
        assert not any(name.startswith("train") and "averaged" in name for name in lines)


def test_no_rows_still_make_pictures(tmp_path):
    for path in plot_curves([], tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_regression_has_errors_in_place_of_accuracies(figures, tmp_path):
    row = {"epoch": 1.0, "loss": 0.5, "mae": 3.0, "rmse": 4.0, "split": "validation"}
    paths = plot_curves([row], tmp_path)
    assert [path.name for path in paths] == ["loss.png", "error.png"]
    labels = [line.get_label() for line in figures[1].axes[0].lines]
    wanted = ["validation mean absolute error: 3.000", "validation root of the mean square: 4.000"]
    assert labels == wanted
