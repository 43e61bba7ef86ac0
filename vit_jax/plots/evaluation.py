"""Pictures of an evaluation: the confusion matrix, and the reliability diagram."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vit_jax.plots.figure import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED, _NUMBERED = 100, 20  # classes up to which axes have names, and cells numbers
_LETTERS = 24


class Calibration(Protocol):
    """See `vit_jax.inference.evaluate.Calibration`."""

    @property
    def edges(self) -> np.ndarray: ...
    @property
    def count(self) -> np.ndarray: ...
    @property
    def confidence(self) -> np.ndarray: ...
    @property
    def accuracy(self) -> np.ndarray: ...
    @property
    def error(self) -> float: ...


def plot_evaluation(
    title: str,
    class_names: Sequence[str],
    confusion: np.ndarray,
    calibration: Calibration,
    out: pathlib.Path,
) -> None:
    """Draws the confusion matrix next to confidence against accuracy.

    Args:
      title: above the picture.
      class_names: of the model.
      confusion: (true class, predicted class), counts.
      calibration: confidence and accuracy by bin.
      out: the PNG file to write.

    Raises:
      OSError: it cannot be written.
    """
    side = 6.0 if len(class_names) <= _NUMBERED else 9.0
    figure = new_figure(side + 5.5, side, "constrained")
    left, right = figure.subplots(1, 2, width_ratios=(side, 4.5))
    _draw_confusion(left, confusion, class_names)
    _draw_reliability(right, calibration)
    figure.suptitle(title, parse_math=False)
    figure.draw_without_rendering()
    save_figure(figure, out, dpi=90)


def _draw_confusion(axes: "Axes", confusion: np.ndarray, class_names: Sequence[str]) -> None:
    # A class without examples stays white.
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class (%)")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("confusion")
    size = len(class_names)
    if size > _NAMED:
        return
    names = [n if len(n) <= _LETTERS else n[: _LETTERS - 1] + "…" for n in class_names]
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


def _draw_reliability(axes: "Axes", calibration: Calibration) -> None:
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
    # Below the axes: inside of them there is no place that no point may have.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
