"""The PyTorch module of a registered name: of tests/reference, or transformers' or timm's own."""

import inspect
from typing import Any

import torch

from tests.models.timm_models import timm_models
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.encoder_vit import EncoderViT
from tests.reference.modular_vit import ModularViT
from tests.reference.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE
from tests.reference.vit import VisionTransformer
from vit_jax.models.base import VisionModel
from vit_jax.models.cait import Cait
from vit_jax.models.dinov2 import Dinov2
from vit_jax.models.mae import Mae
from vit_jax.models.registry import abstract_model, design_of, model_fields
from vit_jax.models.siglip_naflex import SiglipNaflex
from vit_jax.models.swin_v2 import SwinV2
from vit_jax.weights.dialects import DialectError, dialect_for
from vit_jax.weights.huggingface import config_of

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
# and the size of those that take images of any, with the rule of their positions.
_OURS_ALONE = {
    "patchify",
    "weight_init",
    "remat",
    "scan_layers",
    "dtype",
    "param_dtype",
    "img_size",
    "position_resize",
}
_REFERENCE_FIELDS: dict[type[VisionModel[Any]], dict[str, Any]] = {
    Dinov2: {"num_classes": 5, "global_pool": "token_avg"},
    SwinV2: {"window_rule": "transformers"},
}
_RATES = ("drop_rate", "drop_path_rate")


def reference_fields(name: str) -> dict[str, Any]:
    """Fields in which transformers' classes are not as the name.

    DINOv2 has logits; and what acts at sizes other than the model's own follows their rule.
    """
    design = design_of(name)
    fields = _REFERENCE_FIELDS.get(design, {})
    if design.__name__ in _REFERENCES or design is Cait:
        return fields
    # The last first: DINOv2's class with registers, the first, takes a model without them too.
    for dialect in reversed(design.dialects):
        rules = {k: v for k, v in dialect.fields.items() if k.endswith("_resize")}
        try:
            dialect_for(abstract_model(name, **fields, **rules), "huggingface")
        except DialectError:
            continue
        return fields | rules
    raise ValueError(f"transformers has no class for {name}")


def _patches(images: torch.Tensor, side: int) -> tuple[torch.Tensor, ...]:
    """Images (B, C, H, W) as the flexible SigLIP 2 takes them: patches, mask, rows and columns."""
    batch, _, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, R, p, K, p)
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    mask = torch.ones(batch, rows * columns, dtype=torch.int32)
    return patches, mask, torch.tensor([[rows, columns]] * batch)


def _of_transformers(model: VisionModel[Any]) -> torch.nn.Module:
    """Their class of the design, configured as this model; it answers with one array alone."""
    import transformers

    dialect, config = dialect_for(model, "huggingface"), model.config
    kind: Any = getattr(transformers, dialect.architecture)
    fields = {k: v for k, v in config_of(model, dialect).items() if k != "architectures"}
    if model.num_classes:
        fields["num_labels"] = model.num_classes
    module = kind(kind.config_class(**fields))
    side = config.patch_size if isinstance(model, SiglipNaflex) else None

    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        inputs = (images,) if side is None else _patches(images, side)
        answer = kind.forward(self, *inputs)
        return next(answer[key] for key in _ANSWERS if key in answer)

    def encode(self: Any, images: torch.Tensor) -> torch.Tensor:
        """All patches of MAE in their order, and its class token."""
        noise = torch.arange(self.embeddings.patch_embeddings.num_patches).expand(len(images), -1)
        return kind.forward(self, images, noise=noise).last_hidden_state[:, 0]

    if isinstance(model, Mae):
        module.config.mask_ratio, forward = 0.0, encode
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


_ANSWERS = ("logits", "image_embeds", "pooler_output")


def reference_of(name: str, fields: dict[str, Any], *, dropout: bool) -> torch.nn.Module:
    """The module of `create_model(name, **fields)`, with its own initial weights.

    Raises:
      ValueError: its reference lacks a field.
    """
    model = abstract_model(name, **fields)
    is_cait = isinstance(model, Cait)
    kind = timm_models("cait").Cait if is_cait else _REFERENCES.get(type(model).__name__)
    torch.manual_seed(0)
    if kind is None:
        return _of_transformers(model)
    takes = {
        field for base in kind.__mro__ for field in inspect.signature(base.__init__).parameters
    }
    known = {**model_fields(name), **fields}
    ours = _OURS_ALONE | ({"norm_eps"} if is_cait else set())  # timm's holds it in its norm
    for field in known.keys() - takes - ours:
        rate = field.endswith(_RATES)
        if not rate or (dropout and known[field] != model_fields(name)[field]):
            raise ValueError(f"{kind.__name__} has no field {field!r}, which {name} has")
    if not dropout:
        known |= {field: 0.0 for field in known if field.endswith(_RATES)}
    return kind(**{k: known[k] for k in known.keys() & takes - {"dtype", "param_dtype"}})
