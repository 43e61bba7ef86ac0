"""The learning rate over a run, by name."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.config import OptimizerConfig

Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> Schedule:
    """The learning rate of the n-th update, counted from 0. Epochs become steps here alone.

    At each of `restarts` all of what follows begins anew, for the epochs up to the next.

    With `schedule_unit="step"` a linear warm-up from `warmup_learning_rate` reaches `learning_rate`
    after `warmup_epochs`; what remains but for the cooldown is constant, or falls to
    `min_learning_rate` (a half cosine or a line), which its end would reach. With "epoch" it is
    `learning_rate_of_epoch` throughout each epoch. A "step" schedule is the same in both units but
    for the warm-up: it counts its epochs from the run's start.

    Args:
      config: of the learning rate.
      steps_per_epoch: updates in an epoch.
      num_epochs: of the whole run.
    """
    if config.restarts:
        ends = (0, *map(int, config.restarts), num_epochs)
        alone = dataclasses.replace(config, restarts=None)
        parts = [
            make_schedule(alone, steps_per_epoch, end - start)
            for start, end in itertools.pairwise(ends)
        ]
        return optax.join_schedules(parts, [end * steps_per_epoch for end in ends[1:-1]])
    if config.schedule_unit == "epoch":
        rates = [learning_rate_of_epoch(config, epoch, num_epochs) for epoch in range(num_epochs)]
        return _table(rates, steps_per_epoch)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    cooldown_steps = round(config.cooldown_epochs * steps_per_epoch)
    decay_steps = max(num_epochs * steps_per_epoch - warmup_steps - cooldown_steps, 1)
    peak, end = config.learning_rate, config.min_learning_rate
    if config.schedule == "constant":
        after: Schedule = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, end, decay_steps)
    else:
        steps = max(round(config.decay_epochs * steps_per_epoch), 1)
        decays = num_epochs * steps_per_epoch // steps
        whole = _table([_decayed(config, times) for times in range(decays + 1)], steps)
        after = lambda count: whole(count + warmup_steps)  # noqa: E731
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(config.warmup_learning_rate, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def learning_rate_of_epoch(config: OptimizerConfig, epoch: int, num_epochs: int) -> float:
    """The learning rate of an epoch, counted from 0, with `schedule_unit="epoch"`.

    As the schedulers of timm 0.3.4 (one cycle, no noise): the warm-up is the beginning of the
    schedule's own span, which does not start anew after it, and what remains after the span is
    cooldown. (`min_learning_rate` also bounds the step schedule here.)

    Args:
      config: of the learning rate.
      epoch: from 0.
      num_epochs: of the whole run, cooldown included.
    """
    peak, end = config.learning_rate, config.min_learning_rate
    if epoch < config.warmup_epochs:
        start = config.warmup_learning_rate
        return start + epoch * (peak - start) / config.warmup_epochs
    done = min(epoch / (num_epochs - config.cooldown_epochs), 1.0)
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return peak + (end - peak) * done
    return _decayed(config, math.floor(epoch / config.decay_epochs))


def learning_rate_of_update(schedule: Schedule, update: int) -> float:
    """The learning rate that the update with this number, counted from 1, was made with."""
    return float(schedule(update - 1))


def _decayed(config: OptimizerConfig, times: int) -> float:
    rate = config.learning_rate * config.decay_rate**times
    return max(rate, config.min_learning_rate)


def _table(rates: list[float], steps: int) -> Schedule:
    """Each rate for so many updates, the last one from there on.

    Computed in float64 and rounded once: of a cosine taken in float32 only 6 digits are right.
    """
    values = np.asarray(rates)

    def schedule(count: Any) -> Any:
        return jnp.asarray(values)[jnp.minimum(count // steps, len(rates) - 1)]

    return schedule
