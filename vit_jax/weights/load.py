"""Models from weights, and weights into models, whatever the form of the source."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx

from vit_jax.layers.checks import check_bool
from vit_jax.models.base import VisionModel
from vit_jax.models.pretrained import published_at, published_of
from vit_jax.models.registry import abstract_model, design_of, list_models, model_fields
from vit_jax.models.registry import create_model as build_model
from vit_jax.models.spec import ModelSpec
from vit_jax.weights.adapt import OldGrid, adapt
from vit_jax.weights.dialects import DialectError, fields_told_by, heads_told_by, to_own
from vit_jax.weights.fit import explained, models_that_fit, number_of_classes
from vit_jax.weights.formats import Weights, read_description, read_weights
from vit_jax.weights.hub import fetch
from vit_jax.weights.run_folder import (
    HUB_PREFIX,
    is_weights_folder,
    load_checkpoint,
    model_of_run,
    named_checkpoint,
)
from vit_jax.weights.spec_json import StatedSpec, read_spec
from vit_jax.weights.state_dict import MisfitError, load_state_dict, state_dict
from vit_jax.weights.stated import check_description, check_stated
from vit_jax.weights.wrappers import Rules


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did.

    Attributes:
      source: what was read.
      dialect: whose names its arrays had: "huggingface", "torchvision", "google"; None for the
        model's own (timm's, DeiT's, the official T2T-ViT's).
      loaded: names of the model's arrays that were taken from it.
      adapted: what was changed on the way, a line each.
      left: what was unwrapped, and what the file holds beside, a line each.
      stated: what the source says of its model.
    """

    source: str
    dialect: str | None
    loaded: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    stated: StatedSpec = dataclasses.field(default_factory=StatedSpec)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    ema: bool | None = None,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> VisionModel[Any]:
    """Returns the model that a source holds, as the source states it, in eval mode.

    Args:
      source: a work directory of a run, a checkpoint in it, `RUN:best` for that of its best
        validation, or weights as `vit_jax.load_pretrained` takes them: a file, a folder of ours, of
        Hugging Face or timm, an Orbax folder, or hf:OWNER/NAME.
      name: the registered model; None: the source's, or the only one that the weights fit.
      ema: of a training checkpoint the averaged weights (True) or the raw ones (False); None takes
        the raw ones where there are both.
      rngs: stream "params" draws a fresh head; nothing else is drawn.
      **overrides: fields of the design. `num_classes` gives a fresh head, `img_size` resizes the
        positions, `patch_size` (of `vit`) the patches too and `in_chans` converts them, as the
        design's source does it; others say what the source does not (norm_eps), or how the model is
        used (drop_rate, dtype).

    Raises:
      ValueError: no such source, a damaged one, or one that does not fit the model or contradicts a
        field; no name where the weights fit several models or none, which are named; a fresh head
        without `rngs`.
    """
    return load_with_notes(source, name=name, fields=overrides, ema=ema, rngs=rngs)[0]


def create_model(
    name: str, /, *, rngs: nnx.Rngs | None = None, pretrained: Any = False, **overrides: Any
) -> VisionModel[Any]:
    """Builds a registered model, in train mode.

    Args:
      name: one of `list_models()`, or the name of a design, which has no preprocessing.
      rngs: stream "params" draws the initial weights.
      pretrained: takes published weights instead, which `list_models(pretrained=True)` has; `rngs`
        then draws a fresh head alone.
      **overrides: fields of the design, in place of the name's own.

    Raises:
      ValueError: an unknown name or field (near or valid ones are named), or a field that does not
        fit; no published weights, or none to be had: see `from_pretrained`.
    """
    if not check_bool("pretrained", pretrained):
        if rngs is None:
            raise ValueError("rngs must be flax.nnx.Rngs, such as nnx.Rngs(0), or pretrained=True")
        return build_model(name, rngs=rngs, **overrides)
    entry = published_of(name)
    if entry is None:
        design_of(name)  # an unknown name
        raise ValueError(
            f"no published weights of {name!r} are known; vit_jax.list_models(pretrained=True) "
            f"gives the {len(list_models(pretrained=True))} names that have some"
        )
    model = from_pretrained(f"{HUB_PREFIX}{entry.repository}", name=name, rngs=rngs, **overrides)
    model.train()
    return model


