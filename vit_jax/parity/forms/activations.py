"""The function between two Linears."""

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from vit_jax.inspect.recorder import Event
from vit_jax.parity.forms.base import (
    Form,
    Scene,
    outputs_of,
    sigmoid,
)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "GELU (erf)": lambda x: 0.5 * x * (1 + jax.scipy.special.erf(x / math.sqrt(2))),
    "GELU (tanh approximation)": lambda x: (
        0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "GELU (sigmoid approximation)": lambda x: x * sigmoid(1.702 * x),
    "ReLU": lambda x: jnp.maximum(x, 0),
    "SiLU": lambda x: x * sigmoid(x),
    "tanh": jnp.tanh,
    "sigmoid": sigmoid,
    "no activation": lambda x: x,
}


def activations(event: Event, value: jax.Array, scene: Scene) -> Iterator[Form]:
    """A function of one call's output, or of all of them beside each other."""
    outputs = outputs_of(event.frame)
    if not outputs or not hasattr(outputs[-1][0].module, "kernel"):
        return
    # The last call first.
    places = [i for i in reversed(range(len(outputs))) if outputs[i][1].shape == value.shape]
    if len(outputs) > 1 and sum(output.shape[-1] for _, output in outputs) == value.shape[-1]:
        places.append(-1)
    for place, (name, function) in itertools.product(places, ACTIVATIONS.items()):

        def compute(event: Event, value: jax.Array, place=place, function=function):
            outputs = [output for _, output in outputs_of(event.frame)]
            if place < 0:
                return jnp.concatenate([function(output) for output in outputs], axis=-1)
            return function(outputs[place])

        yield Form("activation", name, compute, fault="gelu" if "GELU" in name else "activation")
