"""The squeeze-and-excite gate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.primitives import SETTINGS, abstract, assert_equals_fixture, load, types
from tests.models.families import rms
from vit_jax.layers.squeeze_excite import SqueezeExcite

NAME = "prim_se_layer"


def layer(dtype: Any) -> SqueezeExcite:
    return abstract(SqueezeExcite, 64, reduction=16, **types(dtype))


@pytest.mark.usefixtures("x64")
def test_fixture_float64() -> None:
    assert_equals_fixture(NAME, layer(jnp.float64), jnp.float64)


def test_fixture_float32() -> None:
    assert_equals_fixture(NAME, layer(jnp.float32), jnp.float32)


@pytest.mark.usefixtures("x64")
def test_one_gate_for_all_tokens_of_an_image() -> None:
    model = layer(jnp.float64)
    fixture, x = load(NAME, model, jnp.float64)
    gate = np.asarray(jax.jit(lambda x: model(x) / x)(x))
    want = np.broadcast_to(fixture.arrays["gate"][:, None], gate.shape)
    np.testing.assert_allclose(gate, want, rtol=0, atol=1e-12 * rms(want))


def test_a_width_below_the_reduction_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"embed_dim // 16.*at least 1, got 0"):
        SqueezeExcite(15, **SETTINGS, **types(jnp.float32))
