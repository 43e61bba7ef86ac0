"""PyTorch's optimizers to the letter, and the mistakes that are made with them.

Not optax's: in float32 its bias corrections, taken from a float32 power, are off by 1.3e-5 at the
first step, which alone is more than ten times the noise of PyTorch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from vit_jax.parity.values import OptimizerSpec

Leaves = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
    """An optimizer over a list of arrays.

    Attributes:
      init: parameters to state.
      update: (parameters, gradients, state, number of steps done) to new parameters and state.
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Leaves, Leaves, Any, Any], tuple[Leaves, Any]]


def torch_step(
    spec: OptimizerSpec,
    *,
    decoupled: bool = True,
    correct_bias: bool = True,
    eps_inside: bool = False,
    decay_vectors: bool = True,
) -> Step:
    """`torch.optim.AdamW` or `torch.optim.SGD`; the keywords are wrong on purpose, for trials.

    Args:
      spec: its settings.
      decoupled: False adds the decay to the gradient, as `torch.optim.Adam` does.
      correct_bias: False leaves the moments as they are.
      eps_inside: epsilon under the square root.
      decay_vectors: False decays no array of one axis.
    """

    def decay(leaf: jax.Array) -> float:
        return spec.weight_decay if decay_vectors or leaf.ndim > 1 else 0.0

    def zeros(leaves: Leaves) -> Leaves:
        return [jnp.zeros_like(leaf) for leaf in leaves]

    lr, (b1, b2) = spec.learning_rate, spec.betas
    if spec.name == "sgd":

        def sgd(leaves, grads, buffers, number):
            del number
            grads = [g + decay(p) * p for g, p in zip(grads, leaves, strict=True)]
            buffers = [b1 * b + g for b, g in zip(buffers, grads, strict=True)]
            return [p - lr * b for p, b in zip(leaves, buffers, strict=True)], buffers

        return Step(zeros, sgd)

    # In float64 whatever the model's type, as PyTorch computes them.
    counts = range(1, spec.steps + 2)
    corrections = [[1 / (1 - b**n) if correct_bias else 1.0 for n in counts] for b in (b1, b2)]

    def adamw(leaves, grads, state, number):
        first, second = state
        if not decoupled:
            grads = [g + decay(p) * p for g, p in zip(grads, leaves, strict=True)]
        first = [b1 * m + (1 - b1) * g for m, g in zip(first, grads, strict=True)]
        second = [b2 * s + (1 - b2) * g * g for s, g in zip(second, grads, strict=True)]
        new = []
        for p, m, s in zip(leaves, first, second, strict=True):
            c1, c2 = (jnp.asarray(table, p.dtype)[number] for table in corrections)
            square = s * c2
            root = jnp.sqrt(square + spec.eps) if eps_inside else jnp.sqrt(square) + spec.eps
            kept = p * (1 - lr * decay(p)) if decoupled else p
            new.append(kept - lr * (m * c1) / root)
        return new, (first, second)

    return Step(lambda leaves: (zeros(leaves), zeros(leaves)), adamw)


def optax_step(transformation: optax.GradientTransformation) -> Step:
    """A `Step` of anybody's optax transformation."""

    def update(leaves, grads, state, number):
        del number
        # optax mixes integer counts and Python floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = transformation.update(grads, state, leaves)
            return cast(Leaves, optax.apply_updates(leaves, updates)), state

    return Step(transformation.init, update)


def wrong_steps(spec: OptimizerSpec) -> dict[str, tuple[str, Step]]:
    """Known mistakes with an optimizer: by name what they are, in words, and the step."""
    change = dataclasses.replace
    found = {
        "weight_decay": ("no weight decay", torch_step(change(spec, weight_decay=0.0))),
        "decay_mask": (
            "no weight decay of arrays with one axis",
            torch_step(spec, decay_vectors=False),
        ),
    }
    if spec.name == "sgd":
        return found | {
            "momentum": ("no momentum", torch_step(change(spec, betas=(0.0, spec.betas[1])))),
        }
    b1, b2 = spec.betas
    for eps in (1e-7, 1e-6, 1e-5, 1e-10):
        if eps != spec.eps:
            found[f"eps {eps:g}"] = (f"epsilon {eps:g}", torch_step(change(spec, eps=eps)))
    for beta in (0.9, 0.95, 0.98, 0.99, 0.999):
        if beta != b2:
            found[f"b2 {beta}"] = (f"b2 {beta}", torch_step(change(spec, betas=(b1, beta))))
    return found | {
        "coupled_decay": (
            "the decay added to the gradient (Adam with L2)",
            torch_step(spec, decoupled=False),
        ),
        "bias_correction": ("no bias correction", torch_step(spec, correct_bias=False)),
        "eps_inside": ("epsilon under the square root", torch_step(spec, eps_inside=True)),
    }
