"""What a path holds: a training run, its model and its checkpoints, or a folder of weights."""

import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx

from vit_jax.config.serialize import read_config
from vit_jax.models.base import VisionModel

if TYPE_CHECKING:
    from vit_jax.weights.checkpoint_reading import CheckpointInfo

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
HUB_PREFIX = "hf:"
# What a folder of weights holds: Orbax's of named arrays, or Hugging Face's.
ORBAX, SHARDS, SINGLE = "_METADATA", "model.safetensors.index.json", "model.safetensors"


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
    """The work directory that a path names, itself or by a checkpoint in it; None: no such."""
    workdir = path.parent.parent if path.parent.name == CHECKPOINTS else path
    is_run = (workdir / CHECKPOINTS).is_dir() and (workdir / CONFIG_FILE).is_file()
    return workdir if is_run else None


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
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(workdir / CONFIG_FILE)!r} cannot be read: {error!r}") from error
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
    return RunModel(name, fields, size)


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that a path names: itself, or the latest of a work directory.

    Raises:
      ValueError: there is none.
    """
    if path.name.isdigit() and path.is_dir():
        return path
    directory = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    found = directory.iterdir() if directory.is_dir() else ()
    steps = [int(entry.name) for entry in found if entry.name.isdigit()]
    if not steps:
        raise ValueError(
            f"no checkpoint in {path}: wanted a work directory, its {CHECKPOINTS}/STEP, or a "
            "weights file or folder"
        )
    return directory / str(max(steps))


def load_checkpoint(
    model: VisionModel, path: pathlib.Path, ema: bool | None = None
) -> "CheckpointInfo":
    """Loads the weights of a checkpoint into the model, in place and in the model's types.

    Args:
      model: of the checkpoint's design and fields.
      path: a checkpoint, or a work directory, whose latest is taken.
      ema: True for the averaged weights; else the raw ones.

    Raises:
      ValueError: there is none, or none with averaged weights, it is damaged, or it is of another
        model (entries are named).
    """
    # Here and not above: Orbax takes a second to import.
    from vit_jax.weights.checkpoint_reading import named_arrays, read_model

    _, state = nnx.split(model)
    own = named_arrays(state)
    arrays, info = read_model(find_checkpoint(path), own, bool(ema))
    leaves = [arrays[name].astype(own[name].dtype) for name in own]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return info
