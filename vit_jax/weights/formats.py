"""Weight files and folders: whatever the form, arrays by name. What is read cannot run code."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vit_jax.storage import check_regular
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.npz import read_npz
from vit_jax.weights.run_folder import ORBAX, SHARDS, SINGLE
from vit_jax.weights.spec_json import (
    MAX_SPEC_BYTES,
    SPEC,
    SPEC_FILE,
    StatedSpec,
    read_beside,
    read_json,
    read_spec,
    read_stated,
)
from vit_jax.weights.torch_file import read_torch_entry, read_torch_file
from vit_jax.weights.wrappers import Rules, UnwrapReport, unwrap_state_dict

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS, NPZ = ".safetensors", ".npz"
_WANTED = (
    "a .safetensors file, a PyTorch file (.pth, .pt, .bin, .pth.tar), Google's .npz, a Hugging "
    "Face folder (config.json beside safetensors), an Orbax folder, a work directory of ours, or "
    "a name hf:OWNER/NAME"
)


@dataclasses.dataclass
class Weights:
    """What a file holds.

    Attributes:
      arrays: by the names in the file.
      spec: what it says of its model.
      known_fields: single fields of the model that it states, such as norm_eps, where it does not
        state all in `spec`.
      notes: what was unwrapped or left, in words.
      dialect: whose names the arrays had before they were given the models' own; None for these.
    """

    arrays: dict[str, np.ndarray]
    spec: StatedSpec = dataclasses.field(default_factory=StatedSpec)
    known_fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    dialect: str | None = None


def read_weights(
    path: str | os.PathLike, *, ema: bool | None = None, rename: Rules = ()
) -> Weights:
    """Reads a weights file or folder.

    Args:
      path: a .safetensors file; a PyTorch file, read without PyTorch; Google's .npz; a Hugging Face
        folder; an Orbax folder of named arrays.
      ema: of a training checkpoint the averaged weights (True) or the raw ones (False); None takes
        the raw ones where there are both.
      rename: (pattern, replacement) pairs for the names in it, applied before anything else.

    Raises:
      ValueError: there is no such file, it is damaged, or it holds more than weights.
    """
    path = Path(path)
    _check_no_pipe(path)
    if ema and path.exists() and path.suffix not in TORCH_SUFFIXES:
        raise ValueError(
            f"{str(path)!r} does not tell averaged weights from others (ema=True): training "
            f"checkpoints of PyTorch do, {', '.join(TORCH_SUFFIXES)}"
        )
    if path.is_dir():
        return _unwrapped(path, _read_folder(path), ema, rename)
    if not path.is_file():
        raise ValueError(f"no weights file {str(path)!r}; wanted {_WANTED}")
    if path.suffix == SAFETENSORS:
        return _unwrapped(path, _read_safetensors(path), ema, rename)
    if path.suffix == NPZ:
        notes: list[str] = []
        weights = Weights(read_npz(path), read_beside(path, notes), notes=notes)
        return _unwrapped(path, weights, ema, rename)
    if path.suffix in TORCH_SUFFIXES:
        weights = Weights(read_torch_file(path), _spec_in_torch_file(path))
        return _unwrapped(path, weights, ema, rename)
    raise ValueError(f"wanted {_WANTED}, got {str(path)!r}")


def read_description(path: Path) -> StatedSpec:
    """What a weights file or folder says of its model; its arrays are not read.

    Raises:
      ValueError: see `read_weights`.
    """
    _check_no_pipe(path)
    if path.is_dir():
        return _spec_in_orbax(path) if (path / ORBAX).is_file() else read_facts(path, [])[0]
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path, with_arrays=False).spec
    if path.suffix == NPZ:
        return read_beside(path, [])
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"wanted {_WANTED}, got {str(path)!r}")
    return _spec_in_torch_file(path)


def _check_no_pipe(path: Path) -> None:
    """Raises ValueError where each reader would wait: in a folder they look for files by name."""
    if not path.is_dir():
        try:
            check_regular(path)
        except OSError as error:
            raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _unwrapped(path: Path, weights: Weights, ema: bool | None, rename: Rules) -> Weights:
    try:
        weights.arrays, report = unwrap_state_dict(weights.arrays, ema=ema, rename=rename)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    weights.notes += _notes(report)
    return weights


def _spec_in_torch_file(path: Path) -> StatedSpec:
    try:
        text = read_torch_entry(path, SPEC_FILE, MAX_SPEC_BYTES)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be read as a PyTorch file: {error}") from error
    return StatedSpec() if text is None else read_stated(path, lambda: read_spec(json.loads(text)))


def _notes(report: UnwrapReport) -> list[str]:
    notes = []
    if report.source:
        kind = "averaged weights" if report.is_ema else "weights"
        notes.append(f"the {kind} lay under {report.source!r}")
    if report.prefix:
        notes.append(f"the names began with {report.prefix!r}")
    notes += [f"{infix!r} stood within names" for infix in report.infixes]
    notes += [f"{other}: another state dict" for other in report.others]
    notes += [f"{name}: no array" for name in report.not_tensors]
    return notes + [f"{name}: beside the weights" for name in report.left]


def _read_safetensors(path: Path, *, with_arrays: bool = True) -> Weights:
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys() if with_arrays else ()
            arrays = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    # AttributeError, TypeError: a type that NumPy has not, such as float8.
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}") from error
    if SPEC in metadata:
        return Weights(arrays, read_stated(path, lambda: read_spec(json.loads(metadata[SPEC]))))
    if "preprocessing" in metadata:  # of versions up to 0.1.0
        values = metadata["preprocessing"]
        old = read_stated(
            path, lambda: read_spec({"spec_version": 0, "preprocessing": json.loads(values)})
        )
        return Weights(arrays, old)
    return Weights(arrays)


def _read_folder(path: Path) -> Weights:
    if (path / ORBAX).is_file():
        return Weights(_read_orbax(path), _spec_in_orbax(path))
    index, single = path / SHARDS, path / SINGLE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard, str) and re.fullmatch(r"[\w.-]+\.safetensors", shard)
            for shard in weight_map.values()
        ):
            raise ValueError(f"{str(index)!r}: wanted a weight_map of names to shards beside it")
        arrays = {}
        for shard in sorted(set(weight_map.values())):
            if not (path / shard).is_file():
                raise ValueError(f"{str(path)!r}: the shard {shard} is missing")
            arrays |= _read_safetensors(path / shard).arrays
        weights = Weights(arrays)
    elif single.is_file():
        weights = _read_safetensors(single)
    else:
        raise ValueError(f"no weights in the folder {str(path)!r}; wanted {_WANTED}")
    weights.spec, weights.known_fields = read_facts(path, weights.notes)
    return weights


def _spec_in_orbax(path: Path) -> StatedSpec:
    spec = path / SPEC_FILE
    if not spec.is_file():
        return StatedSpec()
    return read_stated(spec, lambda: read_spec(read_json(spec)))


def _read_orbax(path: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    from vit_jax.weights.checkpoint_reading import one_line, quiet_orbax

    tree, reason = None, ""
    with quiet_orbax():
        try:
            check_regular(path)
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(path.absolute())
        except Exception as error:  # Orbax and tensorstore raise their own kinds
            reason = one_line(error)
    if reason:
        raise ValueError(f"the Orbax folder {str(path)!r} cannot be read: {reason}")
    if not isinstance(tree, dict) or not all(hasattr(leaf, "shape") for leaf in tree.values()):
        raise ValueError(f"the Orbax folder {str(path)!r} holds no named arrays")
    return {name: np.asarray(leaf) for name, leaf in tree.items()}
