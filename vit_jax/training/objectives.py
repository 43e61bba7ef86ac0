"""What a model is trained for: the loss, the figures, what is best, and what its outputs say.

All that differs between classes, several labels an image, and numbers is here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vit_jax.config import TrainConfig
from vit_jax.data.folder import labels_of
from vit_jax.data.sources import ImageSource
from vit_jax.models.spec import Target
from vit_jax.training.losses import binary_cross_entropy, classification_loss, of_heads, wide
from vit_jax.training.metrics import OfAll, label_ranks

# (prediction of the model, labels of the batch) -> a number for each example.
Measure = Callable[[Any, jax.Array], jax.Array]
# Of the figures that we know: 1 where more is better, -1 where less is.
DIRECTIONS = {"top1": 1, "top5": 1, "mAP": 1, "exact": 1, "loss": -1, "mae": -1, "rmse": -1}
_TOP = 5
THRESHOLD = 0.5  # the probability from which on a label is said to be there


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a model is trained for.

    Attributes:
      kind: see `vit_jax.models.spec.TARGETS`; empty: none of these.
      best: the figure of a validation that says which checkpoint is best.
      roots: figures whose average is told as its square root.
      wanted: a description of the labels that it takes, for errors.
      one_an_output: whether a label has a number for each output of the model.
    """

    kind: ClassVar[str] = ""
    best: ClassVar[str] = "loss"
    roots: ClassVar[tuple[str, ...]] = ()
    wanted: ClassVar[str] = "any labels"
    one_an_output: ClassVar[bool] = False

    @property
    def target(self) -> Target | None:
        """What the outputs are, for the model's `spec`; None: logits of classes."""
        return None

    @property
    def figures(self) -> Mapping[str, Measure]:
        """What rows show beside the loss: of each example, averaged."""
        return {}

    @property
    def of_all(self) -> OfAll | None:
        """Figures of a whole split, which are no averages; None: there are none."""
        return None

    def takes(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether labels of this shape and type are what the loss is of."""
        return True

    def label_limit(self, num_classes: int, class_names: Sequence[str]) -> int | None:
        """`ImageSource.label_limit` of a source with these names, for a model of these classes."""
        return None

    def losses(self, outputs: Any, targets: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """The loss of each example, and what its prediction is read from.

        Args:
          outputs: of the model.
          targets: labels, or shares of classes.
          train: smoothing and weights are of training alone.
        """
        raise NotImplementedError

    def reading(self, outputs: jax.Array) -> jax.Array:
        """Outputs of a model in eval mode as what a user reads: probabilities, or numbers."""
        raise NotImplementedError

    def shown(self, num_classes: int) -> tuple[int, float]:
        """How many classes are told of an image, and from which probability on."""
        return _TOP, 0.0


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """One class of each image.

    Attributes:
      label_smoothing: of training.
      class_weights: of training, (classes,); None: 1.
    """

    kind: ClassVar[str] = "classification"
    best: ClassVar[str] = "top1"
    wanted: ClassVar[str] = "classes"
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    @property
    def figures(self) -> Mapping[str, Measure]:
        """The label is the first class, or among the first five."""
        return {"top1": _among_the_first(1), "top5": _among_the_first(5)}

    def takes(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """An integer."""
        return not shape and dtype.kind == "i"

    def label_limit(self, num_classes: int, class_names: Sequence[str]) -> int | None:
        """The model's classes, where nothing names those of the source."""
        return None if class_names else num_classes

    def losses(self, outputs: Any, targets: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Softmax cross entropy."""
        if not train:
            return classification_loss(outputs, targets)
        return classification_loss(outputs, targets, self.label_smoothing, self.class_weights)

    def reading(self, outputs: jax.Array) -> jax.Array:
        """Probabilities that sum to 1."""
        return jax.nn.softmax(wide(outputs))


@dataclasses.dataclass(frozen=True)
class MultiLabel(Objective):
    """Any number of labels an image, each by itself.

    Attributes:
      positive_weights: of training, (labels,): see `binary_cross_entropy`; None: 1.
    """

    kind: ClassVar[str] = "multilabel"
    best: ClassVar[str] = "mAP"
    wanted: ClassVar[str] = "a 0 or 1 for each label, such as those of a labels_file"
    one_an_output: ClassVar[bool] = True
    positive_weights: tuple[float, ...] | None = None

    @property
    def target(self) -> Target | None:
        """Logits of labels, each by itself."""
        return Target(self.kind)

    @property
    def figures(self) -> Mapping[str, Measure]:
        """Every label is right, where those of a probability of a half are said to be there."""
        return {"exact": lambda logits, labels: ((logits >= 0) == (labels > 0)).all(axis=-1)}

    @property
    def of_all(self) -> OfAll | None:
        """The mean of the labels' average precisions."""
        return _mean_average_precision

    def takes(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """A row of numbers."""
        return len(shape) == 1

    def label_limit(self, num_classes: int, class_names: Sequence[str]) -> int | None:
        """Each label is there or is not."""
        return 2

    def losses(self, outputs: Any, targets: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Binary cross entropy."""
        weights = self.positive_weights if train else None
        return of_heads(lambda head: binary_cross_entropy(head, targets, weights), outputs)

    def reading(self, outputs: jax.Array) -> jax.Array:
        """The probability of each label."""
        return jax.nn.sigmoid(wide(outputs))

    def shown(self, num_classes: int) -> tuple[int, float]:
        """All labels that are more likely there than not."""
        return num_classes, THRESHOLD


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Numbers.

    Attributes:
      loss: "mse" or "l1", of the standardised numbers.
      mean, std: of each number; empty: 0 and 1.
    """

    kind: ClassVar[str] = "regression"
    roots: ClassVar[tuple[str, ...]] = ("rmse",)
    wanted: ClassVar[str] = "floats, such as of a labels_file"
    one_an_output: ClassVar[bool] = True
    loss: str = "mse"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def target(self) -> Target | None:
        """Numbers, standardised."""
        return Target(self.kind, self.mean, self.std)

    @property
    def figures(self) -> Mapping[str, Measure]:
        """Errors in the unit of the labels; that of the squares is told as its root."""
        return {
            "mae": lambda found, labels: jnp.abs(_error(found, labels)).mean(axis=-1),
            "rmse": lambda found, labels: jnp.square(_error(found, labels)).mean(axis=-1),
        }

    def takes(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """A float, or a row of them."""
        return len(shape) <= 1 and dtype.kind == "f"

    def losses(self, outputs: Any, targets: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Squared or absolute error of standardised numbers, and the numbers themselves."""
        measure = jnp.square if self.loss == "mse" else jnp.abs

        def loss(head: jax.Array) -> jax.Array:
            found = wide(head)
            wanted = _columns(targets).astype(found.dtype)
            if self.mean:
                mean, std = (jnp.asarray(each, found.dtype) for each in (self.mean, self.std))
                wanted = (wanted - mean) / std
            return measure(found - wanted).mean(axis=-1)

        losses, found = of_heads(loss, outputs)
        return losses, self.reading(found)

    def reading(self, outputs: jax.Array) -> jax.Array:
        """The numbers in the unit of the labels."""
        numbers = wide(outputs)
        if not self.mean:
            return numbers
        mean, std = (jnp.asarray(each, numbers.dtype) for each in (self.mean, self.std))
        return numbers * std + mean


@dataclasses.dataclass(frozen=True)
class Given(Objective):
    """A loss of the caller, or one that the model computes itself (MAE's reconstruction).

    Attributes:
      loss: (outputs, labels) -> (B,); None: the outputs are the losses.
    """

    loss: Measure | None = None

    def losses(self, outputs: Any, targets: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """The loss of each example, and the model's outputs as they are."""
        found = outputs if self.loss is None else self.loss(outputs, targets)
        return wide(found), outputs


def make_objective(
    config: TrainConfig,
    loss: Measure | None = None,
    train: ImageSource | None = None,
    num_classes: int = 0,
) -> Objective:
    """The objective of a run.

    Args:
      config: of the run.
      loss: of the caller; None: the config's.
      train: the training split, whose labels are counted for `loss.balanced`; None: it is not
        opened, in a run that is only planned.
      num_classes: outputs of the model.

    Raises:
      ValueError: weights, means or deviations that are not one a class or number; a class or label
        without an image cannot be balanced.
    """
    fields = config.loss
    if loss is not None or fields.kind == "reconstruction":
        return Given(loss)
    for name in ("class_weights", "target_mean", "target_std"):
        given = getattr(fields, name)
        if given is not None and num_classes and len(given) != num_classes:
            raise ValueError(
                f"config.loss.{name}: wanted {num_classes} numbers, one for each output of the "
                f"model, got {len(given)}"
            )
    if fields.target == "regression":
        return Regression(fields.kind, fields.target_mean or (), fields.target_std or ())
    weights = fields.class_weights
    if fields.balanced and train is not None:
        weights = _balanced_weights(train, fields.target, num_classes)
    if fields.target == "multilabel":
        return MultiLabel(weights)
    return Classification(fields.label_smoothing, weights)


def objective_of(target: Target | None) -> Objective:
    """The objective of a trained model, by its `spec.target`."""
    if target is None:
        return Classification()
    if target.kind == "multilabel":
        return MultiLabel()
    return Regression("mse", target.mean, target.std)


def best_of(
    config: TrainConfig, objective: Objective, metrics: Mapping[str, Any]
) -> tuple[int, str]:
    """The figure of a validation that says which checkpoint is best, and its sign: 1 is "more".

    Args:
      config: of the run.
      objective: of the run.
      metrics: of the caller, by name.

    Raises:
      ValueError: there is no such figure, or nothing says which of its values are better.
    """
    known = ["loss", *objective.figures, *metrics]
    if objective.of_all is not None:
        known.append(objective.best)
    name = config.evaluation.metric or objective.best
    if name not in known:
        raise ValueError(
            f"config.evaluation.metric: wanted a figure of this run's validation "
            f"({', '.join(known)}), got {name!r}"
        )
    if config.evaluation.mode != "auto":
        return (1 if config.evaluation.mode == "max" else -1), name
    if name not in DIRECTIONS:
        raise ValueError(
            f'config.evaluation.mode: wanted "max" or "min" for the metric {name!r} of the caller'
        )
    return DIRECTIONS[name], name


def average_precision(
    scores: Float[np.ndarray, "images"], labels: Bool[np.ndarray, "images"]
) -> float:
    """The area under precision over recall: sum of (R_n - R_{n-1}) P_n over falling thresholds.

    As scikit-learn's `average_precision_score`; equal scores share a threshold.

    Returns:
      The average precision; nan where no label is there.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores, there = scores[order], labels[order]
    ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))
    hits = np.cumsum(there)[ends]
    if not hits[-1]:
        return float("nan")
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (ends + 1)).sum())


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """That of each label, of scores and labels (images, labels); nan where it is nowhere."""
    pairs = zip(scores.T, labels.T > 0, strict=True)
    return np.array([average_precision(*pair) for pair in pairs])


def _mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    found = average_precisions(scores, labels)
    if np.isnan(found).all():
        raise ValueError("mAP: no image of the split has any label")
    return {"mAP": float(np.nanmean(found))}


def _balanced_weights(train: ImageSource, target: str, num_classes: int) -> tuple[float, ...]:
    labels = labels_of(train)
    if target == "classification":
        counts = np.bincount(labels, minlength=num_classes)
        missing, weights = counts == 0, len(labels) / np.maximum(counts, 1) / len(counts)
    else:
        counts = (labels > 0).sum(axis=0)
        missing, weights = counts == 0, (len(labels) - counts) / np.maximum(counts, 1)
    for index in np.flatnonzero(missing)[:1]:
        names = train.class_names
        name = names[index] if index < len(names) else index
        raise ValueError(f"config.loss.balanced: no image of {train.name} has the label {name}")
    return tuple(weights.tolist())


def _among_the_first(k: int) -> Measure:
    return lambda logits, labels: label_ranks(logits, labels) < k


def _columns(labels: jax.Array) -> Float[Array, "batch numbers"]:
    """Labels (B,) or (B, numbers) as (B, numbers)."""
    return labels.reshape(len(labels), -1)


def _error(found: jax.Array, labels: jax.Array) -> jax.Array:
    return found - _columns(labels).astype(found.dtype)
