"""Initial weights from elsewhere: a weights file, or a checkpoint of another run."""

from typing import Any

from vit_jax.models.base import VisionModel
from vit_jax.models.spec import ModelSpec
from vit_jax.storage import run_path
from vit_jax.weights.run_folder import (
    HUB_PREFIX,
    find_checkpoint,
    is_weights_folder,
    load_checkpoint,
)
from vit_jax.weights.spec_json import StatedSpec, read_spec


def check_init_from(init_from: str, field: str = "init_from") -> None:
    """Raises ValueError unless `config.FIELD` names a file, or a checkpoint that is there."""
    path = run_path(init_from)
    if init_from.startswith(HUB_PREFIX) or is_weights_folder(path):
        return
    if path.is_dir():
        find_checkpoint(path)
    elif not path.exists():
        raise ValueError(
            f"config.{field}: there is no {init_from!r}; wanted a weights file, a work "
            "directory or a checkpoint of one"
        )


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
      What was loaded, what was changed on the way, and whose normalisation, crop and class order
      the run has, in words.

    Raises:
      ValueError: it is neither weights nor a checkpoint, or does not fit the model.
    """
    check_init_from(init_from, field)
    kind = "averaged weights" if ema else "weights"
    is_hub, path = init_from.startswith(HUB_PREFIX), run_path(init_from)
    is_run = not is_hub and path.is_dir() and not is_weights_folder(path)
    if is_run and head == "load" and resize == "none":
        # Straight from array to array: also a checkpoint without the config.json of its run.
        info = load_checkpoint(model, path, ema)
        stated = read_spec(info.spec)
        return f"{kind} of {path}, step {info.step}; {facts_used(used, stated, head)}"
    # Here and not above: most runs read no weights of others, whose formats are 20 modules.
    from vit_jax.weights.load import load_pretrained

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
    """Whose normalisation, crop and class order a run has, and what its weights state, in words."""
    own, theirs = used.preprocessing, stated.preprocessing
    said = []
    for what, wanted, given in (
        ("normalisation", own and (own.mean, own.std), theirs and (theirs.mean, theirs.std)),
        ("crop", own and own.crop_fraction, theirs and theirs.crop_fraction),
        ("classes", used.class_names, stated.class_names),
    ):
        if what == "classes" and head == "fresh":
            relation = "the head is fresh"
        elif given is None:
            relation = "the weights state none"
        elif wanted == given:
            relation = "as the weights'"
        else:
            relation = f"the weights' {_brief(given)}"
            relation += " are in another order" if _reordered(wanted, given) else ""
        said.append(f"{what}: the run's {_brief(wanted)} ({relation})")
    return ", ".join(said)


def _reordered(wanted: Any, given: Any) -> bool:
    pair = isinstance(wanted, tuple) and isinstance(given, tuple)
    return pair and wanted != given and sorted(map(str, wanted)) == sorted(map(str, given))


def _brief(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return f"{', '.join(value[:3])}{', ...' * (len(value) > 3)}"
    if isinstance(value, tuple):  # mean and deviation, a number a channel
        return " and ".join(f"({', '.join(f'{x:.4g}' for x in part)})" for part in value)
    return str(value)
