"""Models of any grid take a batch whose size is not known when they are traced, as exports are."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vit_jax.models.registry import abstract_model

_TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


_STAGES = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
_STAGES |= {"window_size": 2, "num_classes": 16}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, _TINY) for name in ("dinov2", "dinov3", "clip", "siglip")),
        ("siglip_naflex", {**_TINY, "num_patches": 4}),
        ("swin", _STAGES),
        ("swinv2", _STAGES),
    ],
)
def test_any_batch(name: str, fields: dict[str, Any]) -> None:
    model = abstract_model(name, **fields)
    model.eval()
    graph, state = nnx.split(model)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    found = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, images)
    assert found.shape == (batch, 16)
