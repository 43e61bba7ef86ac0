"""The names of the models, and what each is built from."""

import dataclasses
import difflib
import fnmatch
import inspect
from collections.abc import Callable
from typing import Any, cast

from flax import nnx

from vit_jax.models.base import (
    CIFAR100_MEAN,
    CIFAR100_STD,
    HALF_MEAN,
    HALF_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    VisionModel,
)
from vit_jax.models.classifier_vit import ViTClassifier
from vit_jax.models.encoder_vit import EncoderViT
from vit_jax.models.modular_vit import ModularViT
from vit_jax.models.streams import Streams
from vit_jax.models.t2t_vit import T2TViT, T2TViTGhost, T2TViTSE
from vit_jax.models.t2t_vit_dense import T2TViTDense
from vit_jax.models.vit import VisionTransformer


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered name: its class, the fields that are not the class's defaults, preprocessing."""

    model_class: Callable[..., VisionModel]
    fields: dict[str, Any]
    preprocessing: Preprocessing


# embed_dim, depth, num_heads
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def _vit(family: str, size: str, patch_size: int, img_size: int, **fields: Any) -> Entry:
    embed_dim, depth, num_heads = _SIZES[size]
    # timm: ViT takes Inception's statistics and DeiT ImageNet's; the 384 forms are not cropped.
    mean, std = (HALF_MEAN, HALF_STD) if family == "vit" else (IMAGENET_MEAN, IMAGENET_STD)
    return Entry(
        VisionTransformer,
        {
            "img_size": img_size,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            **fields,
        },
        Preprocessing(mean, std, crop_fraction=1.0 if img_size == 384 else 0.9),
    )


_T2T = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, crop_fraction=0.9)


def _t2t_entries() -> dict[str, Entry]:
    entries = {"t2t_vit_dense": Entry(T2TViTDense, {}, _T2T)}
    for name, model_class, embed_dim, depth, num_heads, mlp_ratio in (
        ("t2t_vit_7", T2TViT, 256, 7, 4, 2.0),
        ("t2t_vit_10", T2TViT, 256, 10, 4, 2.0),
        ("t2t_vit_12", T2TViT, 256, 12, 4, 2.0),
        ("t2t_vit_14", T2TViT, 384, 14, 6, 3.0),
        ("t2t_vit_19", T2TViT, 448, 19, 7, 3.0),
        ("t2t_vit_24", T2TViT, 512, 24, 8, 3.0),
        ("t2t_vit_t_14", T2TViT, 384, 14, 6, 3.0),
        ("t2t_vit_t_19", T2TViT, 448, 19, 7, 3.0),
        ("t2t_vit_t_24", T2TViT, 512, 24, 8, 3.0),
        ("t2t_vit_14_resnext", T2TViT, 384, 14, 32, 3.0),
        ("t2t_vit_14_wide", T2TViT, 768, 4, 12, 3.0),
        ("t2t_vit_14_se", T2TViTSE, 384, 14, 6, 3.0),
        ("t2t_vit_16_ghost", T2TViTGhost, 384, 16, 6, 3.0),
    ):
        fields = {
            "tokens_type": "transformer" if name.startswith("t2t_vit_t_") else "performer",
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
        }
        entries[name] = Entry(model_class, fields, _T2T)
    return entries


def _entries() -> dict[str, Entry]:
    entries = {}
    for size, patch, img_size in (
        *(((size, 16, 224)) for size in ("tiny", "small", "base", "large")),
        *(((size, 32, 224)) for size in ("small", "base", "large")),
        ("base", 8, 224),
        ("huge", 14, 224),
        *(((size, 16, 384)) for size in ("tiny", "small", "base", "large")),
        *(((size, 32, 384)) for size in ("base", "large")),
    ):
        entries[f"vit_{size}_patch{patch}_{img_size}"] = _vit("vit", size, patch, img_size)
    for size, img_size in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        for infix, distilled in (("", False), ("_distilled", True)):
            entries[f"deit_{size}{infix}_patch16_{img_size}"] = _vit(
                "deit", size, 16, img_size, distilled=distilled
            )
    for size, patch, img_size in (
        *((size, 16, img_size) for size in ("small", "base", "large") for img_size in (224, 384)),
        ("huge", 14, 224),
    ):
        entries[f"deit3_{size}_patch{patch}_{img_size}"] = _vit(
            "deit3", size, patch, img_size, no_embed_class=True, init_values=1e-6
        )
    entries |= _t2t_entries()
    entries["vit_classifier"] = Entry(
        ViTClassifier, {}, Preprocessing(CIFAR100_MEAN, CIFAR100_STD, interpolation="bilinear")
    )
    # Their texts normalise nothing: 0..1 becomes -1..1.
    for name, model_class in (("vit_encoder", EncoderViT), ("vit_modular", ModularViT)):
        entries[name] = Entry(
            model_class, {}, Preprocessing(HALF_MEAN, HALF_STD, interpolation="bilinear")
        )
    return entries


_REGISTRY = _entries()


def list_models(pattern: str = "*") -> list[str]:
    """Returns the registered names that match a glob, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def _entry(name: str) -> Entry:
    if name in _REGISTRY:
        return _REGISTRY[name]
    near = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise ValueError(
        f"unknown model {name!r}{hint}; vit_jax.list_models() gives all {len(_REGISTRY)} names"
    )


def _defaults(model_class: Callable[..., VisionModel]) -> dict[str, Any]:
    # Not the signature of the class: NNX's metaclass hides it.
    parameters = inspect.signature(cast(type, model_class).__init__).parameters
    return {n: p.default for n, p in parameters.items() if n not in ("self", "rngs")}


def model_fields(name: str) -> dict[str, Any]:
    """Returns every constructor field of a registered name and its default there.

    Raises:
      ValueError: an unknown name; near ones are proposed.
    """
    entry = _entry(name)
    return {**_defaults(entry.model_class), **entry.fields}


def model_preprocessing(name: str) -> Preprocessing:
    """Returns how images of a registered name are made ready.

    Raises:
      ValueError: an unknown name; near ones are proposed.
    """
    return _entry(name).preprocessing


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> VisionModel:
    """Builds a registered model, in train mode.

    Args:
      name: one of `list_models()`.
      rngs: stream "params" draws the initial weights.
      **overrides: fields of the constructor, in place of the name's own.

    Raises:
      ValueError: an unknown name or field (near or valid ones are named), or a field that does not
        fit.
    """
    fields = model_fields(name)
    for field in overrides:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]!r}?" if near else ","
            raise ValueError(
                f"unknown field {field!r} of {name}{hint} valid fields: {', '.join(fields)}"
            )
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs must be flax.nnx.Rngs, such as nnx.Rngs(0), got {rngs!r}")
    entry = _entry(name)
    model = entry.model_class(**{**entry.fields, **overrides}, rngs=rngs)
    if model.in_chans == len(entry.preprocessing.mean):
        model.preprocessing = entry.preprocessing
    return model


def abstract_model(name: str, **overrides: Any) -> VisionModel:
    """The model of `create_model`, in train mode, its arrays as shapes and types alone.

    Raises:
      ValueError: see `create_model`.
    """
    return nnx.eval_shape(lambda: create_model(name, rngs=Streams(0), **overrides))
