"""Images as a model takes them: decoded, resized, cropped and normalised as its `spec` says."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.augment import make_eval_preprocess
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.inference.images import ImageFiles
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
    source = image_files(model, images)
    shown_images = np.stack([example["image"] for example in source.stream(range(len(source)))])
    for index, why in source.unreadable.items():
        path = source.path(index)
        raise ValueError(why if path is None else f"{path}: {why}")
    return preparation(model)(jnp.asarray(shown_images))


def image_files(model: VisionModel[Any], images: Any) -> ImageFiles:
    """Images without labels, as evaluation shows them.

    Args:
      model: of a known preprocessing.
      images: as of `preprocess`.

    Raises:
      ValueError: as `preprocess`, but for files that cannot be read: the source tells them.
    """
    return ImageFiles(images, model.in_chans, functools.partial(shown, model), host_size(model))


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
