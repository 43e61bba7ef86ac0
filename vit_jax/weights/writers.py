"""Writing weights in other people's forms. Each is put in place whole."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from vit_jax.layers.attention import Attention
from vit_jax.models.base import Preprocessing, VisionModel
from vit_jax.models.vit import VisionTransformer
from vit_jax.weights.atomic import check_new_folder, whole
from vit_jax.weights.dialects import DialectError, from_timm
from vit_jax.weights.state_dict import state_dict

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
    }
)
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def _check_no_folder(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the path of a file")


def write_safetensors(
    arrays: Mapping[str, np.ndarray], path: Path, preprocessing: Preprocessing | None
) -> None:
    """Writes arrays, and how images are made ready as metadata."""
    _check_no_folder(path)
    metadata = {"format": "pt"}  # the layout of the arrays is PyTorch's
    if preprocessing is not None:
        metadata["preprocessing"] = json.dumps(asdict(preprocessing))
    with whole(path) as partial:
        save_file(dict(arrays), partial, metadata=metadata)


def _vit(model: VisionModel, dialect: str) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{dialect} is a dialect of vit_* and deit_* models, this one is a "
            f"{type(model).__name__}: its own names are written without a dialect"
        )
    return model


def _said(model: VisionTransformer, dialect: str) -> dict[str, np.ndarray]:
    # What the names alone would not tell: there, another function would be computed.
    scales = {m.scale for _, m in nnx.iter_modules(model) if isinstance(m, Attention)}
    for field, is_other in (
        ("qk_scale", scales != {(model.embed_dim // model.num_heads) ** -0.5}),
        ("no_embed_class", model.no_embed_class),
        ("class_token=False", model.cls_token is None),
        (f"global_pool={model.global_pool!r}", model.global_pool != "token"),
    ):
        if is_other:
            raise ValueError(f"the dialect {dialect!r} has no place for this model's {field}")
    try:
        return from_timm(state_dict(model), dialect, model.num_heads)
    except DialectError as error:
        raise ValueError(str(error)) from error


def write_google(model: VisionModel, path: Path) -> None:
    """Writes the .npz of google-research/vision_transformer."""
    model = _vit(model, "google")
    if path.suffix != ".npz":
        raise ValueError(f"Google's weights are written as .npz, got {str(path)!r}")
    _check_no_folder(path)
    arrays = _said(model, "google")
    if model.norm_eps != 1e-6:
        raise ValueError(f"Google's ViT has norm_eps=1e-6, this model {model.norm_eps}")
    with whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_huggingface(model: VisionModel, path: Path) -> None:
    """Writes a folder for `from_pretrained` of Hugging Face's ViT, or DeiT with a teacher."""
    model = _vit(model, "huggingface")
    check_new_folder(path, _HF_FILES)
    arrays = _said(model, "huggingface")
    if model.img_size[0] != model.img_size[1]:
        raise ValueError(f"Hugging Face's ViT takes square images, this one {model.img_size}")
    if model.num_classes == 0:
        raise ValueError("Hugging Face's ViTForImageClassification has a head, this model has none")
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1]:
        raise ValueError(f"Hugging Face's ViT takes square patches, this one {patch}")
    config = {
        "model_type": "deit" if model.distilled else "vit",
        "architectures": [
            "DeiTForImageClassificationWithTeacher"
            if model.distilled
            else "ViTForImageClassification"
        ],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.drop_path_rates),
        "num_attention_heads": model.num_heads,
        "intermediate_size": next(
            (a.shape[0] for name, a in arrays.items() if name.endswith("intermediate.dense.bias")),
            0,
        ),
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_eps,
        "image_size": model.img_size[0],
        "patch_size": patch[0],
        "num_channels": model.in_chans,
        "qkv_bias": any(name.endswith("query.bias") for name in arrays),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(label): f"LABEL_{label}" for label in range(model.num_classes)},
        "label2id": {f"LABEL_{label}": label for label in range(model.num_classes)},
    }
    with whole(path) as partial:
        partial.mkdir()
        write_safetensors(arrays, partial / "model.safetensors", None)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if model.preprocessing is not None:
            processor = _processor(model.preprocessing, model.img_size[0])
            (partial / "preprocessor_config.json").write_text(
                json.dumps(processor, indent=2) + "\n"
            )


def _processor(preprocessing: Preprocessing, side: int) -> dict[str, object]:
    resized = round(side / preprocessing.crop_fraction)
    return {
        "image_processor_type": "DeiTImageProcessor",  # it resizes and then crops
        "do_resize": True,
        "size": {"height": resized, "width": resized},
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_center_crop": resized != side,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def write_orbax(model: VisionModel, path: Path) -> None:
    """Writes an Orbax folder of the arrays under the names of the model's source."""
    import orbax.checkpoint as ocp

    check_new_folder(path, _ORBAX_FILES)
    with whole(path) as partial, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial.absolute(), state_dict(model))
        checkpointer.wait_until_finished()
