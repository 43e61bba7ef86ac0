"""How evaluations are told that are not of classes: several labels an image, and numbers."""

import math
import pathlib
from typing import TYPE_CHECKING, Any

from vit_jax.cli.parsing import printable

if TYPE_CHECKING:
    from vit_jax.inference.evaluate import LabelEvaluation, ValueEvaluation

_WORST = 20  # of more labels, so many are told


def headline_of_labels(found: "LabelEvaluation") -> str:
    """What a checkpoint is worth, in a few words."""
    return f"mAP {found.figures['mAP']:.4f} over {len(found.labels):,} images"


def labels_as_text(found: "LabelEvaluation") -> list[str]:
    """The figures in lines: of all images, and of each label."""
    names = [printable(name) for name in found.class_names]
    width = max(len("label"), *map(len, names))
    figures, precise = found.figures, found.average_precision
    listed = [index for index, count in enumerate(found.counts.tolist()) if count]
    lines = [
        f"{found.source}: {len(found.labels):,} images",
        f"loss {figures['loss']:.4f}  mAP {figures['mAP']:.4f}  all labels right "
        f"{figures['exact']:.4f}",
        "",
    ]
    if len(listed) > _WORST:
        lines.append(f"the {_WORST} worst of {len(listed)} labels (all: --json)")
        listed = sorted(listed, key=lambda index: precise[index])[:_WORST]
    lines.append(f"{'label':<{width}}  images  average precision  precision  recall")
    for index in listed:
        precision, recall = (part[index] for part in found.precision_and_recall)
        lines.append(
            f"{names[index]:<{width}}  {found.counts[index]:>6}  {precise[index]:>17.4f}  "
            f"{_or_dash(precision):>9}  {recall:>6.4f}"
        )
    return [*lines, "precision and recall: of labels with a probability of 0.5 and more"]


def labels_as_json(found: "LabelEvaluation") -> dict[str, Any]:
    """All figures as plain values."""
    precision, recall = found.precision_and_recall
    columns = {
        "name": found.class_names,
        "images": found.counts.tolist(),
        "average_precision": _plain(found.average_precision),
        "precision": _plain(precision),
        "recall": _plain(recall),
    }
    rows = zip(*columns.values(), strict=True)
    labels = [dict(zip(columns, row, strict=True)) for row in rows]
    of_all = {"source": found.source, "images": len(found.labels)}
    return {**of_all, **found.figures, "labels": labels}


def draw_labels(found: "LabelEvaluation", out: pathlib.Path) -> None:
    """Draws precision over recall, a curve a label; raises OSError if it cannot be written."""
    from vit_jax.plots.targets import plot_precision_recall

    title = f"{found.source}: {headline_of_labels(found)}"
    plot_precision_recall(title, found.class_names, found.logits, found.labels, out)


def headline_of_values(found: "ValueEvaluation") -> str:
    """What a checkpoint is worth, in a few words."""
    return f"mean absolute error {found.figures['mae']:.4g} over {len(found.labels):,} images"


def values_as_text(found: "ValueEvaluation") -> list[str]:
    """The errors in lines."""
    figures = found.figures
    determination = ", ".join(_or_dash(value) for value in found.determination.tolist())
    return [
        f"{found.source}: {len(found.labels):,} images",
        f"loss {figures['loss']:.4f}  mean absolute error {figures['mae']:.4g}  root of the mean "
        f"square {figures['rmse']:.4g}  R2 {determination}",
    ]


def values_as_json(found: "ValueEvaluation") -> dict[str, Any]:
    """All figures as plain values."""
    of_all = {"source": found.source, "images": len(found.labels)}
    return {**of_all, **found.figures, "r2": _plain(found.determination)}


def draw_values(found: "ValueEvaluation", out: pathlib.Path) -> None:
    """Draws predictions over labels; raises OSError if it cannot be written."""
    from vit_jax.plots.targets import plot_predicted_numbers

    title = f"{found.source}: {headline_of_values(found)}"
    plot_predicted_numbers(title, found.labels, found.predictions, out)


def _plain(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]  # JSON has no nan


def _or_dash(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
