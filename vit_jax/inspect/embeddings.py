"""The first layer's filters and the learned positions (Dosovitskiy et al. 2020, figure 7)."""

import jax.numpy as jnp
import numpy as np

from vit_jax.models.base import VisionModel


def first_filters(model: VisionModel) -> np.ndarray:
    """The filters of the first projection, in float32 or wider: (D, height, width, C)."""
    filters = np.asarray(model.pixel_filters(), np.float64)
    return np.moveaxis(filters, -1, 0)


def position_similarity(model: VisionModel) -> np.ndarray:
    """The cosine between the positions of any two patches: (rows, columns, rows, columns).

    Raises:
      ValueError: the model's positions are not learned.
    """
    positions = model.patch_positions()
    if positions is None:
        raise ValueError(
            f"the positions of a {type(model).__name__} are computed, not learned; models that "
            "learn them: vit_*, deit_*, deit3_*, dinov2_*, clip_*, siglip*, vit_classifier, "
            "vit_encoder, vit_modular"
        )
    table = np.asarray(positions.astype(jnp.promote_types(positions.dtype, jnp.float32)))
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.where(norms > 0, norms, 1)  # zeros, as vit_modular starts, are like nothing
    grid = model.token_grid(*model.img_size)
    return (unit @ unit.T).reshape(*grid, *grid)
