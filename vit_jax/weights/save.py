"""A model's weights to files, in its own names or other people's. Each is put in place whole."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vit_jax.layers.attention import Attention
from vit_jax.models.base import VisionModel
from vit_jax.models.spec import ModelSpec
from vit_jax.weights.atomic import check_new_folder, whole
from vit_jax.weights.dialects import DialectError, from_timm
from vit_jax.weights.formats import SAFETENSORS, TORCH_SUFFIXES
from vit_jax.weights.huggingface import labels_of, processor_of
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
) -> None:
    """Writes the model's weights and its description, `model.spec`.

    The file is put in place whole: a crash leaves the old one. The description is inside of it; of
    Google's .npz, which has no place for it, it is beside, in NAME.npz.json.

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
        _write_huggingface(model, path)
    elif dialect == "google":
        _write_google(model, path)
    elif dialect == "orbax":
        _write_orbax(model, path)
    elif dialect is not None:
        raise ValueError(
            f"dialect must be None, 'huggingface', 'google' or 'orbax', got {dialect!r}"
        )
    elif path.suffix == SAFETENSORS:
        _write_safetensors(state_dict(model), path, model.spec)
    elif path.suffix in TORCH_SUFFIXES:
        spec = json.dumps(spec_to_dict(model.spec)).encode()
        write_torch_file(path, state_dict(model), {SPEC_FILE: spec})
    else:
        raise ValueError(
            f"weights are written as .safetensors, or as {', '.join(TORCH_SUFFIXES)}, got "
            f"{str(path)!r}"
        )


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


def _said(model: VisionModel[Any], dialect: str) -> dict[str, np.ndarray]:
    """The model's arrays under the names of a dialect, which it has a place for."""
    if dialect not in model.dialects:
        raise ValueError(
            f"{dialect} is a dialect of vit_* and deit_* models, this one is a "
            f"{type(model).__name__}: its own names are written without a dialect"
        )
    config = model.config
    # What the names alone would not tell: there, another function would be computed.
    scales = {m.scale for _, m in nnx.iter_modules(model) if isinstance(m, Attention)}
    for field, is_other in (
        ("qk_scale", scales != {(config.embed_dim // config.num_heads) ** -0.5}),
        ("no_embed_class", config.no_embed_class),
        ("class_token=False", not config.class_token),
        (f"global_pool={config.global_pool!r}", config.global_pool != "token"),
    ):
        if is_other:
            raise ValueError(f"the dialect {dialect!r} has no place for this model's {field}")
    try:
        return from_timm(state_dict(model), dialect, config.num_heads)
    except DialectError as error:
        raise ValueError(str(error)) from error


def _write_google(model: VisionModel[Any], path: Path) -> None:
    """Writes the .npz of google-research/vision_transformer."""
    if path.suffix != ".npz":
        raise ValueError(f"Google's weights are written as .npz, got {str(path)!r}")
    _check_no_folder(path)
    arrays = _said(model, "google")
    if model.config.norm_eps != 1e-6:
        raise ValueError(f"Google's ViT has norm_eps=1e-6, this model {model.config.norm_eps}")
    with whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    # An entry of it would be taken for an array by Google's code.
    with whole(spec_beside(path)) as partial:
        partial.write_text(text_beside(model.spec, path))


def _write_huggingface(model: VisionModel[Any], path: Path) -> None:
    """Writes a folder for `from_pretrained` of Hugging Face's ViT, or DeiT with a teacher."""
    check_new_folder(path, _HF_FILES)
    arrays, fields = _said(model, "huggingface"), model.config
    if model.img_size[0] != model.img_size[1]:
        raise ValueError(f"Hugging Face's ViT takes square images, this one {model.img_size}")
    if model.num_classes == 0:
        raise ValueError("Hugging Face's ViTForImageClassification has a head, this model has none")
    if not isinstance(fields.patch_size, int):
        raise ValueError(f"Hugging Face's ViT takes square patches, this one {fields.patch_size}")
    labels = labels_of(model.spec.class_names, model.num_classes)
    config = {
        "model_type": "deit" if fields.distilled else "vit",
        "architectures": [
            "DeiTForImageClassificationWithTeacher"
            if fields.distilled
            else "ViTForImageClassification"
        ],
        "hidden_size": fields.embed_dim,
        "num_hidden_layers": fields.depth,
        "num_attention_heads": fields.num_heads,
        "intermediate_size": next(
            (a.shape[0] for name, a in arrays.items() if name.endswith("intermediate.dense.bias")),
            0,
        ),
        "hidden_act": "gelu",
        "layer_norm_eps": fields.norm_eps,
        "image_size": model.img_size[0],
        "patch_size": fields.patch_size,
        "num_channels": model.in_chans,
        "qkv_bias": any(name.endswith("query.bias") for name in arrays),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(label): name for label, name in enumerate(labels)},
        "label2id": {name: label for label, name in enumerate(labels)},
        SPEC: spec_to_dict(model.spec),
    }
    with whole(path) as partial:
        partial.mkdir()
        _write_safetensors(arrays, partial / "model.safetensors", None)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if model.spec.preprocessing is not None:
            processor = processor_of(model.spec.preprocessing, model.img_size[0])
            (partial / "preprocessor_config.json").write_text(
                json.dumps(processor, indent=2) + "\n"
            )


def _write_orbax(model: VisionModel[Any], path: Path) -> None:
    """Writes an Orbax folder of the arrays under the names of the model's source."""
    import orbax.checkpoint as ocp

    check_new_folder(path, _ORBAX_FILES)
    with whole(path) as partial, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial.absolute(), state_dict(model))
        checkpointer.wait_until_finished()
        (partial / SPEC_FILE).write_text(json.dumps(spec_to_dict(model.spec)))
