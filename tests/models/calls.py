"""Calls of a model as one compiled program, which models built alike share.

Called as it is, a small model compiles a program for each of its hundred operations and shapes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx


@functools.partial(jax.jit, static_argnums=0)
def compiled(function: Callable, model: nnx.Module, *arrays: Any) -> Any:
    """`function(model, *arrays)`. The programs of one function are kept: give no new one each time.

    (The model is an argument, not static: the graph of a T2T-ViT cannot be hashed.)
    """
    return function(model, *arrays)


def dropout_key(seed: int) -> jax.Array:
    """JAX's default generator of random bits takes most of the time that XLA compiles."""
    return jax.random.key(seed, impl="unsafe_rbg")


def _rngs(key: jax.Array | None) -> nnx.Rngs | None:
    return None if key is None else nnx.Rngs(dropout=key)


def _logits(model: Any, images: jax.Array, key: jax.Array | None) -> Any:
    return model(images, rngs=_rngs(key))


def _features(model: Any, images: jax.Array, key: jax.Array | None) -> jax.Array:
    return model.forward_features(images, rngs=_rngs(key))


def logits(model: nnx.Module, images: jax.Array, key: jax.Array | None = None) -> Any:
    """What the model answers; with a key it may drop."""
    return compiled(_logits, model, images, key)


def features(model: nnx.Module, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Its tokens."""
    return compiled(_features, model, images, key)
