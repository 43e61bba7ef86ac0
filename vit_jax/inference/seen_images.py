"""Images as a model sees them, for pictures."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.resize import resize_bilinear
from vit_jax.inference.images import check_channels, read_image
from vit_jax.models.base import VisionModel
from vit_jax.models.spec import Preprocessing
from vit_jax.training.objectives import objective_of


def seen_images(paths: Sequence[str | os.PathLike[str]], model: VisionModel[Any]) -> np.ndarray:
    """Reads image files and crops and resizes them as the model's evaluation does.

    Args:
      paths: at least one.
      model: its preprocessing tells the crop; where it has none the image is not cropped more than
        its shape needs.

    Returns:
      (B, H, W, C) uint8 of the size that the model is given.

    Raises:
      ValueError: a file is no image; the model takes neither 1 nor 3 channels.
    """
    check_channels(model.in_chans)
    crop, size = model.spec.preprocessing or Preprocessing((), ()), model.input_size
    first = crop.resized_from or size
    images = []
    for path in paths:
        image = read_image(path, model.in_chans)
        image = evaluation_crop(
            image, *first, crop.crop_fraction, crop.interpolation, crop.crop_mode
        )
        images.append(np.asarray(resize_bilinear(jnp.asarray(image), size)))
    return np.stack(images)


def guesses(model: VisionModel[Any], images: jax.Array) -> list[str]:
    """For each image the likeliest class and its probability, or numbers; "" without outputs."""
    if not model.num_classes:
        return [""] * len(images)
    logits = jax.jit(lambda images: model(images))(images)
    logits = logits if logits.ndim == 2 else logits.mean(axis=1)  # of global_pool "": of all tokens
    objective = objective_of(model.spec.target)
    found = np.asarray(objective.reading(logits.astype(jnp.float32)))
    if objective.kind == "regression":
        return [", ".join(f"{number:.4g}" for number in row) for row in found]
    return [f"{model.spec.label(int(row.argmax()))} ({row.max():.0%})" for row in found]
