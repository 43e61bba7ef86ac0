"""Live comparison of seeds 000 and 001 with PyTorch at fields and sizes no stored fixture has."""

from typing import Any

import jax.numpy as jnp
import pytest

from tests.parity import compare
from tests.parity.live import assert_equals_pytorch
from tests.reference.encoder_vit import EncoderViT
from tests.reference.modular_vit import ModularViT
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model

pytestmark = pytest.mark.usefixtures("x64")

KINDS = {"vit_encoder": EncoderViT, "vit_modular": ModularViT}
SMALL = {
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_dim": 20,
    "max_tokens": 30,
    "num_classes": 7,
}
HEAD = {"head_hidden_dim": 11}
# name: (registered name, fields, fields that the reference does not have, image size)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "encoder": ("vit_encoder", {"patch_size": (3, 5), "in_chans": 1}, {}, (12, 20)),
    "encoder conv": ("vit_encoder", {"in_chans": 4}, {"patchify": "conv"}, (24, 16)),
    "encoder slots": ("vit_encoder", {"class_token_batch": 2, "norm_eps": 1e-3}, {}, (8, 4)),
    "encoder across the batch": ("vit_encoder", {"batch_first": False, "num_heads": 6}, {}, (8, 8)),
    "modular": ("vit_modular", {**HEAD, "patch_size": (5, 3), "in_chans": 1}, {}, (20, 12)),
    "modular unfold": ("vit_modular", {**HEAD, "in_chans": 4}, {"patchify": "unfold"}, (16, 24)),
    "modular shared": ("vit_modular", {**HEAD, "share_layers": True, "norm_eps": 1e-3}, {}, (8, 4)),
}
# Fixtures hold what the others do, in other sizes.
FAST = ["encoder", "encoder slots", "modular", "modular unfold"]


@pytest.mark.parametrize("case", mostly_slow(CASES, FAST))
def test_equals_pytorch(case: str, record: compare.Record) -> None:
    """Ours is built for another size of image than it gets."""
    name, fields, ours_alone, size = CASES[case]
    fields = {**SMALL, **fields}
    model = abstract_model(
        name,
        img_size=fields.get("patch_size", 4),  # of one patch
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **fields,
        **ours_alone,
    )
    model.eval()
    shape = (*size, fields.get("in_chans", 3))
    assert_equals_pytorch(lambda: KINDS[name](**fields), model, shape, record)
