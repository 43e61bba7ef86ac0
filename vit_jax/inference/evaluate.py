"""How well a trained model does on a labelled set.

Of classes: accuracy, confusion, calibration. Of several labels an image: average precision,
precision and recall of each. Of numbers: their errors.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.loader import num_eval_batches
from vit_jax.data.sources import ImageSource
from vit_jax.inference.classifier import Classifier
from vit_jax.models.base import VisionModel
from vit_jax.training.evaluate import evaluate as average_over
from vit_jax.training.mesh import replicated
from vit_jax.training.metrics import OwnSums, Sums
from vit_jax.training.objectives import THRESHOLD, Objective, average_precisions, objective_of
from vit_jax.training.state import Arrays
from vit_jax.watching import Watch, unwatched

NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Confidence, the probability of the predicted class, beside accuracy.

    Attributes:
      edges: (bins + 1,) of equal bins of confidence; a bin holds its upper edge.
      count: (bins,) examples.
      confidence, accuracy: (bins,) means of a bin's examples; nan where it has none.
      error: the expected calibration error: the mean of |accuracy - confidence| over the bins, each
        weighted by its examples (Guo et al., 2017, arXiv:1706.04599, equation 3).
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model made of a labelled set.

    Attributes:
      source: the set.
      loss, top1, top5: averages an example; top1 and top5 are fractions of 1.
      class_names: of the model; the number of a class that has none.
      labels, predictions: (N,) class indices.
      confidences: (N,) probability of the prediction.
      notes: what to know of the figures, a line each.
    """

    source: str
    loss: float
    top1: float
    top5: float
    class_names: tuple[str, ...]
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def class_counts(self) -> np.ndarray:
        """(classes,) examples of each class."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @functools.cached_property
    def class_accuracy(self) -> np.ndarray:
        """(classes,) share of a class's examples that are predicted right; nan of no examples."""
        right = self.labels[self.labels == self.predictions]
        return _divide(np.bincount(right, minlength=len(self.class_names)), self.class_counts)

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """(classes, classes) examples by true class (row) and predicted class (column)."""
        size = len(self.class_names)
        return np.bincount(self.labels * size + self.predictions, minlength=size * size).reshape(
            size, size
        )

    def calibration(self, bins: int = NUM_BINS) -> Calibration:
        """Confidence beside accuracy in `bins` equal bins."""
        edges = np.linspace(0, 1, bins + 1)
        # (edges[i], edges[i + 1]]; a softmax is above 0, but for its rounding.
        which = np.clip(np.searchsorted(edges, self.confidences, side="left") - 1, 0, bins - 1)
        count = np.bincount(which, minlength=bins)
        right = np.bincount(which, self.labels == self.predictions, minlength=bins)
        sure = np.bincount(which, self.confidences, minlength=bins)
        return Calibration(
            edges,
            count,
            _divide(sure, count),
            _divide(right, count),
            float(np.abs(right - sure).sum() / len(self.labels)),
        )


