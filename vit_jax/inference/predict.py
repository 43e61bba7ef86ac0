"""What a trained model sees in images."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.inference.classifier import Classifier
from vit_jax.inference.images import ImageFiles, check_channels
from vit_jax.inference.preprocess import host_size, shown
from vit_jax.models.base import VisionModel
from vit_jax.training.losses import wide
from vit_jax.training.state import Arrays

Image = str | os.PathLike[str] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Guess:
    """A class that an image may be of: its name, its index, and the softmax's probability."""

    name: str
    index: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What an image is taken for.

    Attributes:
      path: of the file; None for an image given as an array.
      top: the most probable classes, the most probable first; empty if it could not be read.
      error: why it could not be read; None if it could.
    """

    path: str | None
    top: tuple[Guess, ...]
    error: str | None = None


def predict(
    model: VisionModel[Any],
    images: Sequence[Image],
    top: int = 5,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """Classifies images, prepared as the model's training prepared those of its evaluation.

    Files are read and decoded by threads while the model computes, a few batches ahead: memory does
    not grow with their number. The last batch is filled up, so that one program is compiled.

    Args:
      model: of `vit_jax.from_pretrained`.
      images: paths, or (H, W, C) uint8 arrays, C being the model's.
      top: classes to tell of each image; all where there are fewer.
      batch_size: images at a time.
      num_workers: threads; None: by the number of processors, 0: none.

    Returns:
      A prediction for each image, in order, as they come. A file that cannot be read has an `error`
      and stops nothing.

    Raises:
      ValueError: no images, an array of another type or shape, numbers out of range, or a model
        that states no preprocessing, or takes neither 1 nor 3 channels.
    """
    if not len(images):
        raise ValueError("wanted one image or more, got none")
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    files = [image for image in images if not isinstance(image, np.ndarray)]
    if files:
        check_channels(model.in_chans)
    if not model.num_classes:
        raise ValueError(
            f"{model.spec.source or model.spec.name}: the model has no head (num_classes=0)"
        )
    classifier = Classifier.of(model)
    source = ImageFiles(images, model.in_chans, functools.partial(shown, model), host_size(model))
    return _predictions(classifier, source, top, min(batch_size, len(images)), num_workers)


def _predictions(
    classifier: Classifier, source: ImageFiles, top: int, batch_size: int, num_workers: int | None
) -> Iterator[Prediction]:
    spec, num_classes = classifier.model.spec, classifier.model.num_classes

    @jax.jit
    def step(variables: Arrays, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        probabilities = jax.nn.softmax(wide(classifier.logits(variables, images)))
        return jax.lax.top_k(probabilities, min(top, num_classes))

    with classifier.batches(source, batch_size, num_workers) as batches:
        for batch, found in classifier.results(step, batches):
            for index, probabilities, classes in zip(batch["index"].tolist(), *found, strict=True):
                if index < 0:
                    continue
                image = source.images[index]
                path = None if isinstance(image, np.ndarray) else os.fspath(image)
                if index in source.unreadable:
                    yield Prediction(path, (), source.unreadable[index])
                    continue
                guesses = zip(classes.tolist(), probabilities.tolist(), strict=True)
                yield Prediction(path, tuple(Guess(spec.label(i), i, p) for i, p in guesses))
