"""Images as a pretrained MAE completes them."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.inference.preprocess import preprocess, preprocessing_of
from vit_jax.layers.forms import eval_graph
from vit_jax.layers.masking import patch_noise
from vit_jax.layers.windows import window_merge
from vit_jax.models.mae import Mae


@dataclasses.dataclass(frozen=True)
class Completed:
    """Images, each (B, H, W, C) in [0, 1].

    Attributes:
      images: as the model sees them.
      masked: hidden patches are grey.
      predicted: hidden patches are the model's, the others the image's.
    """

    images: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray


def reconstruct(
    model: Any, images: Sequence[str | os.PathLike[str] | np.ndarray], *, seed: int = 0
) -> Completed:
    """Hides patches of images, and predicts them.

    Where the model was pretrained on normalised patches (`norm_pix_loss`), its prediction is put
    back with the mean and deviation of the true patch, which nothing else knows.

    Args:
      model: an `Mae` with its decoder.
      images: see `vit_jax.preprocess`.
      seed: of the patches that are hidden, see `layers.masking.patch_noise`.

    Raises:
      ValueError: another model; see `preprocess`.
    """
    if not isinstance(model, Mae) or not model.config.decoder:
        raise ValueError(
            f"{model.spec.source or model.spec.name}: wanted an MAE with its decoder, such as a "
            "run of configs/imagenette_mae.py"
        )
    x = preprocess(model, images)
    rows, columns = model.token_grid(*x.shape[1:3])
    noise = patch_noise(seed, 0, jnp.arange(len(x)), rows * columns)
    graph = eval_graph(model, None)

    @jax.jit
    def run(variables: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        made = nnx.merge(graph, variables)
        _, patches, mask = made.reconstruct(x, noise)
        own = made.pixels(x)
        if made.config.norm_pix_loss:
            mean, deviation = made.pixel_scale(own)
            patches = patches * deviation + mean
        return own, patches, mask

    true, patches, mask = (np.asarray(found) for found in run(nnx.state(model), x))
    preprocessing = preprocessing_of(model)
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)

    def picture(values: np.ndarray) -> np.ndarray:
        patch = model.patch_embed.patch_size
        pixels = values.reshape(-1, math.prod(patch), x.shape[-1])
        return (window_merge(pixels, patch, (x.shape[1], x.shape[2])) * std + mean).clip(0, 1)

    hidden = mask[..., None] > 0
    return Completed(
        picture(true),
        picture(np.where(hidden, 0.0, true)),
        picture(np.where(hidden, patches, true)),
    )
