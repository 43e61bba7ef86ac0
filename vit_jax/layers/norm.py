"""LayerNorm, as PyTorch computes it."""

import jax
from flax import nnx
from flax.typing import Dtype, Initializer


def layer_norm(
    dim: int,
    eps: float,
    *,
    scale_init: Initializer = jax.nn.initializers.ones,
    dtype: Dtype,
    param_dtype: Dtype,
    rngs: nnx.Rngs,
) -> nnx.LayerNorm:
    """A LayerNorm over the last axis, statistics in float32 or wider.

    The variance is the mean of squared deviations: Flax's default, E[x^2] - E[x]^2, cancels.
    """
    return nnx.LayerNorm(
        dim,
        epsilon=eps,
        use_fast_variance=False,
        scale_init=scale_init,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
