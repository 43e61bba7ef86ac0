"""The softmax layer of T2T's token module."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.layers.primitives import abstract, assert_equals_fixture, load, types
from tests.models.families import rms
from vit_jax.layers.token_transformer import TokenTransformer

NAME = "prim_token_transformer"


def layer(dtype: Any, **fields: Any) -> TokenTransformer:
    return abstract(TokenTransformer, 27, 16, drop_rate=0.0, **types(dtype), **fields)


@pytest.mark.usefixtures("x64")
def test_fixture_float64() -> None:
    assert_equals_fixture(NAME, layer(jnp.float64), jnp.float64)


def test_fixture_float32() -> None:
    assert_equals_fixture(NAME, layer(jnp.float32), jnp.float32)


@pytest.mark.usefixtures("x64")
def test_scale() -> None:
    """That of the input's width unless given; the output's is another."""
    assert_equals_fixture(NAME, layer(jnp.float64, qk_scale=27**-0.5), jnp.float64)
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        assert_equals_fixture(NAME, layer(jnp.float64, qk_scale=16**-0.5), jnp.float64)


@pytest.mark.usefixtures("x64")
def test_attention_alone() -> None:
    """The skip connection starts at the values."""
    model = layer(jnp.float64)
    fixture, x = load(NAME, model, jnp.float64)
    want = fixture.arrays["attn_out"]
    got = jax.jit(lambda x: model.attn(model.norm1(x)))(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * rms(want))
