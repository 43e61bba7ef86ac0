"""The update rule and its learning rate, built from the config."""

from collections.abc import Callable
from typing import Any

import optax
from flax import nnx

from vit_jax.config import OptimizerConfig

Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> Schedule:
    """The learning rate of the n-th update, counted from 0. Epochs become steps here alone.

    A linear warm-up from `warmup_learning_rate` reaches `learning_rate` after `warmup_epochs`; what
    remains is constant, or falls to `min_learning_rate` (a half cosine or a line), which the run's
    end would reach.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    decay_steps = max(num_epochs * steps_per_epoch - warmup_steps, 1)
    peak, end = config.learning_rate, config.min_learning_rate
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=end / peak)
    else:
        after = optax.linear_schedule(peak, end, decay_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(config.warmup_learning_rate, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def is_matrix(path: tuple[Any, ...]) -> bool:
    """Whether the parameter at this path decays under `decay_mask="matrices"`.

    Those are the weights of linear and convolution layers, which NNX calls `kernel`, and the bare
    patch matrix of `vit_encoder`, `weight`. The name tells and not the rank: tokens and position
    embeddings have three axes, and where layers are stacked for a scan even a bias has two.
    """
    return path[-1] in ("kernel", "weight")


def _matrices(params: nnx.State) -> nnx.State:
    return nnx.map_state(lambda path, variable: variable.replace(is_matrix(path)), params)


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """AdamW as `torch.optim.AdamW`, after clipping the gradient's global norm if that is asked for.

    It is given the `nnx.Param`s alone: frozen tables are never seen.
    """
    assert config.name == "adamw", config.name  # `validate` has refused all else
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_matrices if config.decay_mask == "matrices" else None,
    )
    if config.gradient_clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.gradient_clip_norm), adamw)


def learning_rate_of_update(schedule: Schedule, update: int) -> float:
    """The learning rate that the update with this number, counted from 1, was made with."""
    return float(schedule(update - 1))
