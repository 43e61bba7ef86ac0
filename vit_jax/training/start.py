"""Initial weights from elsewhere: a weights file, or a checkpoint of another run."""

import pathlib

import jax
from flax import nnx

from vit_jax.interop.formats import HUB_PREFIX, is_weights_folder
from vit_jax.interop.pretrained import load_pretrained
from vit_jax.models.base import VisionModel
from vit_jax.storage import run_path
from vit_jax.training.checkpoint_reading import CheckpointInfo, named_arrays, read_model
from vit_jax.training.workdir import CHECKPOINTS


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
) -> CheckpointInfo:
    """Loads the weights of a checkpoint into the model, in place and in the model's types.

    Args:
      model: of the checkpoint's design and fields.
      path: a checkpoint, or a work directory, whose latest is taken.
      ema: True for the averaged weights; else the raw ones.

    Raises:
      ValueError: there is none, or none with averaged weights, it is damaged, or it is of another
        model (entries are named).
    """
    _, state = nnx.split(model)
    own = named_arrays(state)
    arrays, info = read_model(find_checkpoint(path), own, bool(ema))
    leaves = [arrays[name].astype(own[name].dtype) for name in own]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
    return info


def check_init_from(init_from: str) -> None:
    """Raises ValueError unless `config.init_from` names a file, or a checkpoint that is there."""
    path = run_path(init_from)
    if init_from.startswith(HUB_PREFIX) or is_weights_folder(path):
        return
    if path.is_dir():
        find_checkpoint(path)
    elif not path.exists():
        raise ValueError(
            f"config.init_from: there is no {init_from!r}; wanted a weights file, a work "
            "directory or a checkpoint of one"
        )


def load_weights(model: VisionModel, init_from: str, ema: bool | None = None) -> str:
    """Loads what `config.init_from` names into the model, in place.

    Args:
      model: of the run.
      init_from: of the config.
      ema: see `load_pretrained`.

    Returns:
      What was loaded, in words.

    Raises:
      ValueError: it is neither weights nor a checkpoint, or does not fit the model.
    """
    check_init_from(init_from)
    kind = "averaged weights" if ema else "weights"
    if init_from.startswith(HUB_PREFIX):
        load_pretrained(model, init_from, ema=ema)
        return f"{kind} of {init_from}"
    path = run_path(init_from)
    if path.is_dir() and not is_weights_folder(path):
        info = load_checkpoint(model, path, ema)
        return f"{kind} of {path}, step {info.step}"
    load_pretrained(model, path, ema=ema)
    return f"{kind} of {path}"