@dataclasses.dataclass(frozen=True)
class LabelEvaluation:
    """What a model of several labels an image made of a labelled set.

    Attributes:
      source: the set.
      figures: loss, the share of images with every label right (exact), and the mean of the average
        precisions (mAP).
      class_names: of the model.
      labels: (N, labels) bool; logits: (N, labels).
      notes: what to know of the figures, a line each.
    """

    source: str
    figures: dict[str, float]
    class_names: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """(N, labels), of each label by itself."""
        return np.exp(-np.logaddexp(0, -self.logits))

    @functools.cached_property
    def average_precision(self) -> np.ndarray:
        """(labels,); nan of a label that no image has."""
        return average_precisions(self.logits, self.labels)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(labels,) images that have the label."""
        return self.labels.sum(axis=0)

    @functools.cached_property
    def precision_and_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """(labels,) each, of labels that are said to be there from a half on; nan of none."""
        said = self.probabilities >= THRESHOLD
        right = (said & self.labels).sum(axis=0)
        return _divide(right, said.sum(axis=0)), _divide(right, self.counts)


@dataclasses.dataclass(frozen=True)
class ValueEvaluation:
    """What a model of numbers made of a labelled set.

    Attributes:
      source: the set.
      figures: loss, the squared error of standardised numbers, whichever the model was trained
        with; mae and rmse, in the unit of the labels.
      labels, predictions: (N, numbers).
      notes: what to know of the figures, a line each.
    """

    source: str
    figures: dict[str, float]
    labels: np.ndarray
    predictions: np.ndarray
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def determination(self) -> np.ndarray:
        """(numbers,) R^2: 1 - squared errors / squared deviations from the mean; nan if it is 0."""
        errors = np.square(self.predictions - self.labels).sum(axis=0)
        spread = np.square(self.labels - self.labels.mean(axis=0)).sum(axis=0)
        return 1 - _divide(errors, spread)


def evaluate(
    model: VisionModel[Any],
    source: ImageSource,
    batch_size: int = 256,
    num_workers: int | None = None,
    watch: Watch = unwatched,
) -> Any:
    """Evaluates a model as its training does: on the set of its run, the same loss and figures.

    But for a run of `loss.kind="l1"`: see `ValueEvaluation`.

    Args:
      model: of `vit_jax.from_pretrained`.
      source: of `vit_jax.data`, such as `open_splits(...).test`. Where its classes have names that
        the model knows, labels go by name; else by index, and `notes` say so.
      batch_size: images at a time; the same numbers to the last bit need that of the run.
      num_workers: threads that decode; None: by the number of processors, 0: none.
      watch: goes through the batches; see `vit_jax.watching`.

    Returns:
      An `Evaluation`; where the model's `spec.target` says so a `LabelEvaluation` or a
      `ValueEvaluation`.

    Raises:
      ValueError: channels, classes or labels that do not fit, a model that states no preprocessing,
        or an image that cannot be read.
    """
    objective = objective_of(model.spec.target)
    is_classes = objective.kind == "classification"
    to_model, notes = _to_labels(model, source, objective)
    classifier = Classifier.of(model)
    figures, roots = None if is_classes else objective.figures, objective.roots
    seen: list[tuple[jax.Array, ...]] = []

    @jax.jit
    def compiled(variables: Arrays, batch: dict[str, Any], sums: Any) -> tuple[Any, Any]:
        labels, mask = batch["label"], batch["mask"]
        outputs = classifier.logits(variables, batch["image"])
        losses, found = objective.losses(outputs, labels, train=False)
        if figures is not None:
            each = {name: measure(found, labels) for name, measure in figures.items()}
            return sums + OwnSums.of_batch(losses, each, mask, roots), (labels, found, mask)
        confidence = jax.nn.softmax(found).max(axis=-1)
        sums += Sums.of_batch(losses, found, labels, mask)
        return sums, (labels, found.argmax(axis=-1), confidence, mask)

    def step(variables: Arrays, batch: dict[str, Any], sums: Any) -> Any:
        sums, of_examples = compiled(variables, batch, sums)
        seen.append(of_examples)
        return sums

    def relabelled(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield classifier.on_device({**batch, "label": to_model(batch["label"])})

    def zeros() -> Any:
        dtype = jnp.promote_types(model.param_dtype, jnp.float32)
        nothing = Sums.zeros(dtype) if figures is None else OwnSums.zeros(dtype, figures, roots)
        return jax.device_put(nothing, replicated(classifier.mesh))

    with classifier.batches(source, batch_size, num_workers) as batches:
        total = num_eval_batches(source, classifier.rounded(batch_size))
        watched = relabelled(watch(batches, total, "evaluating"))
        averages = average_over(step, {"": classifier.variables}, watched, zeros)
    assert averages is not None  # nothing tells it to stop
    arrays = [np.concatenate(each) for each in zip(*jax.device_get(seen), strict=True)]
    labels, predictions, *confidences = (array[arrays[-1]] for array in arrays[:-1])
    names = tuple(map(model.spec.label, range(model.num_classes)))
    if is_classes:
        return Evaluation(
            source.name,
            **averages,
            class_names=names,
            labels=labels.astype(np.int64),
            predictions=predictions.astype(np.int64),
            confidences=confidences[0].astype(np.float64),
            notes=notes,
        )
    found = predictions.astype(np.float64)
    if objective.kind == "regression":
        wanted = labels.reshape(found.shape).astype(np.float64)
        return ValueEvaluation(source.name, averages, wanted, found, notes)
    assert objective.of_all is not None
    averages |= objective.of_all(predictions, labels)
    return LabelEvaluation(source.name, averages, names, labels > 0, found, notes)


def _to_labels(
    model: VisionModel[Any], source: ImageSource, objective: Objective
) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]:
    """What makes labels of the model of those of the source, and remarks."""
    shape, dtype, number = source.label_shape, source.label_dtype, model.num_classes
    is_named, is_regression = bool(source.class_names), objective.kind == "regression"
    fits = objective.takes(shape, dtype) and not (is_named and is_regression)
    if objective.one_an_output and not is_named:  # else labels go by name
        fits &= math.prod(shape) == number
    if not fits:
        raise ValueError(
            f"the model is one of {objective.kind} with {number} outputs, and the labels of "
            f"{source.name} are {dtype} of shape {shape}: wanted --labels FILE, or data of its kind"
        )
    if is_regression:
        return lambda labels: labels, ()
    place, notes = _labels_of(model, source)
    source.label_limit = objective.label_limit(number, source.class_names)  # as in training
    if objective.kind == "classification":
        return lambda labels: place[labels].astype(np.int32), notes

    def columns(labels: np.ndarray) -> np.ndarray:
        found = np.zeros((len(labels), number), np.float32)
        found[:, place[: labels.shape[1]]] = labels
        return found

    return columns, notes


def _labels_of(model: VisionModel[Any], source: ImageSource) -> tuple[np.ndarray, tuple[str, ...]]:
    """The model's class of each label of the source, and a remark where it is a guess."""
    ours, theirs, number = model.spec.class_names, source.class_names, model.num_classes
    by_index = np.arange(len(theirs) or number)
    if not theirs:
        return by_index, (f"classes go by index: nothing names those of {source.name}",)
    if ours is None:
        if len(theirs) != number:
            raise ValueError(
                f"nothing names the model's {number} classes, and {source.name} has {len(theirs)}: "
                "labels cannot be told"
            )
        return by_index, (f"classes go by index: nothing names the model's {number}",)
    if theirs == ours[: len(theirs)]:
        return by_index, ()
    if set(theirs) <= set(ours):
        return np.asarray([ours.index(name) for name in theirs]), ()
    if len(theirs) == number == len(ours):
        differs = next(i for i, name in enumerate(theirs) if name != ours[i])
        return by_index, (
            f"classes go by index: {source.name} names class {differs} {theirs[differs]!r}, the "
            f"model {ours[differs]!r}",
        )
    missing = next(name for name in theirs if name not in ours)
    raise ValueError(
        f"class {missing!r} of {source.name} is none of the model's {number} "
        f"({', '.join(ours[:5])}, ...), and it has {len(theirs)} classes: labels cannot be told"
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
