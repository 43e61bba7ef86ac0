"""Images as a model sees them, for pictures."""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.augment import make_eval_preprocess
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.resize import resize_bilinear
from vit_jax.inference.classifier import preprocessing_of
from vit_jax.inference.images import read_image
from vit_jax.models.base import Preprocessing, VisionModel
from vit_jax.weights.load import LoadedModel


def seen_images(
    paths: Sequence[str | os.PathLike[str]],
    model: VisionModel,
    size: tuple[int, int] | None = None,
    data_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads image files and crops and resizes them as the model's evaluation does.

    Args:
      paths: at least one.
      model: its `preprocessing` tells the crop; where it has none the image is not cropped more
        than its shape needs.
      size: (height, width) of the result; None is the model's.
      data_size: (height, width) of the images of the model's training: an image is brought to it
        first. One that has it (without it: `size`) is not cropped.

    Returns:
      (B, H, W, C) uint8.

    Raises:
      ValueError: a file is no image; the model takes neither 1 nor 3 channels.
    """
    if model.in_chans not in (1, 3):
        raise ValueError(f"wanted a model of 1 or 3 channels, got one of {model.in_chans}")
    crop = model.preprocessing or Preprocessing((), ())
    size = size or model.img_size
    first = data_size or size
    images = []
    for path in paths:
        image = read_image(path, model.in_chans)
        image = evaluation_crop(image, *first, crop.crop_fraction, crop.interpolation)
        images.append(np.asarray(resize_bilinear(jnp.asarray(image), size)))
    return np.stack(images)


def normalised(images: np.ndarray, loaded: LoadedModel) -> jax.Array:
    """Images (B, H, W, C) uint8 of `seen_images` as the model takes them.

    Raises:
      ValueError: nothing states the mean and deviation that the model's images are normalised with.
    """
    preprocessing = preprocessing_of(loaded)
    prepare = make_eval_preprocess(
        (images.shape[1], images.shape[2]), mean=preprocessing.mean, std=preprocessing.std
    )
    return prepare(jnp.asarray(images))


def guesses(model: VisionModel, images: jax.Array, class_names: Sequence[str]) -> list[str]:
    """For each image the likeliest class and its probability; "" without classes."""
    if not model.num_classes:
        return [""] * len(images)
    logits = jax.jit(lambda images: model(images))(images)
    logits = logits if logits.ndim == 2 else logits.mean(axis=1)  # of global_pool "": of all tokens
    probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))
    return [f"{class_names[row.argmax()]} ({row.max():.0%})" for row in probabilities]
