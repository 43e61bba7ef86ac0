"""The curves of a run: loss and accuracy against epochs, for training and validation."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.plots.figure import new_figure, save_figure

# Colour tells the split, line style the metric: readable in grey and to the colour-blind.
_COLOURS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
_STYLES = {"top5": "--", "exact": "--", "rmse": "--"}  # others "-", of averaged weights ":"
_LABELS = {
    "top1": " top-1",
    "top5": " top-5",
    "mAP": " mAP",
    "exact": " all labels right",
    "mae": " mean absolute error",
    "rmse": " root of the mean square",
}
# What the second picture shows, by its name: of classes and labels, or of numbers.
_PICTURES = {
    "accuracy": ("top1", "top5", "ema_top1", "mAP", "exact", "ema_mAP"),
    "error": ("mae", "rmse", "ema_mae"),
}

Rows = Sequence[Mapping[str, Any]]


def plot_curves(rows: Rows, directory: pathlib.Path) -> list[pathlib.Path]:
    """Draws `loss.png` and `accuracy.png` (top-1 and top-5, or mAP) into a directory.

    Of a regression the second is `error.png`. Figures of averaged weights are drawn beside.

    Args:
      rows: those of metrics.jsonl; test rows become a single mark at the end.
      directory: is made if need be.

    Returns:
      The paths of the two pictures.

    Raises:
      OSError: they cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    loss = "cross entropy" if any("top1" in row for row in rows) else "loss"
    of_numbers = any("mae" in row for row in rows) and not any("top1" in row for row in rows)
    second = "error" if of_numbers else "accuracy"
    return [
        _draw(rows, ("loss", "ema_loss"), loss, directory / "loss.png"),
        _draw(rows, _PICTURES[second], second, directory / f"{second}.png"),
    ]


def _draw(rows: Rows, metrics: Sequence[str], y_label: str, path: pathlib.Path) -> pathlib.Path:
    figure = new_figure(7, 4.5, "constrained")
    axes = figure.add_subplot()
    for split, colour in _COLOURS.items():
        for metric in metrics:
            chosen = [row for row in rows if row["split"] == split and metric in row]
            if not chosen:
                continue
            last = chosen[-1][metric]
            plain = metric.removeprefix("ema_")
            is_average = plain != metric
            beside = ", averaged weights" if is_average else ""
            axes.plot(
                [row["epoch"] for row in chosen],
                [row[metric] for row in chosen],
                color=colour,
                linestyle=":" if is_average else _STYLES.get(metric, "-"),
                linewidth=1.2 if split == "train" else 1.8,
                marker={"test": "*", "validation": "o", "train": ""}[split],
                markersize=10 if split == "test" else 3,
                label=f"{split}{_LABELS.get(plain, '')}{beside}: {last:.3f}",
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    axes.set_xlim(left=0)
    if y_label == "accuracy":
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(title="last value", framealpha=0.9)
    save_figure(figure, path, dpi=120)
    return path
