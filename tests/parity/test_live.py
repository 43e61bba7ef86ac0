"""Live comparison with PyTorch at random weights and sizes that no stored fixture has."""

from typing import Any

import jax.numpy as jnp
import pytest

from tests.parity import compare
from tests.parity.live import assert_equals_pytorch
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.vit import VisionTransformer
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model

pytestmark = pytest.mark.usefixtures("x64")

VIT = {"img_size": (15, 25), "patch_size": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}
CLASSIFIER = {
    "img_size": (18, 30),
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 20,
    "mlp_head_units": (14, 11),
    "drop_rate": 0.0,
    "head_drop_rate": 0.0,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"patch_size": (3, 5), "in_chans": 1},
    "channels": {"in_chans": 4, "num_heads": 6, "mlp_ratio": 2.5, "patchify": "unfold"},
    "scale": {"qk_scale": 0.37, "qkv_bias": False, "norm_eps": 1e-5, "representation_size": 7},
    "registers": {"reg_tokens": 3, "qk_norm": True, "init_values": 0.3},
    "deit3": {"no_embed_class": True, "init_values": 0.1, "in_chans": 1},
    "registers without positions": {
        "reg_tokens": 2,
        "no_embed_class": True,
        "in_chans": 4,
        "swiglu": True,
    },
    "distilled": {"distilled": True, "representation_size": 7},
    "no classes": {"num_classes": 0, "in_chans": 1},
    "distilled, no classes": {"distilled": True, "num_classes": 0},
    "no pooling": {"global_pool": ""},
    "distilled without positions": {"distilled": True, "no_embed_class": True},
    "mean pool": {"global_pool": "avg", "class_token": False, "representation_size": 7},
    "max pool": {"global_pool": "max", "reg_tokens": 1},
    "mean and max pool": {"global_pool": "avgmax", "class_token": False, "reg_tokens": 2},
}
CLASSIFIER_CASES: dict[str, dict[str, Any]] = {
    "classifier": {"patch_size": 6, "in_chans": 1},
    "classifier conv": {"patch_size": (9, 5), "in_chans": 4, "patchify": "conv"},
    "classifier slots": {"patch_size": 6, "class_token_batch": 2, "norm_eps": 1e-5},
}
# Fixtures hold what these do, in other sizes.
SLOW = ["scale", "registers", "deit3", "distilled", "classifier slots"]


@pytest.mark.parametrize(
    "case",
    mostly_slow(
        [*CASES, *CLASSIFIER_CASES],
        fast=[case for case in (*CASES, *CLASSIFIER_CASES) if case not in SLOW],
    ),
)
def test_equals_pytorch(case: str, record: compare.Record) -> None:
    if case in CLASSIFIER_CASES:
        name, kind = "vit_classifier", ClassifierViT
        fields = {**CLASSIFIER, **CLASSIFIER_CASES[case]}
    else:
        name, kind = "vit_base_patch16_224", VisionTransformer
        fields = {**VIT, **CASES[case]}
    fields.setdefault("num_classes", 7)
    model = abstract_model(name, dtype=jnp.float64, param_dtype=jnp.float64, **fields)
    model.eval()
    fields.pop("patchify", None)
    shape = (*fields["img_size"], fields.get("in_chans", 3))
    assert_equals_pytorch(lambda: kind(**fields), model, shape, record)
