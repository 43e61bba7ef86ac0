"""The moments of an optimizer, fitted to its answers to small gradients."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.parity.optimizers import Dynamics

EXACT = 1e-9  # of an answer: the solution predicts it


def errors_of(predicted: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Over the largest answer of the array; an array without answers over itself."""
    scale = np.max(np.abs(answers), axis=0, initial=0.0)
    scale = np.where(scale > 0, scale, np.max(np.abs(predicted), axis=0, initial=0.0))
    errors = (predicted - answers) / np.where(scale > 0, scale, 1.0)
    return np.where(np.isfinite(errors), errors, 1e3)


def off(predicted: np.ndarray, answers: np.ndarray) -> float:
    return float(np.abs(errors_of(predicted, answers)).max(initial=0.0))


def directions(dynamics: Dynamics, grads: np.ndarray) -> np.ndarray:
    """(T, ...) by gradients (T, ...)."""
    corrections = dynamics.corrections(len(grads))
    state, found = dynamics.init(np.zeros_like(grads[0])), []
    for number, grad in enumerate(grads):
        direction, state = dynamics.direction(grad, state, corrections[number], number == 0, np)
        found.append(direction)
    return np.stack(found)


def _misfits(dynamics: Dynamics, asked: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(T, K) of one array, whose rates follow from the first of the K sequences."""
    moved = directions(dynamics, asked)
    rates = answers[:, :1] / moved[:, :1]
    return errors_of(rates * moved, answers)


def misfit_of(dynamics: Dynamics, asked: np.ndarray, answers: np.ndarray) -> float:
    return float(np.abs(_misfits(dynamics, asked, answers)).max())


def fit_dynamics(wanted: Dynamics, asked: np.ndarray, answers: np.ndarray) -> Dynamics | None:
    """Those that predict one array's answers; the wanted ones where these do."""
    for start, free in _candidates(wanted, asked, answers):

        def made(x: np.ndarray, start=start, free=free) -> Dynamics:
            values = {
                f: float(10**v if f in ("eps", "root") else v) for f, v in zip(free, x, strict=True)
            }
            return dataclasses.replace(start, **values)

        def misfits(x: np.ndarray, made=made) -> np.ndarray:
            return _misfits(made(x), asked, answers).ravel()

        at = np.array(
            [
                np.log10(getattr(start, f)) if f in ("eps", "root") else getattr(start, f)
                for f in free
            ]
        )
        solved = made(least_squares(misfits, at)) if free else start
        if misfit_of(solved, asked, answers) <= EXACT:
            return _rounded(solved, free, wanted, asked, answers)
    return None


def _candidates(
    wanted: Dynamics, asked: np.ndarray, answers: np.ndarray
) -> Iterator[tuple[Dynamics, tuple[str, ...]]]:
    """Where to start from, and what to solve for."""
    yield wanted, ()
    if _is_linear(asked, answers):
        for nesterov in (False, True):
            for b1 in (0.9, 0.5, 0.0):
                yield Dynamics("sgd", b1, nesterov=nesterov), ("b1",)
        for b1 in (0.9, 0.5):
            yield Dynamics("sgd", b1, dampening=0.1), ("b1", "dampening")
        return
    if _is_sign(answers):
        for b1, b2 in ((0.9, 0.99), (0.95, 0.98), (0.9, 0.999), (0.9, 0.9), (0.0, 0.0)):
            yield Dynamics("lion", b1, b2), ()
        return
    forms = [
        (Dynamics("adam"), ("eps",)),
        (Dynamics("adam"), ("root",)),
        (Dynamics("adam", corrected=False), ("eps",)),
        (Dynamics("adam", corrected=False), ("root",)),
        (Dynamics("rmsprop"), ("eps",)),
        (Dynamics("rmsprop"), ("root",)),
        (Dynamics("adam", nesterov=True), ("eps",)),
        (Dynamics("adam"), ("eps", "root")),
        (Dynamics("adam", nesterov=True), ("root",)),
    ]
    betas = [(wanted.b1, wanted.b2)] if wanted.b2 else []
    for form, free in forms:
        for b1, b2 in [*betas, (0.9, 0.999), (0.5, 0.9), (0.0, 0.99)]:
            for size in (1e-8, 1e-5, 1e-12):
                sizes = {f: size**2 if f == "root" else size for f in free}
                yield dataclasses.replace(form, b1=b1, b2=b2, **sizes), ("b1", "b2", *free)


def _is_linear(asked: np.ndarray, answers: np.ndarray) -> bool:
    """Whether gradients a thousandth in size have updates a thousandth in size."""
    third = asked.shape[1] // 3
    return off(1e3 * answers[:, third : 2 * third], answers[:, :third]) <= EXACT


def _is_sign(answers: np.ndarray) -> bool:
    """Whether all updates of a step are of one size."""
    sizes = np.abs(answers)
    return bool((np.ptp(sizes, axis=1) <= EXACT * sizes.max(axis=1)).all())


def _rounded(
    solved: Dynamics,
    free: tuple[str, ...],
    wanted: Dynamics,
    asked: np.ndarray,
    answers: np.ndarray,
) -> Dynamics:
    """With the wanted values, or few digits, where the answers are as well predicted by these."""
    for field in free:
        for value in nice(getattr(solved, field), getattr(wanted, field), 0.0):
            tried = dataclasses.replace(solved, **{field: value})
            if misfit_of(tried, asked, answers) <= EXACT:
                solved = tried
                break
    if solved.kind == "adam" and solved.b1 == 0 and not solved.corrected:
        solved = dataclasses.replace(solved, kind="rmsprop", corrected=True)
    return solved


def nice(value: float, *wanted: float | None) -> list[float]:
    """Values near a solved one, the likeliest first; itself last."""
    near = [w for w in wanted if w is not None and abs(w - value) <= 1e-3 * max(abs(w), 1e-3)]
    few = [float(f"{value:.{digits}g}") for digits in (1, 2, 3, 4, 6)]
    few += [1 - float(f"{1 - value:.{digits}g}") for digits in (1, 2, 3)]
    return [*near, *(round(v, 12) if abs(v) > 1e-3 else v for v in few), value]


def least_squares(misfits: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    from scipy import optimize

    tight = 1e-15
    return optimize.least_squares(
        misfits, start, method="lm", xtol=tight, ftol=tight, gtol=tight, max_nfev=400
    ).x


def in_words(asked: np.ndarray, answers: np.ndarray) -> str:
    """Of updates that nothing predicts, what can be said."""
    if _is_linear(asked, answers):
        return "its updates are linear in the gradients, and no momentum explains them"
    if _is_sign(answers):
        return "all its updates of a step have one size, as signs have: those of Lion, for one"
    steady = np.abs(answers[:, [0, asked.shape[1] // 3]])
    if off(steady[:, 0], steady[:, 1]) <= 1e-2:
        return "its updates hardly depend on the gradients' size, and Adam's rule is not theirs"
    return "its updates depend on the gradients in a way that is not solved"
