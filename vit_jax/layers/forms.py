"""The form in which layers compute the same numbers: which one suits depends on the platform.

A model is built in the plain form, which every platform takes. What runs on known devices sets
another one, as static fields of the modules, with `set_form`.
"""

import re
from typing import Any

import jax
from flax import nnx

from vit_jax.layers.attention import AttentionForm, SoftmaxAttention
from vit_jax.layers.linear import Linear, WideLinear
from vit_jax.layers.stack import PlainLayers, ScannedLayers

PLAIN = AttentionForm()
_FORMS = {"cpu": AttentionForm("lazy"), "tpu": AttentionForm("heads")}
# The oldest GPUs with cuDNN's flash attention are of capability 8.0; heads of more than 128 want 9.
_FUSES, _FUSES_WIDE = 8, 9
_NARROW_HEAD, WIDEST_HEAD = 128, 256


def attention_form(device: Any) -> AttentionForm:
    """How a device computes attention best.

    Args:
      device: of JAX, or of a topology.
    """
    if device.platform in _FORMS:
        return _FORMS[device.platform]
    # Of AMD's GPUs it is a name.
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    if capability is None or int(capability[1]) < _FUSES:
        return PLAIN
    return AttentionForm(
        "fused", WIDEST_HEAD if int(capability[1]) >= _FUSES_WIDE else _NARROW_HEAD
    )


def set_form(
    model: nnx.Module,
    platform: str,
    gathered: jax.sharding.Sharding | None = None,
    attention: AttentionForm = PLAIN,
    row_major: bool = False,
) -> None:
    """Gives the layers of a model the form that suits a platform, in place.

    Args:
      model: may be abstract; its arrays stay as they are.
      platform: as JAX names it. For "cpu" see `Linear` and `run_layers`; all others take the plain
        form.
      gathered: where weights that lie divided between devices are placed for their use: see
        `run_layers`. None: nowhere.
      attention: of `attention_form`. A module that cannot be computed so keeps the plain form.
      row_major: see `run_layers`. Of a program for one device: XLA does not divide an array whose
        order in memory is given, but gathers all of it on each device.
    """
    is_for_cpu = platform == "cpu"
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear | WideLinear):
            _set(module, as_rows=is_for_cpu)
        elif isinstance(module, PlainLayers | ScannedLayers):
            _set(module, ends_fusion=is_for_cpu, row_major=row_major, gathered=gathered)
        elif isinstance(module, SoftmaxAttention):
            _set(module, form=_form_of(module, attention))


def _form_of(module: SoftmaxAttention, attention: AttentionForm) -> str:
    return "auto" if attention == PLAIN or module.why_plain(attention) else attention.name


def _set(module: nnx.Module, **fields: Any) -> None:
    # What is left at the default of the class does not change the static half of the model.
    for name, value in fields.items():
        if getattr(module, name) != value:
            setattr(module, name, value)


def eval_graph(
    model: nnx.Module, platform: str | None, attention: AttentionForm = PLAIN
) -> nnx.GraphDef[Any]:
    """The static half of a model in eval mode, in the form that suits a platform; None: the plain.

    The model stays as it is.
    """
    graph, state = nnx.split(model)
    suited: Any = nnx.merge(graph, state)
    set_form(suited, platform or "", attention=attention)
    suited.eval()
    return nnx.graphdef(suited)


def compiler_options(platform: str) -> dict[str, str] | None:
    """Options of `jax.jit` for a program in the form of a platform."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else None
