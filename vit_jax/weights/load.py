"""A trained model, from whatever holds one."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model
from vit_jax.weights.fit import models_that_fit
from vit_jax.weights.pretrained import load_into, read_source, stated_fields


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for images.

    Attributes:
      model: in eval mode; its `preprocessing` is that of the weights, or else the name's.
      name: registered.
      image_size: (height, width) of the images that it is given.
      class_names: one for each logit; the numbers from "0" where nothing names the classes.
      source: where the weights came from.
      data_size: (height, width) of the images that it was trained on, where all shared one and
        were shown whole, at whatever `image_size`; None where they varied, or nothing states it.
      notes: what was unwrapped, adapted or left on the way, a line each.
    """

    model: VisionModel
    name: str
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    data_size: tuple[int, int] | None = None


def load_model(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
    ema: bool | None = None,
) -> LoadedModel:
    """Builds the model that was trained and loads its weights.

    Args:
      source: a work directory of a run, or a checkpoint in it, which knows its model; or weights as
        `vit_jax.load_pretrained` takes them.
      name: the registered model; None: the run's, or the only one that the weights fit.
      fields: constructor fields beside what the source states (a run's fields, the number of
        classes, norm_eps, num_heads).
      ema: of a run the averaged weights (True) or the raw ones.

    Raises:
      ValueError: no such source, a damaged one, or one that does not fit the model; no name where
        the weights fit several models or none, which are named.
    """
    weights = read_source(source, ema)
    run_name = None if weights.model is None else weights.model[0]
    chosen = name or run_name or _only_model(weights.arrays, str(source))
    made = {**stated_fields(weights, chosen), **(fields or {})}
    model = abstract_model(chosen, **made)  # every array is loaded: none need be drawn
    report = load_into(model, weights, str(source))
    model.eval()
    side = weights.image_size
    names = weights.class_names
    if len(names) != model.num_classes:
        names = (*names, *map(str, range(len(names), model.num_classes)))[: model.num_classes]
    return LoadedModel(
        model,
        chosen,
        model.img_size if side is None else (side, side),
        names,
        str(source),
        (*report.adapted, *report.left),
        weights.data_size,
    )


def _only_model(arrays: Mapping[str, Any], source: str) -> str:
    fitting = models_that_fit(arrays)
    if len(fitting) == 1:
        return fitting[0]
    which = f"they fit {', '.join(fitting)}" if fitting else "no registered model fits as it is"
    raise ValueError(
        f"the weights {source!r} do not say which model they are of ({which}): name it with --model"
    )
