"""PyTorch's optimizers to the letter.

Not optax's: in float32 its bias corrections, taken from a float32 power, are off by 1.3e-5 at the
first step, which alone is more than ten times the noise of PyTorch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.parity.values import OptimizerSpec

Leaves = list[jax.Array]
# torch.nn.utils.clip_grad_norm_ adds it to the norm.
CLIP_SLACK = 1e-6


@dataclasses.dataclass(frozen=True)
class Step:
    """An optimizer over a list of arrays.

    Attributes:
      init: parameters to state.
      update: (parameters, gradients, state, number of steps done) to new parameters and state.
    """

    init: Callable[[Leaves], Any]
    update: Callable[[Leaves, Leaves, Any, Any], tuple[Leaves, Any]]


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The arrays that a side trains, one by one.

    Attributes:
      names: of each, as the report has it.
      frozen: which of them stay, by position: the reference gives them no gradient.
      unflatten: the list as an optax transformation is given it.
    """

    leaves: Leaves
    names: Sequence[str]
    frozen: frozenset[int]
    unflatten: Callable[[Sequence[Any]], Any]


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """What becomes of one parameter's gradients before the learning rate.

    Attributes:
      kind: "adam", "sgd", "rmsprop" or "lion".
      b1: SGD's and RMSprop's momentum.
      b2: RMSprop's alpha.
      eps: added to the root of the second moment.
      root: added under that root.
      corrected: whether Adam's moments are divided by 1 - beta**n.
      nesterov: SGD's; Adam's as in NAdam (without its schedule of the momentum).
      dampening: SGD's.
    """

    kind: str
    b1: float = 0.0
    b2: float = 0.0
    eps: float = 0.0
    root: float = 0.0
    corrected: bool = True
    nesterov: bool = False
    dampening: float = 0.0

    def corrections(self, steps: int) -> np.ndarray:
        """(steps, 3), in float64 whatever the model's type, as PyTorch computes them."""
        n = np.arange(1, steps + 1)
        if self.kind != "adam" or not self.corrected:
            return np.ones((steps, 3))
        with np.errstate(all="ignore"):
            return np.stack([1 / (1 - b**m) for b, m in self._powers(n)], axis=1)

    def _powers(self, n: np.ndarray) -> list[tuple[float, np.ndarray]]:
        return [(self.b1, n), (self.b2, n), (self.b1, n + 1)]

    def init(self, zeros: Any) -> tuple[Any, Any]:
        return zeros, zeros if self.kind in ("adam", "rmsprop") else None

    def direction(
        self, grad: Any, state: tuple[Any, Any], corrections: Any, is_first: Any, xp: Any
    ) -> tuple[Any, tuple[Any, Any]]:
        """What the learning rate is multiplied with, and the new state; `xp` is NumPy or JAX's."""
        (first, second), b1, b2 = state, self.b1, self.b2
        if self.kind == "sgd":
            share = xp.where(is_first, 1.0, 1 - self.dampening) if self.dampening else 1.0
            first = b1 * first + share * grad
            return (grad + b1 * first if self.nesterov else first), (first, None)
        if self.kind == "lion":
            return xp.sign(b1 * first + (1 - b1) * grad), (b2 * first + (1 - b2) * grad, None)
        second = b2 * second + (1 - b2) * grad * grad
        c1, c2, c3 = corrections
        square = second * c2 + self.root if self.root else second * c2
        root = xp.sqrt(square) + self.eps
        if self.kind == "rmsprop":
            first = b1 * first + grad / root
            return first, (first, second)
        first = b1 * first + (1 - b1) * grad
        mean = b1 * c3 * first + (1 - b1) * c1 * grad if self.nesterov else c1 * first
        return mean / root, (first, second)


@dataclasses.dataclass(frozen=True)
class Clip:
    """How gradients are clipped.

    Attributes:
      kind: "norm" of all of them, norm of each "array", its root mean square "rms", or "value".
      most: the threshold.
      slack: added to the norm.
    """

    kind: str
    most: float
    slack: float = 0.0

    def __call__(self, grads: Leaves) -> Leaves:
        if self.kind == "value":
            return [jnp.clip(grad, -self.most, self.most) for grad in grads]
        sums = [jnp.sum(jnp.square(grad)) for grad in grads]
        if self.kind == "norm":
            total = sums[0]
            for each in sums[1:]:
                total = total + each
            sums = [total] * len(grads)
        if self.kind == "rms":
            sums = [each / grad.size for each, grad in zip(sums, grads, strict=True)]
        factors = [jnp.minimum(1.0, self.most / (jnp.sqrt(each) + self.slack)) for each in sums]
        return [grad * factor for grad, factor in zip(grads, factors, strict=True)]


