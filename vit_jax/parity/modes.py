"""Train and eval mode of a model of NNX modules: dropout, and the statistics of batches."""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.models.base import VisionModel
from vit_jax.weights.entries import torch_path

_Model = TypeVar("_Model", bound=nnx.Module)
# Flax's names of the running statistics, and PyTorch's.
_STATISTICS = {"mean": "running_mean", "var": "running_var"}


def drops(module: Any) -> bool:
    """Whether it is in train mode and drops at random."""
    rates = (getattr(module, name, 0.0) for name in ("rate", "dropout_rate"))
    is_on = getattr(module, "deterministic", True) is False
    return is_on and any(isinstance(rate, float) and rate > 0 for rate in rates)


def uses_batch(module: Any) -> bool:
    """Whether it is in train mode and normalises by the statistics of the batch."""
    return getattr(module, "use_running_average", None) is False


def by_path(model: nnx.Module) -> dict[str, nnx.Module]:
    """The modules by PyTorch's path."""
    return {
        torch_path(model, tuple(map(str, path))): module for path, module in nnx.iter_modules(model)
    }


def ready_to_run(model: _Model) -> _Model:
    """The model, whose dropout now has random keys: what it drops is to be seen, not an error."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, nnx.Dropout) and drops(module) and module.rngs is None:
            module.rngs = nnx.Rngs(dropout=0)["dropout"].fork()
    return model


def without_dropout(model: _Model) -> tuple[_Model, list[str]]:
    """A copy of the model that drops nothing, and the paths of what it would drop."""
    copy = nnx.merge(*nnx.split(model), copy=True)
    paths = [path for path, module in by_path(copy).items() if drops(module)]
    for module in by_path(copy).values():
        if isinstance(module, VisionModel):
            module.eval()  # it has no other state
        elif drops(module):
            setattr(module, "deterministic", True)  # noqa: B010 - of modules of any class
    return copy, paths


def in_eval_mode(model: _Model) -> _Model:
    """A copy in eval mode."""
    copy = nnx.merge(*nnx.split(model), copy=True)
    copy.eval()
    return copy


def statistics_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """What a run in train mode may change, by PyTorch's names: neither parameters nor keys."""
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.Param | nnx.RngState):
            continue
        *parents, leaf = map(str, path)
        value = variable.get_value()
        if jnp.issubdtype(value.dtype, jnp.floating):
            where = torch_path(model, parents)
            name = _STATISTICS.get(leaf, leaf)
            found[f"{where}.{name}" if where else name] = np.asarray(value)
    return found
