"""Pictures of an evaluation: the confusion matrix, and the reliability diagram."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.plots.figure import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vit_jax.inference.evaluate import Evaluation

_NAMED, _NUMBERED = 100, 20  # classes up to which axes have names, and cells numbers
_LETTERS = 24


def plot_evaluation(evaluation: "Evaluation", out: pathlib.Path) -> None:
    """Draws the confusion matrix and, beside it, confidence against accuracy.

    Args:
      evaluation: of `vit_jax.inference.evaluate.evaluate`.
      out: the PNG file to write.

    Raises:
      OSError: it cannot be written.
    """
    side = 6.0 if len(evaluation.class_names) <= _NUMBERED else 9.0
    figure = new_figure(side + 5.5, side, "constrained")
    left, right = figure.subplots(1, 2, width_ratios=(side, 4.5))
    _draw_confusion(left, evaluation)
    _draw_reliability(right, evaluation)
    figure.suptitle(
        f"{evaluation.source}: {len(evaluation.labels):,} images, top-1 {evaluation.top1:.4f}, "
        f"loss {evaluation.loss:.4f}",
        parse_math=False,
    )
    save_figure(figure, out, dpi=90)


def _draw_confusion(axes: "Axes", evaluation: "Evaluation") -> None:
    confusion = evaluation.confusion
    # A class without examples stays white.
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class (%)")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("confusion")
    size = len(evaluation.class_names)
    if size > _NAMED:
        return
    names = [n if len(n) <= _LETTERS else n[: _LETTERS - 1] + "…" for n in evaluation.class_names]
    font = 9 if size <= _NUMBERED else 5
    axes.set_xticks(range(size), names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(size), names, fontsize=font, parse_math=False)
    if size > _NUMBERED:
        return
    for row, column in np.ndindex(size, size):
        share = shares[row, column]
        if confusion[row, column]:
            colour = "white" if share > 50 else "black"
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8
            )


def _draw_reliability(axes: "Axes", evaluation: "Evaluation") -> None:
    calibration = evaluation.calibration()
    some = calibration.count > 0
    lower = calibration.edges[:-1][some]
    width = 1 / len(calibration.count)
    axes.bar(
        lower,
        calibration.count[some] / calibration.count.sum(),
        width,
        align="edge",
        color="0.85",
        edgecolor="white",
        label="share of the images",
    )
    axes.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="calibrated")
    axes.plot(
        calibration.confidence[some],
        calibration.accuracy[some],
        color=COLOURS[0],
        marker="o",
        label="accuracy of a bin",
    )
    axes.vlines(
        calibration.confidence[some],
        calibration.confidence[some],
        calibration.accuracy[some],
        color=COLOURS[1],
        linewidth=2,
        label="gap",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("confidence: probability of the predicted class")
    axes.set_ylabel("share of 1")
    axes.set_title(
        f"reliability: calibration error {calibration.error:.4f} ({len(calibration.count)} bins)"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", framealpha=0.9)
