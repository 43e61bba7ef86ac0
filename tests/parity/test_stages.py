"""The recorder of stage outputs, on which the parity tests rely."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.parity.stages import find, recorded


class Halves(nnx.Module):
    def __call__(self, x):
        return x / 2


class Stack(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([Halves(), Halves(), Halves()])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_records_the_named_stages_and_leaves_the_class_as_it_was() -> None:
    model, call = Stack(), Halves.__call__
    assert find(model, "layers.1") is model.layers[1]
    with recorded(model, ["layers.0", "layers.2"]) as outputs:
        model(jnp.asarray(8.0))
    assert {path: float(np.asarray(value)) for path, value in outputs.items()} == {
        "layers.0": 4.0,
        "layers.2": 1.0,
    }
    assert Halves.__call__ is call
