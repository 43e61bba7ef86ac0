"""Weight files and folders: whatever the form, arrays by name. What is read cannot run code."""

import dataclasses
import gc
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vit_jax.models.base import Preprocessing
from vit_jax.weights.npz import read_npz
from vit_jax.weights.torch_file import read_torch_file
from vit_jax.weights.wrappers import UnwrapReport, unwrap_state_dict

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS, NPZ = ".safetensors", ".npz"
HUB_PREFIX = "hf:"
_WANTED = (
    "a .safetensors file, a PyTorch file (.pth, .pt, .bin, .pth.tar), Google's .npz, a Hugging "
    "Face folder (config.json beside safetensors), an Orbax folder, a work directory of ours, or "
    "a name hf:OWNER/NAME"
)
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, in Hugging Face's files


@dataclasses.dataclass
class Weights:
    """What a file holds.

    Attributes:
      arrays: by the names in the file.
      preprocessing: how images are made ready, where the file says so.
      fields: constructor fields of the model that the file states, such as norm_eps.
      notes: what was unwrapped or left, in words.
      dialect: whose names the arrays had before they were given the models' own; None for these.
      class_names: in the order of the logits; empty where the file names none.
      model: registered name and constructor fields, where the file says so.
      image_size: side of the images that it was trained with, where that is not the model's own.
      data_size: (height, width) of the images of its data, where they share one and it is stated.
    """

    arrays: dict[str, np.ndarray]
    preprocessing: Preprocessing | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    dialect: str | None = None
    class_names: tuple[str, ...] = ()
    model: tuple[str, dict[str, Any]] | None = None
    image_size: int | None = None
    data_size: tuple[int, int] | None = None


def read_weights(path: str | os.PathLike, *, ema: bool | None = None) -> Weights:
    """Reads a weights file or folder.

    Args:
      path: a .safetensors file; a PyTorch file, read without PyTorch; Google's .npz; a Hugging Face
        folder; an Orbax folder of named arrays.
      ema: of a training checkpoint the averaged weights (True) or the raw ones (False); None takes
        the raw ones where there are both.

    Raises:
      ValueError: there is no such file, it is damaged, or it holds more than weights.
    """
    path = Path(path)
    if ema and path.exists() and path.suffix not in TORCH_SUFFIXES:
        raise ValueError(
            f"{str(path)!r} does not tell averaged weights from others (ema=True): training "
            f"checkpoints of PyTorch do, {', '.join(TORCH_SUFFIXES)}"
        )
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"no weights file {str(path)!r}; wanted {_WANTED}")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix == NPZ:
        return Weights(read_npz(path))
    if path.suffix in TORCH_SUFFIXES:
        try:
            arrays, report = unwrap_state_dict(read_torch_file(path), ema=ema)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from error
        return Weights(arrays, notes=_notes(report))
    raise ValueError(f"wanted {_WANTED}, got {str(path)!r}")


def _notes(report: UnwrapReport) -> list[str]:
    notes = []
    if report.source:
        kind = "averaged weights" if report.is_ema else "weights"
        notes.append(f"the {kind} lay under {report.source!r}")
    if report.prefix:
        notes.append(f"every name began with {report.prefix!r}")
    notes += [f"{other}: another state dict" for other in report.others]
    notes += [f"{name}: no array" for name in report.not_tensors]
    return notes + [f"{name}: beside the weights" for name in report.left]


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    # AttributeError, TypeError: a type that NumPy has not, such as float8.
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not a whole safetensors file: {error}") from error
    preprocessing = None
    if "preprocessing" in metadata:
        preprocessing = _stated(path, lambda: _own_preprocessing(metadata["preprocessing"]))
    return Weights(arrays, preprocessing)


def _stated(path: Path, read: Callable[[], Preprocessing | None]) -> Preprocessing | None:
    try:
        return read()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{str(path)!r}: its preprocessing cannot be read: {error}") from error


def check_preprocessing(
    mean: Any, std: Any, crop_fraction: Any, interpolation: Any
) -> Preprocessing:
    """Returns the preprocessing that a file states, or raises ValueError where it is none."""
    mean, std = (tuple(float(value) for value in values) for values in (mean, std))
    finite = all(math.isfinite(value) for value in mean + std)
    if len(mean) != len(std) or not finite or not all(value > 0 for value in std):
        raise ValueError(f"wanted a mean and a positive std for each channel, got {mean} and {std}")
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"wanted bicubic or bilinear interpolation, got {interpolation!r}")
    fraction = float(crop_fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"wanted a crop fraction above 0 and at most 1, got {fraction}")
    return Preprocessing(mean, std, crop_fraction=fraction, interpolation=interpolation)


