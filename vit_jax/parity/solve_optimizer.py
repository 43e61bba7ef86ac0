"""What an optax transformation does, solved from its answers to chosen gradients and parameters.

An update is a pure function, so it is asked rather than trained with. Every array is given one
number throughout, its gradient, and another, its parameter; the update is then one number an array.
Small gradients show the moments and epsilon, large ones the clipping, parameters the decay. A
solution counts only if it predicts every answer, those to random gradients and parameters among
them, to rounding.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.parity.optimizers import (
    CLIP_SLACK,
    Clip,
    Rule,
    Trainable,
    dynamics_of,
)
from vit_jax.parity.solve_moments import (
    EXACT,
    directions,
    errors_of,
    fit_dynamics,
    in_words,
    least_squares,
    misfit_of,
    nice,
    off,
)
from vit_jax.parity.values import OptimizerSpec

_MOST_STEPS = 6  # that show everything but the rates
_SMALL_NORM = 1e-4  # of gradients that nobody clips
_LARGE_NORM = 1e6


@dataclasses.dataclass(frozen=True)
class Solved:
    """What was found.

    Attributes:
      rule: that predicts every answer; None where none does.
      known: where there is none, what is certain, in words.
    """

    rule: Rule | None
    known: str = ""


def solve(
    transformation: optax.GradientTransformation, trainable: Trainable, spec: OptimizerSpec
) -> Solved:
    """The rule behind a transformation.

    Args:
      trainable: the arrays; those that stay are given zeros.
      spec: what it should be: what the answers leave open is taken from here.
    """
    with np.errstate(all="ignore"):
        try:
            return _Solver(transformation, trainable, spec).solve()
        except _UnknownError as unknown:
            return Solved(None, str(unknown))


class _UnknownError(Exception):
    """Nothing predicts the answers; what is known."""


class _Solver:
    def __init__(self, transformation, trainable: Trainable, spec: OptimizerSpec):
        self.ask = _ask(transformation, trainable)
        self.spec = spec
        self.count = len(trainable.leaves)
        self.live = [i for i in range(self.count) if i not in trainable.frozen]
        self.sizes = np.array([leaf.size for leaf in trainable.leaves], np.float64)
        self.small = _SMALL_NORM / np.sqrt(self.sizes[self.live].sum())
        self.steps = max(spec.steps, _MOST_STEPS)

    def answers(self, grads: np.ndarray, params: np.ndarray | None = None) -> np.ndarray:
        """(T, L) updates for (T, L) or (T,) gradients and (L,) parameters."""
        mask = np.isin(np.arange(self.count), self.live)
        grads = np.broadcast_to(grads.reshape(len(grads), -1), (len(grads), self.count)) * mask
        return self.ask(grads, np.zeros(self.count) if params is None else params * mask)

    def solve(self) -> Solved:
        steady = self.answers(np.full(self.steps, self.small))
        if not np.isfinite(steady).all():
            raise _UnknownError("its updates are not finite")
        moving = [i for i in self.live if (steady[:, i] != 0).any()]
        if not moving:
            raise _UnknownError("it updates nothing")
        first = int(np.argmax((steady != 0).any(axis=1)))
        self.short = min(self.steps, first + _MOST_STEPS)
        self.patterns = _patterns(self.short)
        rule = self._base(steady, moving)
        rule = dataclasses.replace(rule, clip=self._clip(rule))
        rule = self._decay(rule)
        generator = np.random.default_rng(2)
        for norm in (_SMALL_NORM, 1.0, 1e3):
            size = norm / _SMALL_NORM * self.small
            grads = size * generator.normal(size=(self.short, self.count))
            params = generator.normal(size=self.count)
            if off(self.predict(rule, grads, params), self.answers(grads, params)) > 10 * EXACT:
                raise _UnknownError(
                    "its updates depend on gradients or parameters in a way that is not solved"
                )
        return Solved(rule)

    def predict(self, rule: Rule, grads: np.ndarray, params: np.ndarray) -> np.ndarray:
        """What `answers` would be by a rule."""
        mask = np.isin(np.arange(self.count), self.live)
        grads = np.broadcast_to(grads.reshape(len(grads), -1), (len(grads), self.count)) * mask
        params = params * mask
        if rule.clip is not None:
            grads = grads * _clip_factors(rule.clip, grads, self.sizes)
        grads = grads + rule.l2 * params
        moved = np.zeros_like(grads)
        for dynamics in set(rule.dynamics):
            where = [i for i, each in enumerate(rule.dynamics) if each == dynamics]
            moved[:, where] = directions(dynamics, grads[:, where])
        steps = len(grads)
        updates = -rule.rates[:steps] * moved - rule.shrink[:steps] * params
        return np.where(mask, updates, 0.0)

    # ------------------------------------------------------------------------ moments

    def _base(self, steady: np.ndarray, moving: list[int]) -> Rule:
        """Dynamics and rates of each array, from small gradients."""
        inputs, found = [], []
        for scale in (1.0, 1e-3, 1e-6):
            for pattern in self.patterns:
                inputs.append(self.small * scale * pattern)
                found.append(self.answers(inputs[-1]))
        asked, answers = np.stack(inputs, axis=1), np.stack(found, axis=1)  # (T, K), (T, K, L)
        wanted = dynamics_of(self.spec)
        dynamics = dict.fromkeys(range(self.count), wanted)
        left = moving
        while left:
            solved = fit_dynamics(wanted, asked, answers[:, :, left[0]])
            if solved is None:
                raise _UnknownError(in_words(asked, answers[:, :, left[0]]))
            fits = [i for i in left if misfit_of(solved, asked, answers[:, :, i]) <= EXACT]
            dynamics |= dict.fromkeys(fits, solved)
            left = [i for i in left if i not in fits]
        rates = np.zeros((self.steps, self.count))
        for i in moving:
            unit = directions(dynamics[i], np.full(self.steps, self.small))
            rates[:, i] = -steady[:, i] / unit
        none = np.zeros_like(rates)
        return Rule(tuple(dynamics.values()), rates, none, none[0])

    # ------------------------------------------------------------------------ clipping

    def _clip(self, rule: Rule) -> Clip | None:
        factors = np.resize([1.0, 0.5, 0.25], self.count)  # arrays unlike one another
        zeros = np.zeros(self.count)
        grads, answers = [], []
        for norm in np.geomspace(_SMALL_NORM, _LARGE_NORM, 9):
            size = norm / _SMALL_NORM * self.small
            grads.append(size * self.patterns[1][:, None] * factors)
            answers.append(self.answers(grads[-1]))
        clipped = [
            off(self.predict(rule, g, zeros), a) > EXACT
            for g, a in zip(grads, answers, strict=True)
        ]
        if not any(clipped):
            return None
        start = clipped.index(True)
        seen = list(zip(grads, answers, strict=True))[max(start - 1, 0) :]
        for kind, slack in (("norm", 0.0), ("norm", CLIP_SLACK), ("array", 0.0), ("value", 0.0)):
            sizes = [_measure(kind, grad, self.sizes).max() for grad in grads]
            low, high = sizes[max(start - 1, 0)] / 10, sizes[start]

            def misfit(log_most: np.ndarray, kind=kind, slack=slack) -> np.ndarray:
                tried = dataclasses.replace(rule, clip=Clip(kind, float(10 ** log_most[0]), slack))
                return np.concatenate(
                    [errors_of(self.predict(tried, g, zeros), a).ravel() for g, a in seen]
                )

            grid = np.linspace(np.log10(low), np.log10(high), 60)
            best = min(grid, key=lambda x: float(np.abs(misfit(np.array([x]))).sum()))
            solved = least_squares(misfit, np.array([best]))
            for most in nice(10 ** solved[0], self.spec.clip_norm, self.spec.clip_value):
                if np.abs(misfit(np.log10([most]))).max() <= EXACT:
                    return Clip(kind, most, slack)
        raise _UnknownError(
            "it treats large gradients unlike small ones, in a way that is not solved"
        )

    # ------------------------------------------------------------------------ decay

    def _decay(self, rule: Rule) -> Rule:
        grads = [self.small * pattern for pattern in self.patterns[1:3]]
        params = np.resize([1.0, 1.5, 0.5], self.count)
        steps = self.steps

        def change(grads: np.ndarray, params: np.ndarray) -> np.ndarray:
            return self.answers(grads, params) - self.answers(grads)

        first, other, twice = (
            change(g, p)
            for g, p in ((grads[0], params), (grads[1], params), (grads[0], -2 * params))
        )
        if not first.any():
            return rule
        if off(other, first) <= EXACT and off(twice, -2 * first) <= EXACT:
            # Linear, whatever the gradient: decoupled, or added to the gradient of a linear rule.
            full = change(np.resize(grads[0], steps), params)
            l2 = self._linear_l2(rule, full, params)
            if l2 is not None:
                return dataclasses.replace(rule, l2=l2)
            return dataclasses.replace(rule, shrink=-full / params)
        return dataclasses.replace(rule, l2=self._l2(rule, grads[0]))

    def _linear_l2(self, rule: Rule, change: np.ndarray, params: np.ndarray) -> np.ndarray | None:
        if any(each.kind != "sgd" for each in rule.dynamics):
            return None
        is_plain = all(each.b1 == 0 for each in rule.dynamics)
        if is_plain and self.spec.name == "adamw":
            return None
        ones = np.ones((self.steps, self.count))
        unit = self.predict(rule, ones, np.zeros(self.count)) if rule.clip is None else None
        if unit is None:
            unit = self.predict(dataclasses.replace(rule, clip=None), ones, np.zeros(self.count))
        share = np.where(unit != 0, change / unit / params, np.nan)
        l2 = np.nan_to_num(np.nanmean(share, axis=0))
        return l2 if off(unit * l2 * params, change) <= EXACT else None

    def _l2(self, rule: Rule, grads: np.ndarray) -> np.ndarray:
        """The share of the parameter that goes into the gradient of a rule that is not linear."""
        asked = [10 * self.small * np.ones(self.count), 1e3 * self.small * np.ones(self.count)]
        seen = [(params, self.answers(grads, params)) for params in asked]

        def misfits(l2: np.ndarray) -> np.ndarray:
            tried = dataclasses.replace(rule, l2=l2)
            return np.concatenate([errors_of(self.predict(tried, grads, p), a) for p, a in seen])

        grid = [0.0, *np.geomspace(1e-7, 10, 60)]
        losses = np.array([np.abs(misfits(np.full(self.count, x))).sum(axis=0) for x in grid])
        l2 = np.array(grid)[losses.argmin(axis=0)]
        known: list[float] = [0.0]
        for i in self.live:

            def misfit(x: np.ndarray, i=i) -> np.ndarray:
                tried = l2.copy()
                tried[i] = x[0]
                return misfits(tried)[:, i]

            exact = [x for x in known if np.abs(misfit(np.array([x]))).max() <= EXACT]
            if not exact and rule.rates[:, i].any():
                solved = float(least_squares(misfit, l2[i : i + 1])[0])
                for x in nice(solved, self.spec.weight_decay):
                    if np.abs(misfit(np.array([x]))).max() <= EXACT:
                        exact = [x]
                        known.append(x)
                        break
                else:
                    raise _UnknownError("its updates depend on the parameters, but not as decay")
            l2[i] = exact[0] if exact else 0.0
        return l2


# ------------------------------------------------------------------------------- answers


def _ask(
    transformation: optax.GradientTransformation, trainable: Trainable
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(T, L) gradients and (L,) parameters to (T, L) updates; NaN where an array has several."""
    leaves = trainable.leaves

    def full(numbers: jax.Array) -> list[jax.Array]:
        return [jnp.full(leaf.shape, numbers[i], leaf.dtype) for i, leaf in enumerate(leaves)]

    @jax.jit
    def update(state, grads, params):
        with jax.numpy_dtype_promotion("standard"):
            given = trainable.unflatten(full(params))
            updates, state = transformation.update(trainable.unflatten(full(grads)), state, given)
        numbers = []
        for each in jax.tree.leaves(updates):
            low, high = jnp.min(each), jnp.max(each)
            # Sums over an array may round its parts differently.
            same = high - low <= 1e-13 * jnp.maximum(jnp.abs(low), jnp.abs(high))
            numbers.append(jnp.where(same, each.ravel()[0], jnp.nan).astype(jnp.float64))
        return state, jnp.stack(numbers)

    @jax.jit
    def init(params):
        with jax.numpy_dtype_promotion("standard"):
            return transformation.init(trainable.unflatten(full(params)))

    def ask(grads: np.ndarray, params: np.ndarray) -> np.ndarray:
        given = jnp.asarray(params, jnp.float64)
        state, updates = init(given), []
        for each in grads:
            state, numbers = update(state, jnp.asarray(each, jnp.float64), given)
            updates.append(np.asarray(numbers))
        return np.stack(updates)

    return ask


def _patterns(steps: int) -> list[np.ndarray]:
    """A steady gradient and two that change size and sign."""
    generator = np.random.default_rng(1)
    sizes = generator.uniform(0.1, 1.0, size=(2, steps))
    signs = np.sign(generator.uniform(-0.5, 1.0, size=(2, steps)))
    return [np.ones(steps), *(sizes * signs)]


def _measure(kind: str, grads: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What a clip compares with its threshold: (T, L), or (T, 1) of all."""
    if kind in ("value", "rms"):
        return np.abs(grads)
    squares = grads**2 * sizes
    return np.sqrt(squares.sum(axis=1, keepdims=True) if kind == "norm" else squares)


def _clip_factors(clip: Clip, grads: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, clip.most / (_measure(clip.kind, grads, sizes) + clip.slack))
