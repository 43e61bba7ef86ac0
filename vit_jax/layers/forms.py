"""The form in which layers compute the same numbers: which one suits depends on the platform.

A model is built in the plain form, which every platform takes. What runs on known devices sets
another one, as static fields of the modules, with `set_form`.
"""

from typing import Any

import jax
from flax import nnx

from vit_jax.layers.linear import Linear, WideLinear
from vit_jax.layers.stack import PlainLayers, ScannedLayers


def set_form(
    model: nnx.Module, platform: str, gathered: jax.sharding.Sharding | None = None
) -> None:
    """Gives the layers of a model the form that suits a platform, in place.

    Args:
      model: may be abstract; its arrays stay as they are.
      platform: as JAX names it. For "cpu" see `Linear` and `run_layers`; all others take the plain
        form.
      gathered: where weights that lie divided between devices are placed for their use: see
        `run_layers`. None: nowhere.
    """
    is_for_cpu = platform == "cpu"
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear | WideLinear):
            _set(module, as_rows=is_for_cpu)
        elif isinstance(module, PlainLayers | ScannedLayers):
            _set(module, ends_fusion=is_for_cpu, gathered=gathered)


def _set(module: nnx.Module, **fields: Any) -> None:
    # What is left at the default of the class does not change the static half of the model.
    for name, value in fields.items():
        if getattr(module, name) != value:
            setattr(module, name, value)


def eval_graph(model: nnx.Module, platform: str | None) -> nnx.GraphDef[Any]:
    """The static half of a model in eval mode, in the form that suits a platform; None: the plain.

    The model stays as it is.
    """
    graph, state = nnx.split(model)
    suited: Any = nnx.merge(graph, state)
    set_form(suited, platform or "")
    suited.eval()
    return nnx.graphdef(suited)


def compiler_options(platform: str) -> dict[str, str] | None:
    """Options of `jax.jit` for a program in the form of a platform."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else None
