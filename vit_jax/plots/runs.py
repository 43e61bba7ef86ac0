"""The curves of several runs beside each other."""

import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vit_jax.plots.curves import Rows
from vit_jax.plots.figure import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (what the legend says, split, averaged weights, line style, width, marker)
_LINES = (
    ("training", "train", False, "-", 0.9, ""),
    ("validation", "validation", False, "-", 2.0, "o"),
    ("validation, averaged weights", "validation", True, ":", 2.0, "s"),
    ("test", "test", False, "", 0.0, "*"),
    ("test, averaged weights", "test", True, "", 0.0, "o"),
)
# What is drawn beside the loss: the first of these that a run has.
_SECOND = {
    "top1": "top-1 accuracy (fraction of images)",
    "mAP": "mean average precision",
    "mae": "mean absolute error",
}
_STYLES = ("-", "--", "-.")  # of the runs once the colours are used up


def draw_runs(runs: Mapping[str, Rows], out: pathlib.Path) -> None:
    """Draws loss and top-1 (or mAP, or the error of numbers) of all splits against epochs.

    A colour is a run; thin lines are training, thick ones with marks validation, dotted ones its
    averaged weights, stars the test.

    Args:
      runs: rows of metrics.jsonl by the name of the run.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    from matplotlib.lines import Line2D

    figure = new_figure(11, 4.6, "constrained")
    loss, accuracy = figure.subplots(1, 2)
    second = next((name for name in _SECOND if _has(runs, name)), "top1")
    used: dict[str, Line2D] = {}
    names = []
    for number, (name, rows) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = _STYLES[number // len(COLOURS) % len(_STYLES)]
        for label, split, is_averaged, style, width, marker in _LINES:
            options = {
                "linestyle": dash if style == "-" else style,
                "linewidth": width,
                "marker": marker,
                "markersize": 12 if split == "test" else 4,
                # A ring: the star of the raw weights may be at the same place.
                "fillstyle": "none" if split == "test" and is_averaged else "full",
            }
            for axes, metric in ((loss, "loss"), (accuracy, second)):
                key = f"ema_{metric}" if is_averaged else metric
                if _draw(axes, rows, split, key, {"color": colour, **options}):
                    grey = {**options, "linestyle": style, "color": "0.35"}
                    used.setdefault(label, Line2D([], [], label=label, **grey))
        names.append(
            Line2D(
                [], [], color=colour, linestyle=dash, linewidth=4, label=_told(name, rows, second)
            )
        )
    loss.set_ylabel("cross entropy (nats)" if second == "top1" else "loss")
    accuracy.set_ylabel(_SECOND[second])
    most = math.inf if second == "mae" else 1.02
    accuracy.set_ylim(0, min(most, 1.2 * accuracy.dataLim.ymax) if used else 1)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    shown = [label for label, *_ in _LINES if label in used]
    figure.legend(handles=names, loc="outside upper center", ncols=min(3, len(names)))
    figure.legend(handles=[used[label] for label in shown], loc="outside lower center", ncols=5)
    save_figure(figure, out)


def _draw(axes: "Axes", rows: Rows, split: str, key: str, options: dict) -> bool:
    chosen = [row for row in rows if row["split"] == split and key in row]
    if chosen:
        axes.plot([row["epoch"] for row in chosen], [row[key] for row in chosen], **options)
    return bool(chosen)


def _has(runs: Mapping[str, Rows], metric: str) -> bool:
    return any(metric in row for rows in runs.values() for row in rows)


def _told(name: str, rows: Rows, metric: str) -> str:
    """The run's name and its second figure: of the test, else the last of the validation."""
    for split in ("test", "validation"):
        values = [row[metric] for row in rows if row["split"] == split and metric in row]
        if values and math.isfinite(values[-1]):
            return f"{name}: {split} {values[-1]:.3f}"
    return name