def load_with_notes(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
    ema: bool | None = None,
    rngs: nnx.Rngs | None = None,
) -> tuple[VisionModel[Any], tuple[str, ...]]:
    """As `from_pretrained`, and what was unwrapped, adapted or left on the way, a line each."""
    fields = dict(fields or {})
    weights = read_source(source, ema)
    known = published_at(str(source).removeprefix(HUB_PREFIX).partition("@")[0])
    if name is None and known is not None and str(source).startswith(HUB_PREFIX):
        name = known.name  # several names may have its sizes
    name = model_name(weights, name, str(source))
    stated = stated_fields(weights, name)
    num_classes = fields.pop("num_classes", None)
    try:
        # Every array is loaded: none need be drawn.
        model = abstract_model(name, **{**stated, **fields})
    except ValueError as error:
        raise ValueError(f"{str(source)!r}, a {name}: {error}") from error
    if weights.spec.fields is not None:  # the source describes its model: what it leaves is unknown
        model.spec = dataclasses.replace(model.spec, preprocessing=None)
    report = load_into(
        model,
        weights,
        str(source),
        resize="source" if fields.keys() & {*model.resized_by} else None,
        in_chans="in_chans" in fields,
    )
    notes = (*report.adapted, *report.left)
    if num_classes not in (None, own := model.num_classes):
        if num_classes and rngs is None:
            raise ValueError(
                f"num_classes={num_classes}: {str(source)!r} has {own} classes, and another number "
                "is a fresh head, which is drawn (rngs=nnx.Rngs(SEED)) and has learned nothing"
            )
        model.reset_classifier(num_classes, rngs=rngs or nnx.Rngs(0))
        left = f"its head of {own} classes left out" if own else "it has no head"
        notes = (*notes, f"{left}, a fresh one of {num_classes} drawn" if num_classes else left)
    model.eval()
    return model, notes


def load_pretrained(
    model: VisionModel,
    source: str | os.PathLike,
    *,
    ema: bool | None = None,
    resize: str | None = None,
    old_grid: OldGrid = None,
    head: Literal["drop"] | Sequence[int] | None = None,
    in_chans: bool = False,
) -> LoadReport:
    """Loads weights into the model, in place and strictly: every array of it, and none beside.

    Args:
      model: it keeps its dtypes.
      source: a .safetensors file; a PyTorch file (.pth, .pt, .bin, .pth.tar), read without PyTorch;
        Google's .npz; a Hugging Face folder, or hf:OWNER/NAME of the hub; an Orbax folder of named
        arrays; a work directory of a training run, or one of its checkpoints. Names of timm, DeiT,
        the official T2T-ViT, the seeds' texts, torchvision, Hugging Face and Google are understood.
        Preprocessing that stands beside the weights becomes the model's.
      ema: of a training checkpoint the averaged weights (True) or the raw ones (False); None takes
        the raw ones where there are both.
      resize: how positions and biases of another image size, and patches of another size, become
        this model's: see `vit_jax.weights.adapt.adapt`; None refuses them.
      old_grid: (rows, columns) of the patches in the file, or of Swin's windows, where they are not
        square; of each table by its name where they differ.
      head: "drop" keeps the model's own head where the number of classes differs; a sequence of
        class indices cuts the head to those; None refuses.
      in_chans: adapts the patch embedding to this model's number of channels.

    Returns:
      What was done.

    Raises:
      MisfitError: arrays that do not fit the model: it says what would help, and `problems` has
        each of them. The model is unchanged.
      ValueError: no such file, a damaged one, or one that holds more than data; fields of the
        model, such as norm_eps, that the file contradicts. The model is unchanged.
    """
    weights = read_source(source, ema)
    return load_into(
        model,
        weights,
        str(source),
        resize=resize,
        old_grid=old_grid,
        head=head,
        in_chans=in_chans,
    )


