"""Live comparison of T2T-ViT with PyTorch at random weights and sizes that no fixture has."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.parity import compare
from tests.parity.live import assert_equals_pytorch
from tests.reference.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE
from tests.tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")

SMALL = {"embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 7, "token_dim": 8}
MODELS = {
    "se": ("t2t_vit_14_se", T2TViTSE),
    "dense": ("t2t_vit_dense", T2TViTDense),
    "ghost": ("t2t_vit_16_ghost", T2TViTGhost),
}
CASES: dict[str, dict[str, Any]] = {
    # Patch grids that are not size // 16, where not stated otherwise.
    "performer": {"img_size": (100, 40), "in_chans": 1, "mlp_ratio": 2.5, "token_dim": 4},
    "performer wide": {"img_size": (36, 52), "in_chans": 4, "qkv_bias": True, "depth": 2},
    "performer odd": {"img_size": (52, 20), "token_dim": 9, "num_heads": 3, "num_classes": 0},
    "performer one token": {"img_size": (9, 14), "num_heads": 1, "norm_eps": 1e-6},
    "performer square": {"img_size": (32, 32), "qk_scale": 0.37},  # 32 // 16
    "transformer": {"img_size": (36, 52), "tokens_type": "transformer", "in_chans": 1},
    "convolution": {"img_size": (100, 52), "tokens_type": "convolution", "in_chans": 4},
    "se": {"img_size": (52, 36), "embed_dim": 32, "qkv_bias": True},
    "dense": {
        "img_size": (36, 52),
        "growth_rate": 8,
        "block_config": (1, 2),
        "qk_scale": 0.4,
        "qkv_bias": True,
    },
    "ghost": {"img_size": (36, 52), "mlp_ratio": 3.0, "qkv_bias": True, "qk_scale": 0.4},
}
# The fixtures hold the other parts of the design.
FAST = ["performer one token"]


@pytest.mark.parametrize("case", mostly_slow(CASES, FAST))
def test_equals_pytorch(case: str, record: compare.Record) -> None:
    name, kind = MODELS.get(case.split()[0], ("t2t_vit_7", T2TViT))
    fields = {**SMALL, **CASES[case]}
    fields.setdefault("mlp_ratio", 2.0)
    if kind is T2TViTDense:
        del fields["depth"]
    model = vit_jax.create_model(
        name, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64, **fields
    )
    model.eval()
    table = kind(**fields).pos_embed.numpy()
    np.testing.assert_allclose(vit_jax.state_dict(model)["pos_embed"], table, atol=6e-8, rtol=0)
    shape = (*fields["img_size"], fields.get("in_chans", 3))
    assert_equals_pytorch(lambda: kind(**fields), model, shape, record)
