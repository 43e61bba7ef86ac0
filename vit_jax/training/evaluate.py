"""Evaluation: every example counts exactly once."""

from collections.abc import Callable, Iterable

import jax

from vit_jax.training.metrics import Sums
from vit_jax.training.state import TrainState
from vit_jax.training.step import Batch, EvalStep

# Batches that may be under way: enough to keep the device busy, few enough to stop soon.
_IN_FLIGHT = 4


def evaluate(
    eval_step: EvalStep,
    state: TrainState,
    batches: Iterable[Batch],
    sums: Sums,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Loss, top1 and top5 over all examples of `batches` where `mask` is true.

    Args:
      eval_step: adds a batch to the sums.
      state: its parameters are evaluated.
      batches: on the device, all of one size, padding masked out.
      sums: see `zero_sums`.
      should_stop: is asked after each batch.

    Returns:
      The averages an example; None if it was told to stop.
    """
    for number, batch in enumerate(batches):
        sums = eval_step(state, batch, sums)
        if number % _IN_FLIGHT == 0:
            jax.block_until_ready(sums.count)
        if should_stop():
            return None
    return sums.averages()
