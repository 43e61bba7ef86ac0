"""Images as a model takes them: decoded, resized, cropped and normalised as its `spec` says."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.augment import make_eval_preprocess
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.pil_pixels import pixels_of
from vit_jax.inference.images import check_array, check_channels, read_image
from vit_jax.models.base import VisionModel
from vit_jax.models.spec import Preprocessing


def preprocess(model: VisionModel[Any], images: Any) -> jax.Array:
    """Prepares images as `predict` and `evaluate` do.

    Args:
      model: its `spec.preprocessing` says how.
      images: a path, a PIL image or a uint8 array (H, W, C), or a sequence of them, or a uint8
        array (B, H, W, C).

    Returns:
      (B, H, W, C) of the model's size: normalised, float32, or float64 where the model computes in
      float64.

    Raises:
      ValueError: nothing states the model's preprocessing; no images; a file that cannot be read;
        an array of another type, shape or number of channels.
    """
    preprocessing_of(model)
    if isinstance(images, str | os.PathLike) or hasattr(images, "convert"):
        images = [images]
    elif isinstance(images, np.ndarray | jax.Array):
        images = np.asarray(images)
        images = images[None] if images.ndim == 3 else images
    images = [shown(model, _pixels(image, model.in_chans)) for image in images]
    if not images:
        raise ValueError("wanted one image or more, got none")
    return preparation(model)(jnp.asarray(np.stack(images)))


def preprocessing_of(model: VisionModel[Any]) -> Preprocessing:
    """How the model's images are prepared.

    Raises:
      ValueError: nothing states it.
    """
    if model.spec.preprocessing is None:
        raise ValueError(
            f"{model.spec.source or model.spec.name}: nothing states the mean and standard "
            f"deviation of its {model.in_chans}-channel images: give a work directory of a run, or "
            "set model.spec = dataclasses.replace(model.spec, preprocessing=...)"
        )
    return model.spec.preprocessing


def host_size(model: VisionModel[Any]) -> tuple[int, int]:
    """(height, width) at which images of other sizes cross to the devices.

    That of the images that the model was trained on, where they shared one: it was shown them
    resized from there, with as little detail. Else what the model takes.
    """
    return preprocessing_of(model).resized_from or model.input_size


def shown(model: VisionModel[Any], image: np.ndarray) -> np.ndarray:
    """What evaluation shows of an image (H, W, C) uint8: resized and cropped, at `host_size`."""
    preprocessing = preprocessing_of(model)
    return evaluation_crop(
        image,
        *host_size(model),
        preprocessing.crop_fraction,
        preprocessing.interpolation,
        preprocessing.crop_mode,
    )


def preparation(model: VisionModel[Any]) -> Callable[[jax.Array], jax.Array]:
    """A function of images (B, h, w, C) uint8, which resizes and normalises them; for `jax.jit`."""
    preprocessing = preprocessing_of(model)
    return make_eval_preprocess(
        model.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        dtype=jnp.promote_types(model.dtype, jnp.float32),
    )


def _pixels(image: Any, channels: int) -> np.ndarray:
    """One image as (H, W, C) uint8."""
    is_path = isinstance(image, str | os.PathLike)
    if is_path or hasattr(image, "convert"):
        check_channels(channels)
        return read_image(image, channels) if is_path else pixels_of(image, channels)
    array = np.asarray(image)
    check_array("an image", array, channels)
    return array
