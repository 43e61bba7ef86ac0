"""Which registered models a set of weights fits."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from vit_jax.models.registry import abstract_model, list_models, model_fields
from vit_jax.weights.state_dict import torch_shapes

# A design, told by one of its names, and where the width of a token stands there.
_DESIGNS = (
    ("tokens_to_token.project.weight", "t2t_vit_*", 0),
    ("patch_embedding_layer.position_emb.weight", "vit_classifier", 1),
    ("positon_embedding_table", "vit_encoder", 1),
    ("pacth_emb.conv.weight", "vit_modular", 0),
    ("patch_embed.proj.weight", "[vd]*_patch*", 0),
)
# The last Linear of each design, whose rows are the classes.
_HEADS = ("head", "head_dist", "logits_layer", "linear_layer", "classification.linear2")


def _depth(names: Iterable[str]) -> int:
    blocks = (re.match(r"(?:blocks|\w+\.layers|\w*layers?)\.(\d+)\.", name) for name in names)
    return len({match[1] for match in blocks if match})


def models_that_fit(arrays: Mapping[str, np.ndarray], limit: int = 5) -> list[str]:
    """Registered names whose own arrays are these, but for the number of classes.

    Args:
      arrays: under the names of the models' PyTorch sources.
      limit: how many names at most.
    """
    design = next((d for d in _DESIGNS if d[0] in arrays and arrays[d[0]].ndim > d[2]), None)
    if design is None:
        return []
    marker, pattern, axis = design
    width, depth = arrays[marker].shape[axis], _depth(arrays)
    fitting = []
    for name in list_models(pattern):
        fields = model_fields(name)
        if fields["embed_dim"] != width or fields.get("depth", depth) != depth:
            continue
        shapes = torch_shapes(abstract_model(name))
        same = shapes.keys() == arrays.keys() and all(
            shape == arrays[key].shape or is_of_classes(key) for key, shape in shapes.items()
        )
        if same:
            fitting.append(name)
            if len(fitting) == limit:
                break
    return fitting


def is_of_classes(key: str) -> bool:
    """Whether it is an array of the last Linear, whose rows are the classes."""
    return key.rpartition(".")[0] in _HEADS


def number_of_classes(arrays: Mapping[str, np.ndarray]) -> int | None:
    """The rows of the last Linear; None where there is none, or one that is no matrix."""
    heads = (arrays.get(f"{layer}.weight") for layer in _HEADS)
    return next((head.shape[0] for head in heads if head is not None and head.ndim), None)