def load_into(
    model: VisionModel,
    weights: Weights,
    source: str,
    *,
    resize: str | None = None,
    old_grid: OldGrid = None,
    head: Literal["drop"] | Sequence[int] | None = None,
    in_chans: bool = False,
) -> LoadReport:
    """The second half of `load_pretrained`: weights of `read_source` into the model.

    Raises:
      ValueError: they do not fit; the model is unchanged.
    """
    grids = check_stated(
        model, weights.spec, source, resize, head=head, known_fields=weights.known_fields
    )
    left = list(weights.notes)
    arrays, adapted = _without_spare_parts(model, weights.arrays, left), []
    if resize is not None or old_grid is not None or head is not None or in_chans:
        old_grid = (grids or None) if old_grid is None else old_grid
        arrays, adapted = adapt(
            arrays, model, resize=resize, old_grid=old_grid, head=head, in_chans=in_chans
        )
    try:
        load_state_dict(model, arrays)
    except MisfitError as error:
        raise explained(error, model, arrays, source, weights.notes) from None
    model.spec = _with_facts(model.spec, weights.spec, source, head, left)
    loaded = tuple(name for name in arrays if head != "drop" or not model.is_of_head(name))
    return LoadReport(
        source, weights.dialect, loaded, tuple(adapted), tuple(left), stated=weights.spec
    )


def _without_spare_parts(
    model: VisionModel, arrays: Mapping[str, np.ndarray], left: list[str]
) -> dict[str, np.ndarray]:
    """The arrays but for those of pretraining alone that the model does not have."""
    spare = {part for part in model.pretraining_parts if not hasattr(model, part)}
    kept = {name: a for name, a in arrays.items() if name.partition(".")[0] not in spare}
    if count := len(arrays) - len(kept):
        left.append(f"{count} arrays for pretraining, left out")
    return kept


def _with_facts(
    spec: ModelSpec,
    stated: StatedSpec,
    source: str,
    head: Literal["drop"] | Sequence[int] | None,
    left: list[str],
) -> ModelSpec:
    """The model's description with what a source states; `left` takes what does not fit it."""
    facts: dict[str, Any] = {"source": source}
    preprocessing, names = stated.preprocessing, stated.class_names
    if preprocessing is not None and len(preprocessing.mean) != spec.config.in_chans:
        left.append(f"its preprocessing, of {len(preprocessing.mean)} channels")
    elif preprocessing is not None:
        if dict(stated.fields or {}).get("img_size", spec.config.img_size) != spec.config.img_size:
            preprocessing = dataclasses.replace(preprocessing, size=None)
        facts["preprocessing"] = preprocessing
    if head == "drop":
        names = spec.class_names
    elif head is not None and names is not None:
        kept = [names[index] if index < len(names) else None for index in head]
        names = None if None in kept else tuple(map(str, kept))
    if names is not None and len(names) > spec.config.num_classes:
        left.append(f"its {len(names)} class names")
        names = None
    if head != "drop" and (stated.target or stated.fields is not None):
        target = stated.target
        if target is not None and head is not None:
            target = target.at(head)
        if target is not None and len(target.mean) not in (0, spec.config.num_classes):
            left.append(f"its target of {len(target.mean)} numbers")
            target = None
        facts["target"] = target
    return dataclasses.replace(spec, class_names=names, **facts)


def read_source(source: str | os.PathLike, ema: bool | None, rename: Rules = ()) -> Weights:
    """Reads weights of any form and gives them the models' own names.

    Args:
      source: see `load_pretrained`.
      ema: see `load_pretrained`.
      rename: see `read_weights`; not of a run, whose names are the models' own.

    Raises:
      ValueError: see `load_pretrained`.
    """
    name = str(source)
    if name.startswith(HUB_PREFIX):
        source = fetch(name.removeprefix(HUB_PREFIX))
    source = named_checkpoint(source)
    run = _run_of(pathlib.Path(source), ema)
    if run is not None:
        if rename:
            raise ValueError(
                f"rename is for the names of others: {name!r} is a run of this package"
            )
        return run
    weights = read_weights(source, ema=ema, rename=rename)
    check_description(weights.spec, name)
    try:
        arrays, dialect = to_own(weights.arrays, weights.notes)
        told = fields_told_by(weights.arrays)
    except DialectError as error:
        raise ValueError(f"{name!r}: {error}") from error
    heads = heads_told_by(weights.arrays, dialect)
    known = weights.known_fields if heads is None else {"num_heads": heads}
    known = {**known, **told}
    return dataclasses.replace(weights, arrays=arrays, known_fields=known, dialect=dialect)


