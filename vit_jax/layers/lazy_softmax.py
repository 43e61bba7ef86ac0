"""Softmax attention with fewer passes over the scores: for CPUs.

XLA for CPUs writes the scores of all heads to memory, so attention takes as long as the passes over
them. Here

- q is scaled, not the scores;
- what the values gather is divided by the sums of the softmax, not each weight: the lazy softmax
  (Rabe and Staats 2021, 2112.05682, section 2);
- no gradient is a matmul with the scores transposed, which would be a copy of them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vit_jax.layers.dropout import dropped

# What is used twice is written once: XLA for CPUs would compute it for each of its users.
_once = jax.lax.optimization_barrier


def _transposed(x: jax.Array) -> jax.Array:
    return x.swapaxes(-1, -2)


def _from_left(x: jax.Array, scores: jax.Array) -> jax.Array:
    """scores^T x, as (x^T scores)^T, which XLA would turn round again: half as fast."""
    return _transposed(_once(jnp.matmul(_transposed(x), scores)))


@jax.custom_vjp
def products(
    q: Float[Array, "batch heads queries head_dim"], k: Float[Array, "batch heads keys head_dim"]
) -> Float[Array, "batch heads queries keys"]:
    """q k^T."""
    return jnp.matmul(q, _transposed(k))


def _products_forward(q: jax.Array, k: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return products(q, k), (q, k)


def _products_backward(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q, k = operands
    gradient = _once(gradient)
    return jnp.matmul(gradient, k), _from_left(q, gradient)


products.defvjp(_products_forward, _products_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gathered(
    scores: Float[Array, "batch heads queries keys"],
    v: Float[Array, "batch heads keys value_dim"],
    rate: float,
    key: Key[Array, ""] | None,
) -> Float[Array, "batch heads queries value_dim"]:
    """softmax(scores) v.

    Args:
      scores, v: in float32 or wider.
      rate: of the dropout on the weights.
      key: of the dropout; None: there is none.
    """
    return _gathered(scores, v, rate, key, lambda x: x)[0]


def _gathered(
    scores: jax.Array,
    v: jax.Array,
    rate: float,
    key: jax.Array | None,
    once: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, tuple[Any, ...]]:
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    sums = exponentials.sum(-1, keepdims=True)
    exponentials = once(exponentials)
    kept = None if key is None else once(dropped(exponentials, rate, key))
    result = jnp.matmul(exponentials if kept is None else kept, v) / sums
    return result, (exponentials, kept, sums, v, result)


def _gathered_forward(
    scores: jax.Array, v: jax.Array, rate: float, key: jax.Array | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    return _gathered(scores, v, rate, key, _once)


def _gathered_backward(
    rate: float, saved: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    del rate
    exponentials, kept, sums, v, result = saved
    gradient = gradient / sums
    along = jnp.sum(gradient * result, axis=-1, keepdims=True)
    of_kept = jnp.matmul(gradient, _transposed(v))
    if kept is None:
        kept, of_scores = exponentials, exponentials * (of_kept - along)
    else:  # what was dropped is zero, and so is its gradient
        of_scores = kept * of_kept - exponentials * along
    return of_scores, _from_left(gradient, kept), None


gathered.defvjp(_gathered_forward, _gathered_backward)
