"""The model that a name or a source means, without its weights where these are not needed."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, list_models
from vit_jax.weights.load import load_model
from vit_jax.weights.run_folder import model_of_run


def model_shapes(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> VisionModel:
    """The model, its arrays as shapes alone (`nnx.eval_shape`) unless it takes weights to know it.

    Args:
      source: a registered name, or what `load_model` takes; of a run only the config is read.
      name: see `load_model`; not with a registered name.
      fields: constructor fields beside what the name or source states.

    Raises:
      ValueError: no such name or source; or see `load_model`.
    """
    fields = fields or {}
    path = pathlib.Path(source)
    if str(source) in list_models():
        if name is not None:
            raise ValueError(f"--model is for weights that do not say theirs, got {str(source)!r}")
        name = str(source)
    elif (run := model_of_run(path)) is not None and name in (None, run.name):
        name, fields = run.name, {**run.fields, **fields}
    elif path.name == str(source) and not path.suffix and not path.exists():
        name = str(source)  # a name that the registry refuses, with near ones
    else:
        return load_model(source, name=name, fields=fields).model
    return abstract_model(name, **fields)