def read_stated_model(source: str | os.PathLike) -> StatedSpec:
    """What a source says of its model, without its arrays: of a run only the config is read.

    Raises:
      ValueError: see `load_pretrained`; or it names a model or a field that there is not.
    """
    name = str(source)
    if name.startswith(HUB_PREFIX):
        source = fetch(name.removeprefix(HUB_PREFIX))
    path = pathlib.Path(named_checkpoint(source))
    run = None if is_weights_folder(path) else model_of_run(path)
    if run is not None:
        stated = StatedSpec(run.name, {**model_fields(run.name), **run.fields})
    else:
        stated = read_description(path)
    check_description(stated, name)
    return stated


def stated_fields(weights: Weights, name: str) -> dict[str, Any]:
    """The constructor fields of the model `name` that weights state: all those of a run of it.

    Of other weights these are their number of classes, and what a run or a file beside them says
    of fields that the model has.
    """
    stated = weights.spec.fields or {}
    if name != weights.spec.name:
        known = model_fields(name)
        stated = {k: v for k, v in {**weights.known_fields, **stated}.items() if k in known}
    # The arrays know better: a description may be older than the head.
    design = design_of(name)
    stated = {**design.fields_told_by({k: v.shape for k, v in weights.arrays.items()}), **stated}
    classes = number_of_classes(weights.arrays, design)
    if classes is not None:
        return {**stated, "num_classes": classes}
    has_head = any(array.rpartition(".")[0] in design.heads for array in weights.arrays)
    return dict(stated) if has_head else {"num_classes": 0, **stated}


def _run_of(path: pathlib.Path, ema: bool | None) -> Weights | None:
    """The weights of a training run, given by its work directory or by a checkpoint in it."""
    if not path.is_dir() or is_weights_folder(path):
        return None
    found = model_of_run(path)
    if found is None:
        return None
    model = abstract_model(found.name, **found.fields)
    info = load_checkpoint(model, path, ema)
    try:
        stated = read_spec(info.spec)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint {path} is damaged: its description: {error}") from error
    preprocessing = stated.preprocessing
    if preprocessing is not None and found.image_size is not None:
        side = found.image_size
        preprocessing = dataclasses.replace(preprocessing, size=(side, side))
    return Weights(
        state_dict(model),
        dataclasses.replace(
            stated,
            name=found.name,
            fields=dict(model.spec.fields),
            preprocessing=preprocessing,
        ),
        notes=[f"{'averaged over ' if ema else ''}step {info.step} of a run of {found.name}"],
    )


def model_name(weights: Weights, given: str | None, source: str) -> str:
    """The name of the model: as given, else the source's, else the only one that its arrays fit.

    Raises:
      ValueError: none is given or stated, and the weights fit several models or none.
    """
    if name := given or weights.spec.name:
        return name
    fitting = models_that_fit(weights.arrays)
    if len(fitting) == 1:
        return fitting[0]
    which = f"they fit {', '.join(fitting)}" if fitting else "no registered model fits as it is"
    raise ValueError(
        f"the weights {source!r} do not say which model they are of ({which}): name it with --model"
    )


def model_shapes(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> VisionModel:
    """The model that a name or a source means: by its shapes alone, unless weights have to tell it.

    Args:
      source: a registered name, or what `from_pretrained` takes; of a run only the config is read.
      name: see `from_pretrained`; not with a registered name.
      fields: constructor fields beside what the name or source states.

    Raises:
      ValueError: no such name or source; or see `from_pretrained`.
    """
    fields = fields or {}
    path = pathlib.Path(named_checkpoint(source))
    if str(source) in list_models():
        if name is not None:
            raise ValueError(f"--model is for weights that do not say theirs, got {str(source)!r}")
        name = str(source)
    elif (run := model_of_run(path)) is not None and name in (None, run.name):
        name, fields = run.name, {**run.fields, **fields}
    elif path.name == str(source) and not path.suffix and not path.exists():
        name = str(source)  # a name that the registry refuses, with near ones
    else:
        return load_with_notes(source, name=name, fields=fields)[0]
    return abstract_model(name, **fields)
