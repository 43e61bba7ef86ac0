"""A model in a few lines of text."""

import dataclasses
import math
from typing import Any

import jax
from flax import nnx

# Shown also where they are the design's defaults.
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
_NAMED = 3  # classes


def num_parameters(model: nnx.Module, kinds: Any = nnx.Param) -> int:
    """How many numbers the variables of these kinds hold; the model may be abstract or traced."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, kinds)))


def describe(model: Any) -> str:
    """Name, parameters, mode; sizes and what is not the design's default; images, outputs, source.

    Args:
      model: a `VisionModel`; also an abstract or traced one.
    """
    spec, config = model.spec, model.config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    fields = {
        name: value for name, value in spec.fields if name in _SIZES or value != defaults[name]
    }
    order = [name for name in _SIZES if name in fields]
    order += [name for name in fields if name not in order]
    mode = "eval" if model.deterministic else "train"
    lines = [
        f"{spec.name}: {type(model).__name__}, {num_parameters(model):,} parameters, {mode} mode",
        f"fields: {', '.join(f'{name}={fields[name]!r}' for name in order)}",
        f"images: {_images(model)}",
    ]
    if spec.target is not None:
        lines.append(f"outputs: {spec.target.kind}")
    if spec.class_names:
        names = spec.class_names
        more = ", ..." * (len(names) > _NAMED)
        lines.append(f"classes: {len(names):,}: {', '.join(names[:_NAMED])}{more}")
    if spec.source:
        lines.append(f"source: {spec.source}")
    return "\n  ".join(lines)


def _images(model: Any) -> str:
    shape = "x".join(map(str, (*model.input_size, model.in_chans)))
    stated = model.spec.preprocessing
    if stated is None:
        return f"{shape}; nothing states their mean and deviation"
    mean, std = (", ".join(f"{x:.4g}" for x in values) for values in (stated.mean, stated.std))
    return (
        f"{shape}, {stated.interpolation}, {stated.crop_mode} crop {stated.crop_fraction:.4g}, "
        f"mean {mean}, std {std}"
    )
