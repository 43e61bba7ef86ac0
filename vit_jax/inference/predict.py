"""What a trained model sees in images."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.inference.classifier import Classifier
from vit_jax.inference.images import ImageFiles
from vit_jax.inference.preprocess import image_files
from vit_jax.models.base import VisionModel
from vit_jax.training.objectives import Objective, objective_of
from vit_jax.training.state import Arrays


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that an image may be of: its name, its index, and its probability.

    That of the softmax, or with several labels an image of the sigmoid.
    """

    name: str
    index: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What an image is taken for.

    Attributes:
      path: of the file; None for an image that was given in memory.
      top: the most probable classes, the most probable first; empty if it could not be read, or
        no label is probable enough.
      error: why it could not be read; None if it could.
      values: the numbers of a model of numbers; empty of others.
    """

    path: str | None
    top: tuple[Guess, ...]
    error: str | None = None
    values: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, and as `vit-jax predict --json` prints it."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        if self.values:
            return {"path": self.path, "values": list(self.values)}
        return {"path": self.path, "top": [dataclasses.asdict(guess) for guess in self.top]}


def predict(
    model: VisionModel[Any],
    images: Any,
    top: int | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    threshold: float | None = None,
) -> Iterator[Prediction]:
    """Classifies images, or reads the numbers of a regression, as the model's `spec.target` says.

    Images are prepared as the model's training prepared those of its evaluation. Files are read and
    decoded by threads while the model computes, a few batches ahead: memory does not grow with
    their number. The last batch is filled up, so that one program is compiled.

    Args:
      model: of `vit_jax.from_pretrained`.
      images: a path, a PIL image or a uint8 array (H, W, C), or a sequence of them, or a uint8
        array (B, H, W, C).
      top: classes to tell of each image; all where there are fewer. None: 5, or where an image may
        have several labels, all those from `threshold` on.
      batch_size: images at a time.
      num_workers: threads; None: by the number of processors, 0: none.
      threshold: the least probability that is told of; None: a half for several labels an image
        without `top`, else 0.

    Returns:
      A prediction for each image, in order, as they come. A file that cannot be read has an `error`
      and stops nothing.

    Raises:
      ValueError: no images, an array of another type or shape, numbers out of range, or a model
        that states no preprocessing, or takes neither 1 nor 3 channels.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
    objective = objective_of(model.spec.target)
    if objective.kind == "regression" and (top, threshold) != (None, None):
        raise ValueError("top and threshold are for classes, and this model tells numbers")
    if not model.num_classes:
        raise ValueError(
            f"{model.spec.source or model.spec.name}: the model has no head (num_classes=0)"
        )
    source = image_files(model, images)
    if top is None:
        top, least = objective.shown(model.num_classes)
        threshold = least if threshold is None else threshold
    choice = _Choice(objective, min(top, model.num_classes), threshold or 0.0)
    size = min(batch_size, len(source))
    return _predictions(Classifier.of(model), source, choice, size, num_workers)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """What is told of an image: so many classes, of at least this probability."""

    objective: Objective
    top: int
    threshold: float


def _predictions(
    classifier: Classifier,
    source: ImageFiles,
    choice: _Choice,
    batch_size: int,
    num_workers: int | None,
) -> Iterator[Prediction]:
    spec = classifier.model.spec
    is_numbers = choice.objective.kind == "regression"

    @jax.jit
    def step(variables: Arrays, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = choice.objective.reading(classifier.logits(variables, images))
        if is_numbers:
            return found, jnp.zeros(found.shape, jnp.int32)
        return jax.lax.top_k(found, choice.top)

    with classifier.batches(source, batch_size, num_workers) as batches:
        for batch, found in classifier.results(step, batches):
            for index, probabilities, classes in zip(batch["index"].tolist(), *found, strict=True):
                if index < 0:
                    continue
                path = source.path(index)
                if index in source.unreadable:
                    yield Prediction(path, (), source.unreadable[index])
                    continue
                if is_numbers:
                    yield Prediction(path, (), values=tuple(probabilities.tolist()))
                    continue
                guesses = [
                    Guess(spec.label(label), label, probability)
                    for label, probability in zip(
                        classes.tolist(), probabilities.tolist(), strict=True
                    )
                    if probability >= choice.threshold
                ]
                yield Prediction(path, tuple(guesses))
