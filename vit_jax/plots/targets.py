"""Pictures of evaluations that are not of classes: several labels an image, and numbers."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.plots.figure import new_figure, save_figure

_CURVES = 10  # labels up to which each has a name and a colour


def plot_precision_recall(
    title: str,
    class_names: Sequence[str],
    scores: np.ndarray,
    labels: np.ndarray,
    out: pathlib.Path,
) -> None:
    """Draws precision over recall as the threshold falls, a curve for each label.

    Args:
      title: above the picture.
      class_names: of the labels.
      scores: (N, labels), more where a label is likelier.
      labels: (N, labels), whether an image has it; a label that none has is left out.
      out: the picture to write.

    Raises:
      OSError: it cannot be written.
    """
    figure = new_figure(6.5, 6, "constrained")
    axes = figure.add_subplot()
    few = len(class_names) <= _CURVES
    for name, of_label, there in zip(class_names, scores.T, labels.T > 0, strict=True):
        if not there.any():
            continue
        order = np.argsort(-of_label, kind="stable")
        hits = np.cumsum(there[order])
        recall, precision = hits / hits[-1], hits / np.arange(1, len(hits) + 1)
        style = {} if few else {"color": "0.5", "alpha": 0.5, "linewidth": 0.8}
        axes.plot(recall, precision, label=name if few else None, **style)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    if few:
        axes.legend(loc="lower left", framealpha=0.9)
    figure.suptitle(title, parse_math=False, fontsize=10, wrap=True)
    save_figure(figure, out, dpi=110)


def plot_predicted_numbers(
    title: str, labels: np.ndarray, predictions: np.ndarray, out: pathlib.Path
) -> None:
    """Draws predictions over labels, a panel for each number.

    Args:
      title: above the picture.
      labels, predictions: (N, numbers).
      out: the picture to write.

    Raises:
      OSError: it cannot be written.
    """
    count = labels.shape[1]
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(1.5 + 4.5 * columns, 0.7 + 4.5 * rows, "constrained")
    for number in range(count):
        axes = figure.add_subplot(rows, columns, number + 1)
        wanted, found = labels[:, number], predictions[:, number]
        ends = [min(wanted.min(), found.min()), max(wanted.max(), found.max())]
        axes.plot(ends, ends, color="0.4", linestyle="--", linewidth=1, label="right")
        axes.plot(wanted, found, ".", color="#0072B2", alpha=0.7, label="an image")
        axes.set(xlabel="label", ylabel="prediction", aspect="equal")
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(framealpha=0.9)
    figure.suptitle(title, parse_math=False, fontsize=10, wrap=True)
    save_figure(figure, out, dpi=110)
