"""What a form is, and what it is made from."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from vit_jax.inspect.recorder import Event, Frame
from vit_jax.parity.sides import is_dropout
from vit_jax.parity.values import Expected

# The value of a form in a call; None where it does not apply there.
Compute = Callable[[Event, jax.Array], jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Form:
    """One thing that may be computed.

    Attributes:
      kind: what it is a form of; forms of one kind are alternatives.
      text: what it computes, in words.
      compute: how.
      traits: what it is made of, where its kind has several (an order, a scale).
      fault: the short name of the fault of computing this where another form is right.
    """

    kind: str
    text: str
    compute: Compute
    traits: tuple[tuple[str, str], ...] = ()
    fault: str | None = None

    def __call__(self, event: Event, value: jax.Array) -> jax.Array | None:
        """What it gives in the place of a value; None where it does not apply."""
        try:
            # Whatever the caller's settings forbid.
            with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
                found = self.compute(event, value)
        except (IndexError, TypeError, ValueError):  # shapes or calls that are not there
            return None
        return None if found is None or found.shape != value.shape else found.astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What forms are made from, beside the call: arrays of the reference by its names.

    Attributes:
      weights: the reference's arrays, in PyTorch's layout and the precision of the run.
      skipped: modules that the reference ran just before and the model did not.
      expected: what the reference has for the event, if it has it.
    """

    weights: Mapping[str, jax.Array]
    skipped: tuple[str, ...] = ()
    expected: Expected | None = None

    def of(self, path: str, leaf: str, ndim: int) -> jax.Array | None:
        array = self.weights.get(f"{path.partition('#')[0]}.{leaf}")
        return array if array is not None and array.ndim == ndim else None


def outputs_of(frame: Frame) -> list[tuple[Frame, jax.Array]]:
    """What the calls inside gave, dropouts left out."""
    return [
        (child, output)
        for child, output in frame.children
        if not is_dropout(child.module) and isinstance(output, jax.Array)
    ]


def last_output(frame: Frame) -> jax.Array | None:
    outputs = outputs_of(frame)
    return outputs[-1][1] if outputs else None


# Not those of jax.nn: what is tried has to be right where these were tampered with.
def sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def softmax(x: jax.Array, axis: int) -> jax.Array:
    weights = jnp.exp(x - jax.lax.stop_gradient(x.max(axis=axis, keepdims=True)))
    return weights / weights.sum(axis=axis, keepdims=True)
