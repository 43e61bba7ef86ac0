"""Planted faults of gradients and of optimizers."""

import jax
import jax.numpy as jnp
import optax

from tests.parity.planted.base import fault
from vit_jax.parity import OptimizerSpec

_DERIVATIVE = "derivative|stop_gradient|straight_through|derivative of"
for name, bug, stages, truth in (
    (
        "slope of another gelu",
        "erf_slope",
        "",
        "The derivative of the tanh GELU is the exact one's.",
    ),
    ("cold temperature", "cold", "|temperature", "No gradient reaches the temperature."),
    ("gate stopped", "gate_stopped", "|gate", "No gradient passes the softmax of the gate."),
    ("not straight through", "not_straight", "|codebook", "The gradient ends at the code."),
    ("not detached", "not_detached", "", "The gradient passes the value that PyTorch detaches."),
    ("straight clip", "straight_clip", "", "The gradient passes the clamp where it cuts."),
):
    fault(
        f"quantised {name}", "quantised", stages, _DERIVATIVE, truth, bug, settings={"grad": True}
    )

# ---------------------------------------------------------------------------- optimizers

_RATE, _DECAY = 1e-2, 0.1
_ADAMW = OptimizerSpec(steps=3, learning_rate=_RATE, weight_decay=_DECAY)
_SGD = OptimizerSpec("sgd", steps=3, learning_rate=0.1, weight_decay=0.01)


def _optimizer(
    name: str,
    accepts: str,
    truth: str,
    transformation: optax.GradientTransformation,
    spec: OptimizerSpec = _ADAMW,
) -> None:
    fault(
        f"optimizer {name}",
        "classifier",
        "optimizer",
        accepts,
        truth,
        settings={"grad": True, "optimizer": spec, "transformation": transformation},
    )


def _matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _adamw(rate=_RATE, **settings) -> optax.GradientTransformation:
    return optax.adamw(rate, **{"weight_decay": _DECAY, **settings})


def _uncorrected() -> optax.GradientTransformation:
    """Adam's moments without their corrections."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        del params
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], grads)
        second = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, state[1], grads)
        updates = jax.tree.map(lambda m, s: m / (jnp.sqrt(s) + 1e-8), first, second)
        return updates, (first, second)

    return optax.GradientTransformation(init, update)


def _decayed(first: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(first, optax.add_decayed_weights(_DECAY), optax.scale(-_RATE))


def _sgd(*before: optax.GradientTransformation, rate=0.1, momentum=0.9):
    return optax.chain(*before, optax.add_decayed_weights(0.01), optax.sgd(rate, momentum))


_optimizer(
    "decay of matrices alone",
    "decay_group|decay_mask",
    "Norms and biases are not decayed; PyTorch's are.",
    _adamw(mask=_matrices),
)
_optimizer(
    "epsilon under the root",
    "eps|eps_inside",
    "Epsilon 1e-8 is added under the root.",
    _adamw(eps=0.0, eps_root=1e-8),
)
_optimizer("epsilon", "eps", "Epsilon 1e-5 for 1e-8.", _adamw(eps=1e-5))
_optimizer("second beta", "betas|b2", "The second beta is 0.99 for 0.999.", _adamw(b2=0.99))
_optimizer("first beta", "betas|b1", "The first beta is 0.95 for 0.9.", _adamw(b1=0.95))
_optimizer(
    "coupled decay",
    "coupled_decay",
    "The decay is added to the gradient: Adam with L2.",
    optax.chain(optax.add_decayed_weights(_DECAY), optax.adam(_RATE)),
)
_optimizer(
    "no bias correction",
    "bias_correction",
    "The moments are not corrected for their start.",
    _decayed(_uncorrected()),
)
_optimizer(
    "clipped",
    "clip",
    "Gradients are clipped to a global length of 0.1.",
    _sgd(optax.clip_by_global_norm(0.1)),
    _SGD,
)
_optimizer(
    "summed loss",
    "loss_sum|learning_rate",
    "The loss is summed over the batch of four, not averaged: four times the gradient.",
    _sgd(optax.scale(4.0)),
    _SGD,
)
_optimizer(
    "warm-up from zero",
    "schedule",
    "The rate of the first step is 0: a warm-up that PyTorch's side does not have.",
    _adamw(optax.linear_schedule(0.0, _RATE, 1)),
)
_optimizer(
    "cosine",
    "schedule",
    "The rate falls along a cosine of ten steps; PyTorch's is constant.",
    _adamw(optax.cosine_decay_schedule(_RATE, 10)),
)
_optimizer("learning rate", "learning_rate", "Twice the learning rate.", _adamw(2 * _RATE))
_optimizer(
    "decay without the rate",
    "weight_decay",
    "Parameters are decayed by 0.1 a step, not by 0.1 times the rate.",
    optax.chain(optax.adam(_RATE), optax.add_decayed_weights(-_DECAY)),
)
_optimizer("no decay", "weight_decay", "Nothing is decayed.", _adamw(weight_decay=0.0))
_optimizer("no momentum", "betas|momentum", "Momentum 0 for 0.9.", _sgd(momentum=0.0), _SGD)
_optimizer(
    "two betas and a rate",
    "betas|learning_rate",
    "The second beta is 0.95 for 0.999, and the rate half.",
    _adamw(_RATE / 2, b2=0.95),
)
