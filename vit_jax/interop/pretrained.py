"""Weight files."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_jax.interop.state_dict import load_state_dict, state_dict
from vit_jax.models.base import Preprocessing, VisionModel

_SUFFIX = ".safetensors"


def _check_suffix(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix != _SUFFIX:
        raise ValueError(f"weights are read and written as *{_SUFFIX}, got {str(path)!r}")
    return path


def load_pretrained(model: VisionModel, path: str | os.PathLike) -> None:
    """Loads weights from a file into the model, in place and strictly.

    Args:
      model: it keeps its dtypes.
      path: a .safetensors file under the names of the model's PyTorch source. Preprocessing that
        `save_pretrained` wrote with it becomes the model's.

    Raises:
      ValueError: no such file, not a safetensors file, or entries that do not fit the model (each
        is named); the model is unchanged.
    """
    path = _check_suffix(path)
    if not path.is_file():
        raise ValueError(f"no weights file {str(path)!r}")
    try:
        with safe_open(path, framework="np") as file:
            mapping = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}") from error
    preprocessing = _read_preprocessing(path, metadata, model.in_chans)
    load_state_dict(model, mapping)
    if preprocessing is not None:
        model.preprocessing = preprocessing


def _read_preprocessing(
    path: Path, metadata: Mapping[str, str], in_chans: int
) -> Preprocessing | None:
    """What `save_pretrained` wrote; None where the file says nothing."""
    if "preprocessing" not in metadata:
        return None
    try:
        fields = json.loads(metadata["preprocessing"])
        mean, std = (tuple(float(value) for value in fields.pop(key)) for key in ("mean", "std"))
        preprocessing = Preprocessing(mean, std, **fields)
        if not len(mean) == len(std) == in_chans:
            raise ValueError(f"wanted mean and std of {in_chans} channels")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r}: its preprocessing cannot be read: {error}") from error
    return preprocessing


def save_pretrained(model: VisionModel, path: str | os.PathLike) -> None:
    """Writes the model's weights, and its preprocessing as metadata, to a .safetensors file.

    The names and layouts are those of the PyTorch source: its module loads the file with
    `strict=True`. The file is put in place whole: a crash leaves the old one.

    Raises:
      ValueError: the path does not end in .safetensors.
    """
    path = _check_suffix(path)
    metadata = {"format": "pt"}  # the layout of the arrays is PyTorch's
    if model.preprocessing is not None:
        metadata["preprocessing"] = json.dumps(asdict(model.preprocessing))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(state_dict(model), partial, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
