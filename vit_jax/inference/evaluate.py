"""How well a trained model does on a labelled set: accuracy, confusion, calibration."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.loader import Batches
from vit_jax.data.sources import ImageSource
from vit_jax.inference.classifier import Classifier
from vit_jax.models.base import VisionModel
from vit_jax.training.evaluate import evaluate as average_over
from vit_jax.training.losses import classification_loss
from vit_jax.training.mesh import replicated
from vit_jax.training.metrics import Sums
from vit_jax.training.state import Arrays

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


def evaluate(
    model: VisionModel[Any],
    source: ImageSource,
    batch_size: int = 256,
    num_workers: int | None = None,
) -> Evaluation:
    """Evaluates a model as its training does: on the set of its run, the same loss, top1 and top5.

    Args:
      model: of `vit_jax.from_pretrained`.
      source: of `vit_jax.data`, such as `open_splits(...).test`. Where its classes have names that
        the model knows, labels go by name; else by index, and `notes` say so.
      batch_size: images at a time; the same numbers to the last bit need that of the run.
      num_workers: threads that decode; None: by the number of processors, 0: none.

    Raises:
      ValueError: channels or classes that do not fit, a model that states no preprocessing, or an
        image that cannot be read.
    """
    to_label, notes = _labels_of(model, source)
    classifier = Classifier.of(model)
    seen: list[tuple[jax.Array, ...]] = []

    @jax.jit
    def compiled(variables: Arrays, batch: dict[str, Any], sums: Sums) -> tuple[Sums, Any]:
        labels = batch["label"]
        logits = classifier.logits(variables, batch["image"])
        losses, logits = classification_loss(logits, labels)
        confidence = jax.nn.softmax(logits).max(axis=-1)
        sums += Sums.of_batch(losses, logits, labels, batch["mask"])
        return sums, (labels, logits.argmax(axis=-1), confidence, batch["mask"])

    def step(variables: Arrays, batch: dict[str, Any], sums: Sums) -> Sums:
        sums, of_examples = compiled(variables, batch, sums)
        seen.append(of_examples)
        return sums

    def relabelled(batches: Batches) -> Iterator[dict[str, Any]]:
        for batch in batches:
            labels = to_label[batch["label"]].astype(np.int32)
            yield classifier.on_device({**batch, "label": labels})

    def zeros() -> Sums:
        dtype = jnp.promote_types(model.param_dtype, jnp.float32)
        return jax.device_put(Sums.zeros(dtype), replicated(classifier.mesh))

    with classifier.batches(source, batch_size, num_workers) as batches:
        averages = average_over(step, {"": classifier.variables}, relabelled(batches), zeros)
    assert averages is not None  # nothing tells it to stop
    arrays = [np.concatenate(each) for each in zip(*jax.device_get(seen), strict=True)]
    labels, predictions, confidences = (array[arrays[-1]] for array in arrays[:-1])
    return Evaluation(
        source.name,
        **averages,
        class_names=tuple(map(model.spec.label, range(model.num_classes))),
        labels=labels.astype(np.int64),
        predictions=predictions.astype(np.int64),
        confidences=confidences.astype(np.float64),
        notes=notes,
    )


def _labels_of(model: VisionModel[Any], source: ImageSource) -> tuple[np.ndarray, tuple[str, ...]]:
    """The model's class of each label of the source, and a remark where it is a guess."""
    ours, theirs, number = model.spec.class_names, source.class_names, model.num_classes
    by_index = np.arange(max(len(theirs), 1))
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
