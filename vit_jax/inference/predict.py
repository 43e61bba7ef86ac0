"""What a trained model sees in images."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from vit_jax.inference.classifier import Classifier
from vit_jax.inference.images import ImageFiles
from vit_jax.inference.preprocess import image_files
from vit_jax.models.base import VisionModel
from vit_jax.training.losses import wide


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
      path: of the file; None for an image that was given in memory.
      top: the most probable classes, the most probable first; empty if it could not be read.
      error: why it could not be read; None if it could.
    """

    path: str | None
    top: tuple[Guess, ...]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, and as `vit-jax predict --json` prints it."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, "top": [dataclasses.asdict(guess) for guess in self.top]}


def predict(
    model: VisionModel[Any],
    images: Any,
    top: int = 5,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """Classifies images, prepared as the model's training prepared those of its evaluation.

    Files are read and decoded by threads while the model computes, a few batches ahead: memory does
    not grow with their number. The last batch is filled up, so that one program is compiled.

    Args:
      model: of `vit_jax.from_pretrained`.
      images: a path, a PIL image or a uint8 array (H, W, C), or a sequence of them, or a uint8
        array (B, H, W, C).
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
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not model.num_classes:
        raise ValueError(
            f"{model.spec.source or model.spec.name}: the model has no head (num_classes=0)"
        )
    source = image_files(model, images)
    size = min(batch_size, len(source))
    return _predictions(Classifier.of(model), source, top, size, num_workers)


def _predictions(
    classifier: Classifier, source: ImageFiles, top: int, batch_size: int, num_workers: int | None
) -> Iterator[Prediction]:
    spec, num_classes = classifier.model.spec, classifier.model.num_classes

    @functools.partial(jax.jit, static_argnums=2)
    def step(variables: nnx.State, images: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        probabilities = jax.nn.softmax(wide(classifier.logits(variables, images)))
        return jax.lax.top_k(probabilities, count)

    with classifier.batches(source, batch_size, num_workers) as batches:
        for batch in batches:
            images = classifier.on_device({"image": batch["image"]})["image"]
            found = jax.device_get(step(classifier.variables, images, min(top, num_classes)))
            for index, probabilities, classes in zip(batch["index"].tolist(), *found, strict=True):
                if index < 0:
                    continue
                path = source.path(index)
                if index in source.unreadable:
                    yield Prediction(path, (), source.unreadable[index])
                    continue
                guesses = zip(classes.tolist(), probabilities.tolist(), strict=True)
                yield Prediction(path, tuple(Guess(spec.label(i), i, p) for i, p in guesses))