def _own_preprocessing(text: str) -> Preprocessing:
    fields = json.loads(text)
    wanted = {field.name for field in dataclasses.fields(Preprocessing)}
    if set(fields) != wanted:
        raise ValueError(f"wanted {sorted(wanted)}, got {sorted(fields)}")
    return check_preprocessing(**fields)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r}: wanted an object, got {type(content).__name__}")
    return content


_ORBAX, _SHARDS, _SINGLE = "_METADATA", "model.safetensors.index.json", "model.safetensors"


def is_weights_folder(path: Path) -> bool:
    """Whether a folder is Hugging Face's, or Orbax's of named arrays."""
    return any((path / name).is_file() for name in (_ORBAX, _SHARDS, _SINGLE))


def _read_folder(path: Path) -> Weights:
    if (path / _ORBAX).is_file():
        return Weights(_read_orbax(path))
    index, single = path / _SHARDS, path / _SINGLE
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
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
    config = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    _read_hf_config(path, config, weights)
    return weights


def _read_hf_config(folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
    """Adds what config.json and preprocessor_config.json say, of transformers or of timm."""
    stated = config.get("pretrained_cfg")
    if not isinstance(stated, Mapping):  # timm's, which may stand at the top
        stated = config
    if "mean" in stated and "std" in stated:
        weights.preprocessing = _stated(
            folder / "config.json",
            lambda: check_preprocessing(
                stated["mean"],
                stated["std"],
                stated.get("crop_pct", 1.0),
                stated.get("interpolation", "bicubic"),
            ),
        )
    if config.get("model_type") in ("vit", "deit"):
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(
                f"{str(folder)!r}: wanted the activation 'gelu' (erf), its config.json says "
                f"{config['hidden_act']!r}"
            )
        if "layer_norm_eps" in config:
            weights.fields["norm_eps"] = config["layer_norm_eps"]
        if "num_attention_heads" in config:
            weights.fields["num_heads"] = config["num_attention_heads"]
    labels = stated.get("label_names") or config.get("label_names") or config.get("id2label")
    weights.class_names = _class_names(labels)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        _read_processor(processor, _read_json(processor), weights)


def _class_names(labels: Any) -> tuple[str, ...]:
    """Of timm's list, or of Hugging Face's object from "0", "1", ... ; empty for anything else."""
    if isinstance(labels, Mapping):
        labels = [labels.get(str(label)) for label in range(len(labels))]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return ()
    return tuple(labels)


def _read_processor(path: Path, fields: Mapping[str, Any], weights: Weights) -> None:
    if not fields.get("do_normalize", True):
        fields = {**fields, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    wanted = ("image_mean", "image_std", "resample")
    if missing := [key for key in wanted if key not in fields]:
        # Their processors have different defaults: what is not stated is not known.
        weights.notes.append(f"{path.name}: it states no {', '.join(missing)}")
        return
    size, crop = (_side(fields.get(key)) for key in ("size", "crop_size"))
    cropped = fields.get("do_center_crop", False) and size and crop
    weights.preprocessing = _stated(
        path,
        lambda: check_preprocessing(
            fields["image_mean"],
            fields["image_std"],
            crop / size if cropped and crop and size else 1.0,
            _INTERPOLATIONS.get(fields["resample"], "unknown"),
        ),
    )


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height"))
    return size if isinstance(size, int) and size > 0 else None


def _read_orbax(path: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    from vit_jax.weights.checkpoint_reading import one_line, quiet_orbax

    tree, reason = None, ""
    with quiet_orbax():
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(path.absolute())
        except Exception as error:  # Orbax and tensorstore raise their own kinds
            reason = one_line(error)
        if reason:
            gc.collect()  # the coroutines, while they are quiet
    if reason:
        raise ValueError(f"the Orbax folder {str(path)!r} cannot be read: {reason}")
    if not isinstance(tree, dict) or not all(hasattr(leaf, "shape") for leaf in tree.values()):
        raise ValueError(f"the Orbax folder {str(path)!r} holds no named arrays")
    return {name: np.asarray(leaf) for name, leaf in tree.items()}
