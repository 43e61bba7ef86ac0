"""Weights that are divided between devices are gathered where they are used.

Left to itself the compiler may rather divide the work as the weights lie, and move activations.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_WHOLE: contextvars.ContextVar[Any] = contextvars.ContextVar("whole", default=None)


@contextlib.contextmanager
def gathering(whole: jax.sharding.Sharding | None) -> Iterator[None]:
    """While a step is traced inside, `gather` places weights as `whole` says; None: nowhere."""
    token = _WHOLE.set(whole)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def is_gathering() -> bool:
    """Whether `gather` does anything."""
    return _WHOLE.get() is not None


def gather(tree: Any) -> Any:
    """The arrays of `tree` whole on each device, as `gathering` has asked."""
    whole = _WHOLE.get()
    return tree if whole is None else jax.lax.with_sharding_constraint(tree, whole)
