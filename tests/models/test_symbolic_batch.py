"""Models of any grid take a batch whose size is not known when they are traced, as exports are."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vit_jax.models.registry import abstract_model

_TINY = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "clip", "siglip", "siglip_naflex"])
def test_any_batch(name: str) -> None:
    fields = {"num_patches": 4} if name == "siglip_naflex" else {}
    model = abstract_model(name, **_TINY, **fields)
    model.eval()
    graph, state = nnx.split(model)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    found = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, images)
    assert found.shape == (batch, 16)
