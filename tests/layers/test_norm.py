"""LayerNorm's statistics against float64, where the mean is many deviations."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.layers.norm import layer_norm

_EPS = 1e-6


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [
        (jnp.float32, 0.0, 1e-6),
        # Off by a tenth with E[x^2] - E[x]^2; rounding the inputs to float32 costs 4e-5.
        (jnp.float32, 1000.0, 2e-4),
        # A unit in the last place of the output; rounding these inputs costs 0.3 and 0.04.
        (jnp.bfloat16, 100.0, 2.0**-7),
        (jnp.float16, 100.0, 2.0**-9),
    ],
)
def test_normalises_as_float64(dtype, mean, tolerance):
    norm = layer_norm(384, _EPS, dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    drawn = np.random.default_rng(0).standard_normal((64, 384)) + mean
    x = jnp.asarray(drawn, dtype)

    given = np.asarray(x, np.float64)
    centred = given - given.mean(axis=-1, keepdims=True)
    wanted = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + _EPS)
    error = np.abs(np.asarray(norm(x), np.float64) - wanted)
    assert (error / np.maximum(np.abs(wanted), 1)).max() < tolerance
