"""A model's weights to files, in its own names or other people's. Each is put in place whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vit_jax.models.base import VisionModel
from vit_jax.models.spec import ModelSpec
from vit_jax.weights.atomic import check_new_folder, whole
from vit_jax.weights.dialects import DialectError, dialect_for, from_own
from vit_jax.weights.formats import SAFETENSORS, TORCH_SUFFIXES
from vit_jax.weights.huggingface import PROBLEM_TYPES, config_of, labels_of, processor_of
from vit_jax.weights.spec_json import SPEC, SPEC_FILE, spec_beside, spec_to_dict, text_beside
from vit_jax.weights.state_dict import state_dict
from vit_jax.weights.torch_writer import write_torch_file

_HF_FILES = frozenset({"config.json", "preprocessor_config.json", "model.safetensors"})
_ORBAX_FILES = frozenset(
    {
        "_CHECKPOINT_METADATA",
        "_METADATA",
        "_sharding",
        "array_metadatas",
        "commit_success.txt",
        "d",
        "manifest.ocdbt",
        "ocdbt.process_0",
        SPEC_FILE,
    }
)


def save_pretrained(
    model: VisionModel, path: str | os.PathLike, *, dialect: str | None = None
) -> tuple[str, ...]:
    """Writes the model's weights and its description, `model.spec`.

    The file is put in place whole: a crash leaves the old one. The description is inside of it; of
    Google's .npz, which has no place for it, it is beside, in NAME.npz.json.

    Args:
      model: any.
      path: the form follows from it: a .safetensors or a .pth / .pt file under the names and in the
        layouts of the model's PyTorch source, whose module loads it with `strict=True`.
      dialect: "huggingface" (path: a folder, which transformers' class of the design takes), for a
        `vit_*` model "google" (path: a .npz file), "orbax" (path: a folder; any model), or "timm",
        which for most designs has the source's names; None for the source's own.

    Returns:
      What of the description only vit_jax will read there, a line each: mostly nothing.

    Raises:
      ValueError: a path of another form; a dialect that has no place for the model's arrays.
    """
    path = Path(path)
    notes: list[str] = []
    if dialect == "huggingface":
        notes = _write_huggingface(model, path)
    elif dialect == "google":
        _write_google(model, path)
    elif dialect == "orbax":
        _write_orbax(model, path)
    elif dialect not in (None, "timm"):
        raise ValueError(
            f"dialect must be None, 'huggingface', 'google', 'orbax' or 'timm', got {dialect!r}"
        )
    elif path.suffix == SAFETENSORS:
        _write_safetensors(_named(model, dialect), path, model.spec)
    elif path.suffix in TORCH_SUFFIXES:
        spec = json.dumps(spec_to_dict(model.spec)).encode()
        write_torch_file(path, _named(model, dialect), {SPEC_FILE: spec})
    else:
        raise ValueError(
            f"weights are written as .safetensors, or as {', '.join(TORCH_SUFFIXES)}, got "
            f"{str(path)!r}"
        )
    return tuple(notes)


def _check_no_folder(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the path of a file")


def _write_safetensors(
    arrays: Mapping[str, np.ndarray], path: Path, spec: ModelSpec | None
) -> None:
    """Writes arrays, and the description of their model as metadata."""
    _check_no_folder(path)
    metadata = {"format": "pt"}  # the layout of the arrays is PyTorch's
    if spec is not None:
        metadata[SPEC] = json.dumps(spec_to_dict(spec))
    with whole(path) as partial:
        save_file(dict(arrays), partial, metadata=metadata)


def _named(model: VisionModel[Any], dialect: str | None) -> dict[str, np.ndarray]:
    """The model's arrays under its source's names, or under timm's where these are others."""
    is_own = dialect is None or all(known.name != dialect for known in model.dialects)
    return state_dict(model) if is_own else _said(model, "timm")


def _said(model: VisionModel[Any], dialect: str) -> dict[str, np.ndarray]:
    """The model's arrays under the names of a dialect, which it has a place for."""
    try:
        return from_own(model, state_dict(model), dialect)
    except DialectError as error:
        raise ValueError(str(error)) from error


def _write_google(model: VisionModel[Any], path: Path) -> None:
    """Writes the .npz of google-research/vision_transformer."""
    if path.suffix != ".npz":
        raise ValueError(f"Google's weights are written as .npz, got {str(path)!r}")
    _check_no_folder(path)
    arrays = _said(model, "google")
    with whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    # An entry of it would be taken for an array by Google's code.
    with whole(spec_beside(path)) as partial:
        partial.write_text(text_beside(model.spec, path))


def _write_huggingface(model: VisionModel[Any], path: Path) -> list[str]:
    """Writes a folder for `from_pretrained` of transformers' class of the design."""
    check_new_folder(path, _HF_FILES)
    arrays = _said(model, "huggingface")
    dialect = dialect_for(model, "huggingface")
    if model.num_classes == 0 and "num_classes" not in dialect.fields:
        raise ValueError(f"Hugging Face's {dialect.architecture} has a head, this model has none")
    labels = labels_of(model.spec.class_names, model.num_classes)
    preprocessing = model.spec.preprocessing
    processor = preprocessing and processor_of(preprocessing, model.input_size)
    config = {
        **config_of(model, dialect),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **_labels(labels),
        **_problem_type(model),
        SPEC: spec_to_dict(model.spec),
    }
    with whole(path) as partial:
        partial.mkdir()
        _write_safetensors(arrays, partial / "model.safetensors", None)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if processor is not None:
            (partial / "preprocessor_config.json").write_text(
                json.dumps(processor, indent=2) + "\n"
            )
    notes = []
    if processor is None and preprocessing is not None:
        rows, columns = model.input_size
        notes.append(
            f"preprocessor_config.json: not written, transformers has no {preprocessing.crop_mode} "
            f"crop of {rows}x{columns} (config.json says it for vit_jax)"
        )
    if model.spec.target is not None and model.spec.target.mean:
        notes.append(
            "transformers gives outputs, not numbers, which are output * std + mean (config.json "
            "says it for vit_jax)"
        )
    return notes


def _labels(names: list[str]) -> dict[str, Any]:
    if not names:
        return {}
    return {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def _problem_type(model: VisionModel[Any]) -> dict[str, str]:
    target = model.spec.target
    return {} if target is None else {"problem_type": PROBLEM_TYPES[target.kind]}


def _write_orbax(model: VisionModel[Any], path: Path) -> None:
    """Writes an Orbax folder of the arrays under the names of the model's source."""
    import orbax.checkpoint as ocp

    from vit_jax.weights.checkpoint_reading import quiet_orbax

    check_new_folder(path, _ORBAX_FILES)
    with whole(path) as partial, quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial.absolute(), state_dict(model))
        checkpointer.wait_until_finished()
        (partial / SPEC_FILE).write_text(json.dumps(spec_to_dict(model.spec)))
