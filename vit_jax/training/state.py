"""The state of a training run: all that the step changes and that a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vit_jax.training.mesh import replicated
from vit_jax.training.metrics import Sums


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: updates done, int32.
      params: the model's `nnx.Param`s.
      frozen: its other variables, which no step changes.
      opt_state: optax's, over `params` alone.
      sums: of the train metrics since the last row of metrics.jsonl.
      nonfinite_step: the first update that met a loss or made a parameter that is not finite; 0
        while there is none. It is looked at where the loop waits for the device anyway.
    """

    step: jax.Array
    params: nnx.State
    frozen: nnx.State
    opt_state: Any
    sums: Sums
    nonfinite_step: jax.Array


@dataclasses.dataclass(frozen=True)
class ModelGraphs:
    """The two static halves of a model: in train mode and in eval mode, over the same arrays."""

    train: nnx.GraphDef
    eval: nnx.GraphDef


def model_graphs(model: nnx.Module) -> ModelGraphs:
    """The static halves of a model, which may be abstract. Leaves it in train mode."""
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    return ModelGraphs(nnx.graphdef(model), eval_graph)


def initial_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0 of a model's arrays."""
    _, params, frozen = nnx.split(model, nnx.Param, ...)
    widest = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt_state=optimizer.init(params),
        sums=Sums.zeros(widest),
        nonfinite_step=jnp.zeros((), jnp.int32),
    )


def zero_sums(state: TrainState, mesh: Mesh) -> Sums:
    """Sums as those of `state`, with nothing counted yet, placed as the steps want them."""
    return _zeros(state.sums.loss.dtype, replicated(mesh))


def _zeros(dtype: Any, sharding: NamedSharding) -> Sums:
    # Not a `device_put`, in which many processes would first compare what each has.
    def put(value: Any) -> jax.Array:
        return jax.make_array_from_callback((), sharding, lambda _: np.asarray(value))

    return jax.tree.map(put, Sums.zeros(dtype))
