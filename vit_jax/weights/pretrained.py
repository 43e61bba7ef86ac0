"""Weights from elsewhere into a model, and a model's weights to elsewhere."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.weights.adapt import adapt
from vit_jax.weights.dialects import DialectError, google_heads, to_timm
from vit_jax.weights.fit import is_of_classes, models_that_fit, number_of_classes
from vit_jax.weights.formats import (
    HUB_PREFIX,
    SAFETENSORS,
    TORCH_SUFFIXES,
    Weights,
    check_preprocessing,
    is_weights_folder,
    read_weights,
)
from vit_jax.weights.hub import fetch
from vit_jax.weights.run_folder import load_checkpoint, model_of_run
from vit_jax.weights.state_dict import load_state_dict, state_dict
from vit_jax.weights.torch_writer import write_torch_file
from vit_jax.weights.writers import (
    write_google,
    write_huggingface,
    write_orbax,
    write_safetensors,
)


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
    """

    source: str
    dialect: str | None
    loaded: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def load_pretrained(
    model: VisionModel,
    source: str | os.PathLike,
    *,
    ema: bool | None = None,
    resize: str | None = None,
    old_grid: Sequence[int] | None = None,
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
      resize: how position embeddings of another image size become this model's: see
        `vit_jax.weights.adapt.adapt`; None refuses them.
      old_grid: (rows, columns) of the patches in the file where they are not square.
      head: "drop" keeps the model's own head where the number of classes differs; a sequence of
        class indices cuts the head to those; None refuses.
      in_chans: adapts the patch embedding to this model's number of channels.

    Returns:
      What was done.

    Raises:
      ValueError: no such file, a damaged one, or one that holds more than data; arrays that do not
        fit the model (each is named, and registered names that do fit); fields of the model, such
        as norm_eps, that the file contradicts. The model is unchanged.
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
    old_grid: Sequence[int] | None = None,
    head: Literal["drop"] | Sequence[int] | None = None,
    in_chans: bool = False,
) -> LoadReport:
    """The second half of `load_pretrained`: weights of `read_source` into the model.

    Raises:
      ValueError: they do not fit; the model is unchanged.
    """
    for field, value in weights.fields.items():
        own = getattr(model, field, value)
        if own != value:
            raise ValueError(
                f"{source!r} is of a model with {field}={value!r}, this one has {own!r}: "
                f"create_model(..., {field}={value!r})"
            )
    arrays, adapted = weights.arrays, []
    if resize is not None or head is not None or in_chans:
        arrays, adapted = adapt(
            arrays, model, resize=resize, old_grid=old_grid, head=head, in_chans=in_chans
        )
    try:
        load_state_dict(model, arrays)
    except ValueError as error:
        fitting = models_that_fit(weights.arrays)
        if not fitting:
            raise
        raise ValueError(f"{error}\nregistered models that these weights fit: {fitting}") from error
    left, preprocessing = list(weights.notes), weights.preprocessing
    if preprocessing is not None and len(preprocessing.mean) != model.in_chans:
        left.append(f"its preprocessing, of {len(preprocessing.mean)} channels")
    elif preprocessing is not None:
        model.preprocessing = preprocessing
    loaded = tuple(name for name in arrays if head != "drop" or not is_of_classes(name))
    return LoadReport(source, weights.dialect, loaded, tuple(adapted), tuple(left))


def read_source(source: str | os.PathLike, ema: bool | None) -> Weights:
    """Reads weights of any form and gives them the models' own names.

    Raises:
      ValueError: see `load_pretrained`.
    """
    name = str(source)
    if name.startswith(HUB_PREFIX):
        source = fetch(name.removeprefix(HUB_PREFIX))
    run = _run_of(Path(source), ema)
    if run is not None:
        return run
    weights = read_weights(source, ema=ema)
    try:
        arrays, dialect = to_timm(weights.arrays)
    except DialectError as error:
        raise ValueError(f"{name!r}: {error}") from error
    heads = google_heads(weights.arrays) if dialect == "google" else None
    fields = weights.fields if heads is None else {**weights.fields, "num_heads": heads}
    return dataclasses.replace(weights, arrays=arrays, fields=fields, dialect=dialect)


def stated_fields(weights: Weights, name: str) -> dict[str, Any]:
    """The constructor fields of the model `name` that weights state: all those of a run of it.

    Of other weights these are their number of classes, and what a run or a file beside them says
    of fields that the model has.
    """
    run_name, run_fields = weights.model or (None, {})
    if name == run_name:
        return dict(run_fields)
    known = model_fields(name)
    fields = {k: v for k, v in {**weights.fields, **run_fields}.items() if k in known}
    classes = number_of_classes(weights.arrays)
    return fields if classes is None else {"num_classes": classes, **fields}


def _run_of(path: Path, ema: bool | None) -> Weights | None:
    """The weights of a training run, given by its work directory or by a checkpoint in it."""
    if not path.is_dir() or is_weights_folder(path):
        return None
    found = model_of_run(path)
    if found is None:
        return None
    name, fields = found.name, found.fields
    model = abstract_model(name, **fields)
    info = load_checkpoint(model, path, ema)
    return Weights(
        state_dict(model),
        check_preprocessing(**info.preprocessing),
        notes=[f"{'averaged over ' if ema else ''}step {info.step} of a run of {name}"],
        class_names=info.class_names,
        model=(name, fields),
        image_size=found.image_size,
        data_size=info.data_size,
    )


def save_pretrained(
    model: VisionModel, path: str | os.PathLike, *, dialect: str | None = None
) -> None:
    """Writes the model's weights, and its preprocessing where the form has a place for it.

    The file is put in place whole: a crash leaves the old one.

    Args:
      model: any.
      path: the form follows from it: a .safetensors or a .pth / .pt file under the names and in the
        layouts of the model's PyTorch source, whose module loads it with `strict=True`.
      dialect: for a `vit_*` or `deit_*` model "huggingface" (path: a folder, which
        `ViTForImageClassification.from_pretrained` takes, or DeiT's), "google" (path: a .npz file),
        or "orbax" (path: a folder; any model); None for the source's own.

    Raises:
      ValueError: a path of another form; a dialect that has no place for the model's arrays.
    """
    path = Path(path)
    if dialect == "huggingface":
        write_huggingface(model, path)
    elif dialect == "google":
        write_google(model, path)
    elif dialect == "orbax":
        write_orbax(model, path)
    elif dialect is not None:
        raise ValueError(
            f"dialect must be None, 'huggingface', 'google' or 'orbax', got {dialect!r}"
        )
    elif path.suffix == SAFETENSORS:
        write_safetensors(state_dict(model), path, model.preprocessing)
    elif path.suffix in TORCH_SUFFIXES:
        write_torch_file(path, state_dict(model))
    else:
        raise ValueError(
            f"weights are written as .safetensors, or as {', '.join(TORCH_SUFFIXES)}, got "
            f"{str(path)!r}"
        )
