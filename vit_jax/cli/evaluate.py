"""`vit-jax evaluate`: a trained model's accuracy, confusion and calibration on a data set."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import (
    RecipeParser,
    add_data,
    add_model,
    add_precision,
    load_given_model,
    print_notes,
    printable,
)

if TYPE_CHECKING:
    from vit_jax.inference.evaluate import Evaluation

_MATRIX = 20  # classes up to which the confusion matrix is printed
_WORST = 20  # of more classes, so many are told


def run(arguments: Sequence[str]) -> int:
    """`evaluate CHECKPOINT_OR_WEIGHTS [data options | --config RECIPE --config.FIELD=VALUE]`."""
    options, recipe = _parser().read(arguments)
    jax_setup.set_up_jax()
    jax_setup.set_matmul_precision(options.matmul_precision)
    from vit_jax.inference.evaluate import evaluate
    from vit_jax.inference.labelled import open_labelled
    from vit_jax.training.objectives import objective_of
    from vit_jax.watching import watched

    # Data first, whose mistakes are found sooner, but where the model says what their labels are.
    model = load_given_model(options) if options.labels else None
    kind = None if recipe is None else recipe.config.loss.target
    if model is not None:
        kind = objective_of(model.spec.target).kind
    labelled = open_labelled(
        options.source,
        None if recipe is None else recipe.config.data,
        source=options.data_source or ("folder" if options.labels else None),
        name=options.name,
        data_dir=options.data_dir,
        split=options.split,
        batch_size=options.batch_size,
        labels_file=options.labels,
        kind=kind,
    )
    model = model or load_given_model(options)
    found = evaluate(model, labelled.source, labelled.batch_size, labelled.num_workers, watched)
    print_notes(found.notes)
    report = report_of(found)
    if options.json:
        print(json.dumps(report.as_json(found)))
    else:
        print("\n".join(report.as_text(found)))
    if options.plot:
        report.draw(found, pathlib.Path(options.plot))
        print(f"wrote {options.plot}", file=sys.stderr)
    return 0


class Report(NamedTuple):
    """How an evaluation of one kind is told.

    Attributes:
      as_text: the figures in lines.
      as_json: all of them, as plain values.
      draw: writes the picture.
      picture: what its file is called among others.
      headline: what a checkpoint is worth, in a few words.
    """

    as_text: Callable[[Any], list[str]]
    as_json: Callable[[Any], dict[str, Any]]
    draw: Callable[[Any, pathlib.Path], None]
    picture: str
    headline: Callable[[Any], str]


def report_of(found: Any) -> Report:
    """How what `vit_jax.inference.evaluate.evaluate` returned is told."""
    from vit_jax.cli import evaluate_targets as targets

    return {
        "Evaluation": Report(as_text, _as_json, draw, "confusion.png", _headline),
        "LabelEvaluation": Report(
            targets.labels_as_text,
            targets.labels_as_json,
            targets.draw_labels,
            "precision_recall.png",
            targets.headline_of_labels,
        ),
        "ValueEvaluation": Report(
            targets.values_as_text,
            targets.values_as_json,
            targets.draw_values,
            "predicted.png",
            targets.headline_of_values,
        ),
    }[type(found).__name__]


def _headline(found: "Evaluation") -> str:
    right = int((found.labels == found.predictions).sum())
    return f"{right:,} of {len(found.labels):,} images right, {found.top1:.1%}"


def draw(found: "Evaluation", out: pathlib.Path) -> None:
    """Draws the confusion matrix and the reliability diagram.

    Raises:
      OSError: `out` cannot be written.
    """
    from vit_jax.plots.evaluation import plot_evaluation

    title = (
        f"{found.source}: {len(found.labels):,} images, top-1 {found.top1:.4f}, "
        f"loss {found.loss:.4f}"
    )
    plot_evaluation(title, found.class_names, found.confusion, found.calibration(), out)


def _as_json(found: "Evaluation") -> dict[str, Any]:
    calibration = found.calibration()
    bins = zip(
        calibration.edges[:-1].tolist(),
        calibration.edges[1:].tolist(),
        calibration.count.tolist(),
        map(_or_none, calibration.confidence.tolist()),
        map(_or_none, calibration.accuracy.tolist()),
        strict=True,
    )
    classes = zip(
        found.class_names,
        found.class_counts.tolist(),
        map(_or_none, found.class_accuracy.tolist()),
        strict=True,
    )
    return {
        "source": found.source,
        "images": len(found.labels),
        "loss": found.loss,
        "top1": found.top1,
        "top5": found.top5,
        "classes": [
            dict(zip(("name", "images", "accuracy"), each, strict=True)) for each in classes
        ],
        "confusion": found.confusion.tolist(),
        "calibration": {
            "expected_calibration_error": calibration.error,
            "bins": [
                dict(zip(("above", "to", "images", "confidence", "accuracy"), each, strict=True))
                for each in bins
            ],
        },
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no nan


def as_text(found: "Evaluation") -> list[str]:
    """The figures in lines: of all images, of each class, and the confusion of few classes."""
    calibration = found.calibration()
    names = [printable(name) for name in found.class_names]
    width = max(len("class"), *map(len, names))
    top5 = f"top-5 {found.top5:.4f}  " if len(names) > 5 else ""  # of fewer it is 1
    accuracy = found.class_accuracy
    listed = [i for i, count in enumerate(found.class_counts.tolist()) if count]
    lines = [
        f"{found.source}: {len(found.labels):,} images",
        f"loss {found.loss:.4f}  top-1 {found.top1:.4f}  {top5}"
        f"calibration error {calibration.error:.4f} ({len(calibration.count)} bins)",
        "",
    ]
    if len(listed) > _WORST:
        lines += [f"the {_WORST} worst of {len(listed)} classes (all: --json)"]
        listed = sorted(listed, key=lambda i: accuracy[i])[:_WORST]
    lines += [f"{'class':<{width}}  images  accuracy  most often taken for"]
    for i in listed:
        others = found.confusion[i].copy()
        others[i] = 0
        most = int(others.argmax())
        taken = f"  {names[most]} ({others[most]})" if others[most] else ""
        lines.append(f"{names[i]:<{width}}  {found.class_counts[i]:>6}  {accuracy[i]:>8.4f}{taken}")
    if len(names) <= _MATRIX:
        lines += ["", *_matrix(found, names)]
    return lines


def _matrix(found: "Evaluation", names: list[str]) -> list[str]:
    """Rows are true classes; columns, in the same order, what they were taken for."""
    left, cell = max(map(len, names)), max(4, len(str(found.confusion.max())))
    heads = [name if len(name) <= cell else name[: cell - 1] + "." for name in names]
    lines = ["confusion: a row is a true class, a column what it is taken for"]
    lines.append(" " * left + "".join(f"  {head:>{cell}}" for head in heads))
    for name, row in zip(names, found.confusion.tolist(), strict=True):
        lines.append(f"{name:<{left}}" + "".join(f"  {count:>{cell}}" for count in row))
    return lines


def _parser() -> RecipeParser:
    parser = RecipeParser(
        "vit-jax evaluate",
        "Loss, top-1, top-5, the accuracy of each class, confusion and calibration of a trained\n"
        "model; with several labels an image their average precision, of numbers their errors.\n"
        "A run is evaluated on its own test split unless other data are named.",
        needs_recipe=False,
        usage="%(prog)s CHECKPOINT_OR_WEIGHTS [--ema] [--source tfds|folder|digits] [--name NAME] "
        "[--data-dir DIR] [--split SPLIT] [--json] [--plot FILE.png] [...]",
        notes="The data of a recipe: --config RECIPE [--config.data.FIELD=VALUE ...], as in\n"
        "`vit-jax train`.",
    )
    add_model(parser)
    add_precision(parser)
    data = add_data(parser)
    data.add_argument(
        "--split", help="such as test, validation, all, 'train[90%%:]' (default: the test split)"
    )
    data.add_argument(
        "--labels", metavar="FILE.csv", help="of the images in --data-dir: columns file and label"
    )
    parser.add_argument("--json", action="store_true", help="all figures, as one JSON object")
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw confusion and calibration, precision and recall, or errors",
    )
    return parser
