"""What a path holds: a training run, its model and its checkpoints, or a folder of weights."""

import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx

from vit_jax.config.serialize import read_config
from vit_jax.models.base import VisionModel
from vit_jax.storage import is_remote, run_path

if TYPE_CHECKING:
    from vit_jax.weights.checkpoint_reading import CheckpointInfo

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
HUB_PREFIX = "hf:"
BEST = ":best"  # after a work directory: the checkpoint of its best validation
# What a folder of weights holds: Orbax's of named arrays, or Hugging Face's.
ORBAX, SHARDS, SINGLE = "_METADATA", "model.safetensors.index.json", "model.safetensors"
# What a checkpoint of a run holds, of which damage leaves one.
_MARKS = ("_CHECKPOINT_METADATA", "info/metadata", "model/_METADATA")


class RunModel(NamedTuple):
    """What a run trained: a registered name, its constructor fields, and the side of its images.

    The side is None where it is that of the model.
    """

    name: str
    fields: dict[str, Any]
    image_size: int | None


def is_weights_folder(path: pathlib.Path) -> bool:
    """Whether a folder is Hugging Face's, or Orbax's of named arrays."""
    return any((path / name).is_file() for name in (ORBAX, SHARDS, SINGLE))


def run_directory(path: pathlib.Path) -> pathlib.Path | None:
    """The work directory that a path names: itself, or by a checkpoint in it; None: no such.

    What a folder holds decides, not its name: a run may be called 7, 2024 or checkpoints.
    """
    if _is_run(path):
        return path
    for place in _places(path):
        if place.name == CHECKPOINTS:
            workdir = place.parent
        elif place.parent.name == CHECKPOINTS and (_is_step(place) or _is_checkpoint(place)):
            workdir = place.parent.parent
        else:
            continue
        if _is_run(workdir):
            return workdir
    return None


def named_step(path: pathlib.Path) -> int | None:
    """The step by which a run calls its checkpoint; None of a path that is not in one's own."""
    if _is_run(path):
        return None
    for place in _places(path):
        own = place.parent.name == CHECKPOINTS and _is_run(place.parent.parent)
        if own and _is_step(place):
            return int(place.name)
    return None


def _places(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The path as it is named, and where links lead."""
    return (path,) if is_remote(path) else (path.absolute(), path.resolve())


def _is_run(path: pathlib.Path) -> bool:
    return (path / CHECKPOINTS).is_dir() and (path / CONFIG_FILE).is_file()


def _is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a folder is one that Orbax wrote as a checkpoint, damaged or not."""
    return any((path / mark).is_file() for mark in _MARKS)


def _is_step(path: pathlib.Path) -> bool:
    return path.name.isascii() and path.name.isdecimal()


def model_of_run(path: pathlib.Path) -> RunModel | None:
    """The model that a run trained.

    Args:
      path: a work directory, or a checkpoint in it.

    Returns:
      None where there is no run with its config.

    Raises:
      ValueError: the config is there and names no model.
    """
    workdir = run_directory(path)
    if workdir is None:
        return None
    try:
        config = read_config(workdir / CONFIG_FILE)
        name, fields = str(config["model"]["name"]), dict(config["model"]["kwargs"])
        size = config["data"]["image_size"]
        if size is not None and (type(size) is not int or not 0 < size < 2**16):
            raise ValueError(f"data.image_size is {size!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(workdir / CONFIG_FILE)!r} cannot be read: {error!r}") from error
    if name == "own":
        raise ValueError(
            f"the model of the run in {str(workdir)!r} was given in Python, as model= of "
            "training.train: only there can it be built again"
        )
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return RunModel(name, fields, size)


def named_checkpoint(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """`source`, and of `RUN:best` the checkpoint of the run's best validation.

    Raises:
      ValueError: no such run, none that validated, or one that has not kept that checkpoint.
    """
    text = os.fspath(source)
    if not text.endswith(BEST) or text.startswith(HUB_PREFIX):
        return source
    path = run_path(text)
    if path.exists():
        return source
    workdir = path.with_name(path.name.removesuffix(BEST))
    if run_directory(workdir) is None:
        raise ValueError(f"{text!r}: wanted RUN{BEST} of a run, and {workdir} is no work directory")
    # Here and not above: Orbax takes a second to import.
    from vit_jax.weights.checkpoint_reading import DamagedCheckpointError, read_info

    latest = find_checkpoint(workdir)
    try:
        best = read_info(latest, int(latest.name)).best_step
    except DamagedCheckpointError as error:
        raise ValueError(f"{text!r}: the checkpoint {latest} is damaged: {error}") from error
    if best is None:
        raise ValueError(f"{text!r}: the run has not validated, so that no checkpoint is its best")
    found = workdir / CHECKPOINTS / str(best)
    if not found.is_dir():
        raise ValueError(
            f"{text!r}: the best validation was at step {best}, whose checkpoint was not kept "
            "(config.checkpoint.keep_best)"
        )
    return found


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a path names: itself, or the latest of a work directory.

    Raises:
      ValueError: there is none.
    """
    return _find_checkpoints(path)[0]


def _find_checkpoints(path: pathlib.Path) -> list[pathlib.Path]:
    """That which a path names; of a work directory all, the latest first.

    Raises:
      ValueError: there is none.
    """
    directory = path / CHECKPOINTS
    if not directory.is_dir():
        if named_step(path) is not None or _is_checkpoint(path):
            return [path]
        directory = path  # that of a run, or a copy of it
    found = directory.iterdir() if directory.is_dir() else ()
    checkpoints = [entry for entry in found if _is_step(entry) and _is_checkpoint(entry)]
    if not checkpoints:
        raise ValueError(
            f"no checkpoint in {path}: wanted a work directory, its {CHECKPOINTS}/STEP, or a "
            "weights file or folder"
        )
    return sorted(checkpoints, key=lambda entry: int(entry.name), reverse=True)


def load_checkpoint(
    model: VisionModel, path: pathlib.Path, ema: bool | None = None
) -> "CheckpointInfo":
    """Loads the weights of a checkpoint into the model, in place and in the model's types.

    Args:
      model: of the checkpoint's design and fields.
      path: a checkpoint, or a work directory, whose latest is taken.
      ema: True for the averaged weights; else the raw ones.

    Raises:
      ValueError: there is none, or none with averaged weights, it is damaged (an earlier one that
        is whole is named), or it is of another model (entries are named).
    """
    # Here and not above: Orbax takes a second to import.
    from vit_jax.weights.checkpoint_reading import (
        DamagedCheckpointError,
        named_arrays,
        read_model,
    )

    _, state = nnx.split(model)
    own = named_arrays(state)

    def read(found: pathlib.Path) -> "tuple[dict[str, jax.Array], CheckpointInfo]":
        return read_model(found, own, bool(ema), named_step(found))

    latest, *earlier = _find_checkpoints(path)
    try:
        arrays, info = read(latest)
    except DamagedCheckpointError as error:
        for other in earlier:
            try:
                read(other)
            except ValueError:
                continue
            raise ValueError(f"{error}; the one before is whole: give its path, {other}") from None
        raise
    leaves = [arrays[name].astype(own[name].dtype) for name in own]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return info