@dataclasses.dataclass(frozen=True)
class Rule:
    """All that an optimizer does to L arrays in T steps.

    Attributes:
      dynamics: of each array.
      rates: (T, L), the learning rate.
      shrink: (T, L), the share of the parameter that decoupled decay takes off.
      l2: (L,), the share of the parameter that is added to its gradient.
      clip: of the gradients, before all else.
    """

    dynamics: tuple[Dynamics, ...]
    rates: np.ndarray
    shrink: np.ndarray
    l2: np.ndarray
    clip: Clip | None = None


def dynamics_of(spec: OptimizerSpec) -> Dynamics:
    b1, b2 = spec.betas
    if spec.name == "sgd":
        # Without momentum PyTorch dampens nothing.
        return Dynamics("sgd", b1, nesterov=spec.nesterov, dampening=spec.dampening if b1 else 0.0)
    return Dynamics("rmsprop" if spec.name == "rmsprop" else "adam", b1, b2, spec.eps)


def rule_of(spec: OptimizerSpec, names: Sequence[str]) -> Rule:
    """PyTorch's, for arrays of these names."""
    decay, factors = np.array([spec.settings_of(name) for name in names]).reshape(-1, 2).T
    rates = np.array(spec.rates)[:, None] * factors
    is_decoupled = spec.name == "adamw"
    clip = None
    if spec.clip_norm is not None:
        clip = Clip("norm", spec.clip_norm, CLIP_SLACK)
    elif spec.clip_value is not None:
        clip = Clip("value", spec.clip_value)
    return Rule(
        (dynamics_of(spec),) * len(names),
        rates,
        rates * decay if is_decoupled else np.zeros_like(rates),
        np.zeros_like(decay) if is_decoupled else decay,
        clip,
    )


def rule_step(rule: Rule) -> Step:
    steps, _ = rule.rates.shape

    def init(leaves: Leaves) -> Any:
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        return [d.init(zero) for d, zero in zip(rule.dynamics, zeros, strict=True)]

    def update(leaves: Leaves, grads: Leaves, state: Any, number: Any) -> tuple[Leaves, Any]:
        def at(table: np.ndarray, dtype: Any) -> Any:
            """Of this step; a plain number where all steps have the same."""
            return (
                float(table[0]) if (table == table[0]).all() else jnp.asarray(table, dtype)[number]
            )

        if rule.clip is not None:
            grads = rule.clip(grads)
        new, states = [], []
        for i, (p, g, d) in enumerate(zip(leaves, grads, rule.dynamics, strict=True)):
            if rule.l2[i]:
                g = g + float(rule.l2[i]) * p
            corrections = [at(column, p.dtype) for column in d.corrections(steps + 1).T]
            direction, own = d.direction(g, state[i], corrections, number == 0, jnp)
            kept = p * at(1 - rule.shrink[:, i], p.dtype)
            new.append(kept - at(rule.rates[:, i], p.dtype) * direction)
            states.append(own)
        return new, states

    return Step(init, update)


def torch_step(spec: OptimizerSpec, names: Sequence[str]) -> Step:
    """`torch.optim`'s of these settings, for arrays of these names."""
    return rule_step(rule_of(spec, names))


def optax_step(
    transformation: optax.GradientTransformation, unflatten: Callable[[Sequence[Any]], Any]
) -> Step:
    """A `Step` of anybody's optax transformation, given the arrays as `unflatten` makes them."""

    def init(leaves: Leaves) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return transformation.init(unflatten(leaves))

    def update(leaves: Leaves, grads: Leaves, state: Any, number: Any) -> tuple[Leaves, Any]:
        del number
        # optax mixes integer counts and Python floats.
        with jax.numpy_dtype_promotion("standard"):
            given = unflatten(leaves)
            updates, state = transformation.update(unflatten(grads), state, given)
            return jax.tree.leaves(optax.apply_updates(given, updates)), state

    return Step(init, update)
