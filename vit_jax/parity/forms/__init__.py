"""What the code between two modules may compute, right or wrong, from the values around it.

Each form is a function of the call in which a value is made. Trying forms in the place of the
model's own value tells which of them it computes and which would make it agree with the reference.
"""

import jax

from vit_jax.inspect.recorder import Event, NamedValue
from vit_jax.parity.forms.activations import activations
from vit_jax.parity.forms.attentions import attentions, performers
from vit_jax.parity.forms.base import Form, Scene
from vit_jax.parity.forms.modules import (
    convolutions,
    layer_norms,
    linears,
    skipped_norms,
    unfolds,
)
from vit_jax.parity.forms.tokens import gates, head_averages, pools, sums, tokens

__all__ = ["Form", "Scene", "forms_of"]

_KINDS = (
    skipped_norms,
    layer_norms,
    linears,
    convolutions,
    unfolds,
    activations,
    attentions,
    performers,
    head_averages,
    pools,
    gates,
    tokens,
    sums,
)


def forms_of(event: Event, value: jax.Array, scene: Scene) -> list[Form]:
    """All that may be computed at an event; nothing of a value that code names on its way."""
    if isinstance(event.module, NamedValue):
        return []
    return [form for kind in _KINDS for form in kind(event, value, scene)]
