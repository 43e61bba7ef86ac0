"""Which models a set of weights fits, and why it does not fit another."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, design_of, list_models, model_fields
from vit_jax.weights.state_dict import MisfitError, torch_shapes

_Shapes = Mapping[str, tuple[int, ...]]
_LINES = 10  # of an explanation
_LISTED = 5  # problems that are named one by one; of more, their number and the first of each kind


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
    depth = _depth(arrays, design)
    return fields.get("depth", depth) == depth


def _depth(names: Iterable[str], design: type[VisionModel[Any]]) -> int:
    layers = (re.match(rf"{re.escape(design.layers_name)}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in layers if match})


def explained(
    error: MisfitError,
    model: VisionModel[Any],
    arrays: Mapping[str, np.ndarray],
    source: str,
    notes: Sequence[str] = (),
) -> MisfitError:
    """The error with what it comes from, and what would help, in at most ten lines.

    Args:
      error: of `load_state_dict`.
      model: into which the weights do not fit.
      arrays: of the weights, under the names of the models' PyTorch sources.
      source: of the weights.
      notes: what was unwrapped or left.
    """
    wanted = torch_shapes(model)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    lines = [
        *_summary(error.problems),
        *_sizes(model, wanted, shapes),
        *_prefix(wanted, shapes),
        *_remedies(model, wanted, shapes),
    ]
    if fitting := models_that_fit(arrays):
        lines.append(f"registered models that these weights fit: {fitting}")
    lines = [*lines, *notes][: _LINES - 1]
    message = f"{source!r} does not fit the model, a {model.spec.name}:"
    return MisfitError(error.problems, "\n  ".join([message, ";\n  ".join(lines)]))


def _summary(problems: Sequence[str]) -> list[str]:
    """The problems: each, or where they are many the first of each kind and their number."""
    if len(problems) <= _LISTED:
        return list(problems)
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind, _, what = problem.partition(": ")
        kinds.setdefault(kind, []).append(what)
    lines = [
        f"{kind}: {what[0]}" + f" and {len(what) - 1} more" * (len(what) > 1)
        for kind, what in kinds.items()
    ]
    lines[-1] += " (vit-jax convert --list names all)"
    return lines


def _sizes(model: VisionModel[Any], wanted: _Shapes, shapes: _Shapes) -> list[str]:
    """How many layers of which width there are, where they are others."""
    design = type(model)
    (theirs, width), (own, own_width) = (
        (_depth(of, design), of.get(design.position_name, (None,))[-1]) for of in (shapes, wanted)
    )
    if not theirs or not width or (theirs, width) == (own, own_width):
        return []
    return [f"they have {theirs} layers of width {width}, this model {own} of {own_width}"]


def _prefix(wanted: _Shapes, shapes: _Shapes) -> list[str]:
    """A prefix without which more of the names are the model's."""
    fits: dict[str, int] = {}
    for name in shapes:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:cut])
                fits[prefix] = fits.get(prefix, 0) + 1
    best = max(fits, key=fits.__getitem__, default="")
    if not best:
        return []
    rename = f"vit-jax convert --rename '^{re.escape(best)}='"
    return [f"without the prefix {best!r} {fits[best]} of {len(wanted)} names fit ({rename})"]


def _remedies(model: VisionModel[Any], wanted: _Shapes, shapes: _Shapes) -> list[str]:
    """The adaptations of `adapt` that some of the arrays need."""
    differ = {name for name in wanted if name in shapes and wanted[name] != shapes[name]}
    own = {*wanted} ^ {*shapes}
    patches, positions = model.patch_weights(), model.position_table()
    said = []
    if any(model.is_of_head(name) for name in differ | own):
        said.append("head='drop' (--head drop, init_head=fresh) keeps the model's own head")
    kernel, theirs = wanted.get(patches.name, ()), shapes.get(patches.name, ())
    name = positions.name if positions is not None else ""
    rows, own_rows = (of.get(name, ())[-2:-1] for of in (shapes, wanted))
    # A row or two more or less are tokens, not patches.
    is_resized = rows and own_rows and abs(rows[0] - own_rows[0]) > 2
    is_resized = is_resized or any(table.name in differ for table in model.bias_tables())
    if is_resized or (patches.name in differ and kernel[2:] != theirs[2:]):
        said.append(
            "resize='source' (--resize source, init_resize=source) resizes what depends on the "
            "image size"
        )
    if patches.name in differ and kernel[1:2] != theirs[1:2]:
        said.append("in_chans=True (--in-chans) converts the patches to the model's channels")
    return said
