"""An exponential moving average of the weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.config import EmaConfig
from vit_jax.training.state import TrainState


def update_average(config: EmaConfig, average: Any, params: Any, update: jax.Array) -> Any:
    """The average after an update: average + (1 - d) (params - average).

    That is d average + (1 - d) params, as timm's `ModelEma`, in the form whose fixed point is the
    parameters: with d = .99996 in float32, d and 1 - d do not add up to 1, and an average of
    25,000 updates would be off by 1e-3. d is `config.decay`, and with `config.warmup` at most
    (1 + t) / (10 + t), t being the number of updates done, as TensorFlow's
    `ExponentialMovingAverage` with `num_updates`.

    Args:
      config: says d.
      average: arrays as those of `params`, in float32 or wider.
      params: after the update.
      update: its number, from 1.
    """

    def towards(average: jax.Array, param: jax.Array) -> jax.Array:
        share: Any = 1 - config.decay
        if config.warmup:
            share = jnp.maximum(share, 9 / (10 + update.astype(average.dtype)))
        return average + jnp.asarray(share, average.dtype) * (param.astype(average.dtype) - average)

    return jax.tree.map(towards, average, params)


def averaged(state: TrainState) -> TrainState:
    """The state with the averaged weights for its parameters, in the parameters' types."""
    assert state.ema is not None
    params = jax.tree.map(
        lambda average, param: average.astype(param.dtype), state.ema, state.params
    )
    return dataclasses.replace(state, params=params)
