"""The update rules, by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.config import OptimizerConfig
from vit_jax.training.param_groups import ParameterGroups, by_path, is_matrix
from vit_jax.training.schedules import Schedule

Norm = Callable[[Any], jax.Array]


def norm_in_one(tree: Any) -> jax.Array:
    """The norm of all arrays as one, as `optax.tree.norm` but for the order of the sum.

    On a GPU it is a few kernels, where a norm of each array is one for each. Arrays that are
    divided between devices would be gathered.
    """
    together = jnp.concatenate([array.ravel() for array in jax.tree.leaves(tree)])
    return jnp.sqrt(jnp.sum(jnp.square(together)))


def make_optimizer(
    config: OptimizerConfig,
    schedule: Schedule,
    groups: ParameterGroups | None = None,
    norm: Norm = optax.tree.norm,
) -> optax.GradientTransformation:
    """The update rule `config.name`, after clipping the gradient's global norm if that is asked.

    - "adamw": `torch.optim.AdamW` (1711.05101).
    - "sgd": `torch.optim.SGD` without dampening: the decay is an L2 penalty, added to the gradient
      before the momentum.
    - "lamb": algorithm 2 of You et al. 2019 (1904.00962) with phi the identity, as `optax.lamb`:
      Adam's step, plus the decay, is scaled to the norm of its parameter, 1 where one of the two
      norms is 0. Every parameter is so scaled, those that do not decay too (timm's Lamb leaves them
      out, and clips the gradient's norm to 1 by itself), and of stacked layers each on its own.
    - "lion": Chen et al. 2023 (2302.06675), as `optax.lion`.

    A group's factor multiplies the whole update, the decoupled decay with it, as the learning rate
    of a PyTorch parameter group does.

    Args:
      config: the rule and its numbers.
      schedule: the learning rate of the n-th update.
      groups: of the model's parameters; None: one group. The transformation is given the trained
        ones alone: frozen ones are never seen.
      norm: of the gradient.
    """
    groups = groups or ParameterGroups()
    rule = _rule(config, schedule, groups)
    if groups.factors:
        rule = optax.chain(rule, _scale_by_factors(groups))
    if config.gradient_clip_norm is None:
        return rule
    return optax.chain(_clip_norm(config.gradient_clip_norm, norm), rule)


def _clip_norm(limit: float, norm: Norm) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` with a norm of one's own."""

    def clip(gradients: Any, params: Any = None) -> Any:
        del params
        size = norm(gradients)
        return jax.tree.map(
            lambda g: jax.lax.select(size < limit, g, g / size.astype(g.dtype) * limit), gradients
        )

    return optax.stateless(clip)


def _rule(
    config: OptimizerConfig, schedule: Schedule, groups: ParameterGroups
) -> optax.GradientTransformation:
    mask = _MASKS[config.decay_mask]
    decay, b1, b2 = config.weight_decay, config.beta1, config.beta2
    if config.name == "adamw":
        return optax.adamw(schedule, b1, b2, config.eps, weight_decay=decay, mask=mask)
    if config.name == "lion":
        return optax.lion(schedule, b1, b2, weight_decay=decay, mask=mask)
    if config.name == "lamb":
        steps = [
            optax.scale_by_adam(b1, b2, config.eps),
            optax.add_decayed_weights(decay, mask),
            _scale_by_trust_ratio(groups),
        ]
    else:
        steps = [optax.add_decayed_weights(decay, mask)]
        if config.momentum:
            steps.append(optax.trace(config.momentum, config.nesterov))
    return optax.chain(*steps, optax.scale_by_learning_rate(schedule))


def _matrices(params: Any) -> Any:
    return by_path(is_matrix, params)


def _deit(params: Any) -> Any:
    return by_path(lambda path: is_matrix(path) or path[-1] == "dist_token", params)


_MASKS = {"all": None, "matrices": _matrices, "deit": _deit}


def _scale_by_factors(groups: ParameterGroups) -> optax.GradientTransformation:
    def scale(update: jax.Array, factor: Any) -> jax.Array:
        factor = jnp.asarray(factor, update.dtype)
        return (
            update * factor.reshape(-1, *(1,) * (update.ndim - 1))
            if factor.ndim
            else (update * factor)
        )

    def scale_all(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map(
            scale, updates, by_path(lambda path: groups.factors.get(path, 1.0), updates)
        )

    return optax.stateless(scale_all)


def _scale_by_trust_ratio(groups: ParameterGroups) -> optax.GradientTransformation:
    """optax's, but that each of the layers stacked in an array has a norm of its own."""

    def scale(update: jax.Array, param: jax.Array, is_stacked: bool) -> jax.Array:
        axes = tuple(range(1, param.ndim)) if is_stacked else None
        norms = [
            jnp.sqrt(jnp.sum(jnp.square(array), axis=axes, keepdims=is_stacked))
            for array in (param, update)
        ]
        known = (norms[0] > 0) & (norms[1] > 0)
        return update * jnp.where(known, norms[0] / jnp.where(known, norms[1], 1), 1)

    def scale_all(updates: Any, params: Any) -> Any:
        stacked = by_path(lambda path: path in groups.stacked, params)
        return jax.tree.map(scale, updates, params, stacked)

    return optax.stateless(scale_all)
