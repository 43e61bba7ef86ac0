"""What a source states of its model, held against the model that its weights are for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_jax.models.base import VisionModel
from vit_jax.models.config import DesignConfig
from vit_jax.models.registry import abstract_model, design_of, model_fields
from vit_jax.weights.spec_json import StatedSpec


def check_description(stated: StatedSpec, source: str) -> None:
    """Refuses the description of a model or a field that there is not."""
    if stated.name is None or stated.fields is None:
        return
    try:
        known = model_fields(stated.name)
    except ValueError as error:
        raise ValueError(f"{source!r} is of a model that is not here: {error}") from error
    if unknown := [field for field in stated.fields if field not in known]:
        raise ValueError(
            f"{source!r} states the field {unknown[0]!r}, which {stated.name} has not; its fields: "
            f"{', '.join(known)}"
        )


def check_stated(
    model: VisionModel[Any],
    stated: StatedSpec,
    source: str,
    resize: str | None = None,
    *,
    head: Any = None,
    known_fields: Mapping[str, Any] | None = None,
) -> dict[str, tuple[int, int]]:
    """Refuses a source that states another model than the one its weights are for.

    Args:
      model: of the weights to be.
      stated: what the source says of its own.
      source: of the weights, for errors.
      resize: whether, and how, what depends on the image size is adapted.
      head: see `adapt`: with "drop" what a model has for its head alone is not compared.
      known_fields: single fields that the source says.

    Returns:
      The grids of the source's tables of positions and biases that are others, by name.

    Raises:
      ValueError: a field that contradicts the model's, or positions for another grid.
    """
    adapted = model.head_fields if head == "drop" else ()
    if resize is not None and model.patch_weights().is_resampled:
        adapted += ("patch_size",)
    for field, value in {**(known_fields or {}), **(stated.fields or {})}.items():
        own = getattr(model.config, field, value)
        if field in adapted:
            continue
        if not model.config.is_free(field) and own != _normalised(model.config, field, value):
            raise ValueError(
                f"{source!r} is of a model with {field}={value!r}, this one has {own!r}: "
                f"create_model(..., {field}={value!r})"
            )
    grids = _stated_grids(stated, model)
    if grids and resize is None:
        name, (rows, columns) = next(iter(grids.items()))
        own = model.learned_grids[name]
        raise ValueError(
            f"{name} of {source!r} is for a grid of {rows}x{columns} patches, this model's for "
            f"{own[0]}x{own[1]}: resize='source' (--resize source, init_resize) resizes it"
        )
    return grids


def _normalised(config: DesignConfig, field: str, value: Any) -> Any:
    """The value as a config holds it: 4 for a size of (4, 4)."""
    try:
        return getattr(dataclasses.replace(config, **{field: value}), field)
    except ValueError:  # it does not go with the other fields, and so differs
        return value


def _stated_grids(stated: StatedSpec, model: VisionModel[Any]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the learned tables of the model that a source states, by name.

    Without those that are this model's; none where it states no model of this design.
    """
    own = model.learned_grids
    if stated.name is None or stated.fields is None or design_of(stated.name) is not type(model):
        return {}
    if not own:
        return {}
    theirs = abstract_model(stated.name, **stated.fields).learned_grids
    return {name: grid for name, grid in theirs.items() if own.get(name, grid) != grid}
