"""The PyTorch module of a registered name: of tests/reference, or transformers' own."""

import inspect
from typing import Any

import torch

from tests.reference.classifier_vit import ClassifierViT
from tests.reference.encoder_vit import EncoderViT
from tests.reference.modular_vit import ModularViT
from tests.reference.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE
from tests.reference.vit import VisionTransformer
from vit_jax.models.dinov2 import Dinov2, Dinov2Config
from vit_jax.models.registry import abstract_model, design_of, model_fields

_REFERENCES: dict[str, type[torch.nn.Module]] = {
    "VisionTransformer": VisionTransformer,
    "T2TViT": T2TViT,
    "T2TViTSE": T2TViTSE,
    "T2TViTDense": T2TViTDense,
    "T2TViTGhost": T2TViTGhost,
    "ViTClassifier": ClassifierViT,
    "EncoderViT": EncoderViT,
    "ModularViT": ModularViT,
}
# Fields that a reference may lack: forms of the same computation, what acts before or in training,
# and the size of those that take images of any.
_OURS_ALONE = {
    "patchify",
    "weight_init",
    "remat",
    "scan_layers",
    "dtype",
    "param_dtype",
    "img_size",
}
_RATES = ("drop_rate", "drop_path_rate")


def reference_fields(name: str) -> dict[str, Any]:
    """Fields in which the reference is not as the name: transformers' DINOv2 with logits."""
    is_dinov2 = design_of(name) is Dinov2
    return {"num_classes": 5, "global_pool": "token_avg"} if is_dinov2 else {}


def _transformers_dinov2(config: Dinov2Config) -> torch.nn.Module:
    import transformers

    family = "Dinov2WithRegisters" if config.reg_tokens else "Dinov2"
    registers = {"num_register_tokens": config.reg_tokens} if config.reg_tokens else {}
    theirs = getattr(transformers, f"{family}Config")(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        image_size=config.img_size,
        patch_size=config.patch_size,
        use_swiglu_ffn=config.swiglu,
        num_labels=config.num_classes,
        **registers,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForImageClassification")(theirs)


def reference_of(name: str, fields: dict[str, Any], *, dropout: bool) -> torch.nn.Module:
    """The module of `create_model(name, **fields)`, with its own initial weights.

    Raises:
      ValueError: its reference lacks a field.
    """
    model = abstract_model(name, **fields)
    if isinstance(model.config, Dinov2Config):
        return _transformers_dinov2(model.config)
    kind = _REFERENCES[type(model).__name__]
    takes = {
        field for base in kind.__mro__ for field in inspect.signature(base.__init__).parameters
    }
    known = {**model_fields(name), **fields}
    for field in known.keys() - takes - _OURS_ALONE:
        rate = field.endswith(_RATES)
        if not rate or (dropout and known[field] != model_fields(name)[field]):
            raise ValueError(f"{kind.__name__} has no field {field!r}, which {name} has")
    if not dropout:
        known |= {field: 0.0 for field in known if field.endswith(_RATES)}
    torch.manual_seed(0)
    return kind(**{k: v for k, v in known.items() if k in takes})
