"""Initial weights from elsewhere: a weights file, or a checkpoint of another run."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.config import TrainConfig, load_config
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import design_of, model_fields
from vit_jax.models.spec import ModelSpec, Preprocessing, Target
from vit_jax.storage import run_path
from vit_jax.training.records import read_rows
from vit_jax.training.workdir import METRICS_FILE
from vit_jax.weights.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    HUB_PREFIX,
    find_checkpoint,
    is_weights_folder,
    load_checkpoint,
    named_checkpoint,
)
from vit_jax.weights.spec_json import StatedSpec, read_spec


def check_init_from(init_from: str, field: str = "init_from") -> None:
    """Raises ValueError unless `config.FIELD` names a file, or a checkpoint that is there."""
    path = run_path(named_checkpoint(init_from))
    if init_from.startswith(HUB_PREFIX) or is_weights_folder(path):
        return
    if path.is_dir():
        find_checkpoint(path)
    elif not path.exists():
        raise ValueError(
            f"config.{field}: there is no {init_from!r}; wanted a weights file, a work "
            "directory or a checkpoint of one"
        )


def with_stated_fields(
    config: TrainConfig, workdir: pathlib.Path | None = None
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The config with the fields of the model that its `init_from` states and it leaves alone.

    Those that decide what the model computes, the channels, and unless they are adapted the image
    size and the number of classes. Weights of another registered name state none of them, but to a
    config that names the design.

    Args:
      config: of the run.
      workdir: of the run; where it has begun, its own config states them, and not the weights.

    Returns:
      The config, and the names of the fields that it has from there.

    Raises:
      ValueError: the weights are not there, or their description cannot be read.
    """
    name, init_from = config.model.name, config.init_from
    if not init_from:
        return config, ()
    design = design_of(name)
    fields = _fields_of_run(workdir, config)
    if fields is None:
        check_init_from(init_from)
        from vit_jax.weights.load import read_stated_model  # see `load_initial_weights`

        is_hub = init_from.startswith(HUB_PREFIX)
        stated = read_stated_model(init_from if is_hub else run_path(init_from))
        is_same = stated.name == name or (
            name == design.design and stated.name and design_of(stated.name) is design
        )
        fields = stated.fields if is_same and stated.fields else {}
    adapted = dict.fromkeys(design.named_by, config.init_resize != "none")
    adapted["num_classes"] = config.init_head != "load"
    own, kwargs = model_fields(name), config.model.kwargs
    taken = {
        field: value
        for field, value in fields.items()
        if field not in kwargs and value != own.get(field, value)
        if not adapted.get(field, design.config_class.is_free(field) and field != "in_chans")
    }
    model = dataclasses.replace(config.model, kwargs={**kwargs, **taken})
    return dataclasses.replace(config, model=model), tuple(taken)


def _fields_of_run(workdir: pathlib.Path | None, config: TrainConfig) -> Mapping[str, Any] | None:
    """The fields of the run in `workdir`, if one has begun there from the same weights."""
    if workdir is None or not (workdir / CONFIG_FILE).exists():
        return None
    if not (workdir / CHECKPOINTS).exists() and not read_rows(workdir / METRICS_FILE):
        return None
    begun = load_config(workdir / CONFIG_FILE)
    is_same = (begun.init_from, begun.model.name) == (config.init_from, config.model.name)
    return begun.model.kwargs if is_same else {}


def load_initial_weights(
    model: VisionModel,
    init_from: str,
    used: ModelSpec,
    ema: bool | None = None,
    *,
    field: str = "init_from",
    head: str = "load",
    resize: str = "none",
) -> str:
    """Loads what `config.init_from` names into the model, in place.

    Args:
      model: it may be abstract where it keeps nothing of its own.
      init_from: a weights file or folder, hf:OWNER/NAME, a checkpoint or a work directory.
      used: how the run prepares images, and its classes.
      ema: see `load_pretrained`.
      field: of the config, for errors.
      head: "load", or "fresh": the model keeps its own.
      resize: of position embeddings: "none", or see `vit_jax.weights.adapt.adapt`.

    Returns:
      A line: what was loaded, what was changed on the way, and whose normalisation, crop and
      class order the run has.

    Raises:
      ValueError: it is neither weights nor a checkpoint, or does not fit the model.
    """
    check_init_from(init_from, field)
    kind = "averaged weights" if ema else "weights"
    is_hub, path = init_from.startswith(HUB_PREFIX), run_path(named_checkpoint(init_from))
    is_run = not is_hub and path.is_dir() and not is_weights_folder(path)
    # Here and not above: most runs read no weights of others, whose formats are 20 modules.
    from vit_jax.weights.load import load_pretrained
    from vit_jax.weights.stated import check_stated

    if is_run and head == "load" and resize == "none":
        # Straight from array to array: also a checkpoint without the config.json of its run.
        info = load_checkpoint(model, path, ema)
        stated = read_spec(info.spec)
        check_stated(model, stated, str(path))
        return f"{kind} of {path}, step {info.step}; {facts_used(used, stated, head)}"
    source = init_from if is_hub else path
    report = load_pretrained(
        model,
        source,
        ema=ema,
        head="drop" if head == "fresh" else None,
        resize=None if resize == "none" else resize,
    )
    of_run = report.left if is_run else ()
    facts = facts_used(used, report.stated, head)
    return "; ".join([", ".join([f"{kind} of {source}", *of_run]), *report.adapted, facts])


def facts_used(used: ModelSpec, stated: StatedSpec, head: str = "load") -> str:
    """Says whose normalisation, crop and class order a run has, and what its weights state."""
    own, theirs = used.preprocessing, stated.preprocessing
    normalisation = _compared(
        _moments, own and (own.mean, own.std), theirs and (theirs.mean, theirs.std)
    )
    crop = _compared(_crop, own and _crop_of(own), theirs and _crop_of(theirs))
    names, their_names = used.class_names, stated.class_names
    if head == "fresh":
        classes = f"the run's {_names(names)} (the head is fresh)"
    elif names and their_names and names != their_names and sorted(names) == sorted(their_names):
        order = f"the weights' {_names(their_names)} are in another order"
        classes = f"the run's {_names(names)} ({order})"
    else:
        classes = _compared(_names, names, their_names)
    said = f"normalisation: {normalisation}, crop: {crop}, classes: {classes}"
    if head == "fresh" or stated.target in (None, used.target):
        return said
    return f"{said}, outputs: {_compared(_outputs, used.target, stated.target)}"


def _compared(words: Callable[[Any], str], own: Any, theirs: Any) -> str:
    if theirs is None:
        relation = "the weights state none"
    elif own == theirs:
        relation = "as the weights'"
    else:
        relation = f"the weights' {words(theirs)}"
    return f"the run's {None if own is None else words(own)} ({relation})"


def _outputs(target: Target) -> str:
    units = f" of mean and std {_moments((target.mean, target.std))}" if target.mean else ""
    return f"{target.kind}{units}"


def _moments(mean_and_std: tuple[tuple[float, ...], ...]) -> str:
    return " and ".join(f"({', '.join(f'{x:.4g}' for x in part)})" for part in mean_and_std)


def _crop_of(preprocessing: Preprocessing) -> tuple[float, str, str]:
    return preprocessing.crop_fraction, preprocessing.interpolation, preprocessing.crop_mode


def _crop(crop: tuple[float, str, str]) -> str:
    return " ".join(map(str, crop))


def _names(names: tuple[str, ...] | None) -> str:
    return "None" if names is None else ", ".join((*names[:3], *["..."][: len(names) > 3]))
