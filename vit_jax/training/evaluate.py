"""Evaluation: every example counts exactly once."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import jax

from vit_jax.training.metrics import EvalSums
from vit_jax.training.step import Batch

# Batches that may be under way: enough to keep the device busy, few enough to stop soon.
_IN_FLIGHT = 4

State = TypeVar("State")
SumsOf = TypeVar("SumsOf", bound=EvalSums)


def evaluate(
    eval_step: Callable[[State, Batch, SumsOf], SumsOf],
    states: Mapping[str, State],
    batches: Iterable[Batch],
    zeros: Callable[[], SumsOf],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """What the sums average, such as loss and top1, over all examples where `mask` is true.

    Args:
      eval_step: adds a batch to the sums.
      states: their parameters are evaluated, each under a prefix of its own.
      batches: on the device, all of one size, padding masked out. They are passed through once.
      zeros: see `zero_sums`.
      should_stop: is asked after each batch.

    Returns:
      The averages an example, as `{prefix}loss` and so on; None if it was told to stop.
    """
    sums = {prefix: zeros() for prefix in states}
    under_way: collections.deque[dict[str, SumsOf]] = collections.deque()
    for batch in batches:
        sums = {prefix: eval_step(state, batch, sums[prefix]) for prefix, state in states.items()}
        under_way.append(sums)
        if len(under_way) > _IN_FLIGHT:
            jax.block_until_ready(under_way.popleft())
        if should_stop():
            return None
    return {
        f"{prefix}{name}": value
        for prefix, each in sums.items()
        for name, value in each.averages().items()
    }
