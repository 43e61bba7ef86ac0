"""The state of a training run: all that the step changes and that a checkpoint holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from vit_jax.training.mesh import replicated
from vit_jax.training.metrics import AnySums, Sums

# A model's arrays by the names of its attributes, dictionaries in dictionaries. At the border of
# `jax.jit` they cost a tenth of the Python that `nnx.State` does.
Arrays = dict[Any, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: updates done, int32.
      params: the model's `nnx.Param`s, but for those that are not trained.
      frozen: its other variables, which no step changes but for running statistics.
      opt_state: optax's, over `params` alone.
      sums: of the train metrics since the last row of metrics.jsonl.
      nonfinite_step: the first update that met a loss (or a norm to clip) that is not finite; 0
        while there is none. It is looked at where the loop waits for the device anyway, and the
        parameters with it.
      ema: the moving average of `params`, in float32 or wider; None if the run has none.
    """

    step: jax.Array
    params: Arrays
    frozen: Arrays
    opt_state: Any
    sums: AnySums
    nonfinite_step: jax.Array
    ema: Arrays | None = None


def split_arrays(model: nnx.Module, trained: Any) -> tuple[Arrays, Arrays]:
    """The arrays of a model that an NNX filter takes, and its others."""
    _, params, frozen = nnx.split(model, trained, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)


def initial_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    trained: Any = nnx.Param,
    average: bool = False,
    zeros: Callable[[jnp.dtype], AnySums] = Sums.zeros,
) -> TrainState:
    """The state at step 0 of a model's arrays.

    Args:
      model: its arrays become the state's.
      optimizer: the update rule.
      trained: an NNX filter of the variables that are trained.
      average: whether there is a moving average of the weights.
      zeros: the sums of a type, with nothing counted yet.
    """
    params, frozen = split_arrays(model, trained)
    widest = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        sums=zeros(widest),
        nonfinite_step=jnp.zeros((), jnp.int32),
        ema=first_average(params) if average else None,
    )


def first_average(params: Arrays) -> Arrays:
    """The moving average of weights that have not been updated yet: a copy, float32 or wider."""

    def copy(leaf: jax.Array) -> jax.Array:
        return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True)

    return jax.tree.map(copy, params)


def zero_sums(state: TrainState, mesh: Mesh) -> AnySums:
    """Sums as those of `state`, with nothing counted yet, placed as the steps want them."""
    sharding = replicated(mesh)

    # Not a `device_put`, in which many processes would first compare what each has.
    def put(leaf: jax.Array) -> jax.Array:
        return jax.make_array_from_callback((), sharding, lambda _: np.zeros((), leaf.dtype))

    return jax.tree.map(put, state.sums)
