"""Which registered models a set of weights fits."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, design_of, list_models, model_fields
from vit_jax.weights.state_dict import torch_shapes


def models_that_fit(arrays: Mapping[str, np.ndarray], limit: int = 5) -> list[str]:
    """Registered names whose own arrays are these, but for the head: there may be none.

    Args:
      arrays: under the names of the models' PyTorch sources.
      limit: how many names at most.
    """
    fitting = []
    for name in list_models():
        if not _may_fit(arrays, design_of(name), model_fields(name)):
            continue
        wanted = _without_heads(torch_shapes(abstract_model(name)), design_of(name))
        if wanted == _without_heads({k: v.shape for k, v in arrays.items()}, design_of(name)):
            fitting.append(name)
            if len(fitting) == limit:
                break
    return fitting


def number_of_classes(
    arrays: Mapping[str, np.ndarray], design: type[VisionModel[Any]]
) -> int | None:
    """The rows of the last Linear; None where there is none, or one that is no matrix."""
    heads = (arrays.get(f"{layer}.weight") for layer in design.heads)
    return next((head.shape[0] for head in heads if head is not None and head.ndim), None)


def _without_heads(
    shapes: Mapping[str, tuple[int, ...]], design: type[VisionModel[Any]]
) -> dict[str, tuple[int, ...]]:
    return {k: v for k, v in shapes.items() if k.rpartition(".")[0] not in design.heads}


def _may_fit(
    arrays: Mapping[str, np.ndarray], design: type[VisionModel[Any]], fields: Mapping[str, Any]
) -> bool:
    """What can be told without building the model: width and depth."""
    positions = arrays.get(design.position_name)
    if positions is None or positions.shape[-1:] != (fields["embed_dim"],):
        return False
    layers = (re.match(rf"{re.escape(design.layers_name)}\.(\d+)\.", name) for name in arrays)
    depth = len({match[1] for match in layers if match})
    return fields.get("depth", depth) == depth
