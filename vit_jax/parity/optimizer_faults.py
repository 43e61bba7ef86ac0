"""An optimizer whose settings are not the reference's, and what of it is harmless."""

import dataclasses

import numpy as np

from vit_jax.parity.optimizer_words import HARMLESS, TITLES, Arrays, Fault, differences, digits
from vit_jax.parity.optimizers import Rule, rule_step
from vit_jax.parity.repair import Found
from vit_jax.parity.result import Diagnosis, Row
from vit_jax.parity.run import Comparison
from vit_jax.parity.solve_optimizer import solve
from vit_jax.parity.values import rms

# Of all that Adam may carry a parameter: three times what optax's bias corrections are off by.
_OPTAX_FLOAT32 = 4e-5


def optimizer_fault(run: Comparison) -> Found | None:
    """Which settings of the transformation are not the reference's, solved from its answers."""
    found = solution(run)
    if found is None:
        return None
    rule, known, faults, exact = found
    if rule is None:
        assert run.reference.optimizer is not None
        title = TITLES[run.reference.optimizer.name]
        text = f"the transformation is not {title} as PyTorch has it: {known}{_first_step(run)}"
        return Diagnosis("optimizer", text, False), "optimizer", ""
    if not faults:
        return None
    text = "; further, ".join(text for _, text in faults)
    return Diagnosis(faults[0][0], text, exact), "optimizer", ""


def settle_harmless(run: Comparison) -> None:
    """Compares training as if a harmless difference were none, and notes it.

    Schedules of optax are computed in float32 whatever the model's type, and its
    `clip_by_global_norm` leaves out what PyTorch adds to the norm. Where PyTorch's steps with that
    difference are the model's own, those without it are compared. So they are in float32 where what
    remains is no more than optax's bias corrections are off by.
    """
    first = run.first
    is_of_training = first is not None and (
        first.section == "trained" or (first.section == "losses" and first.name != "loss")
    )
    if not is_of_training:
        return
    if run.precision == "float32":
        _settle_rounding(run)
        return
    found = solution(run)
    if found is None or not found[2] or not found[3]:
        return
    if any(fault not in HARMLESS for fault, _ in found[2]):
        return
    rows = run.training_rows(*run.side.train(run.reference))
    for _, text in found[2]:
        _replace_if_noise(run, rows, f"training was compared without a harmless difference: {text}")


def _settle_rounding(run: Comparison) -> None:
    spec = run.reference.optimizer
    if run.transformation is None or run.trained is None or spec is None:
        return
    losses, plain = run.side.train(run.reference)
    off = {
        name: np.abs(plain[name] - array).max(initial=0) for name, array in run.trained[1].items()
    }
    worst = max(off.values(), default=0.0)
    if np.isfinite(spec.reach) and worst <= _OPTAX_FLOAT32 * spec.reach:
        _replace_if_noise(
            run,
            run.training_rows(losses, plain),
            f"in float32 the transformation's own rounding moves a parameter by up to {worst:.1e}, "
            "which is not counted",
        )


def _replace_if_noise(run: Comparison, rows: list[Row], note: str) -> None:
    if all(row.verdict == "noise" for row in rows):
        names = {(row.section, row.name) for row in rows}
        run.rows = [row for row in run.rows if (row.section, row.name) not in names] + rows
        run.notes.append(note)


# A rule, or None and what is known; its faults; whether training by it is the model's own.
_Solution = tuple[Rule | None, str, list[Fault], bool]


def solution(run: Comparison) -> _Solution | None:
    """Of the run's transformation; it is looked for once."""
    if run.solution is None:
        run.solution = _solved(run)
    return run.solution


def _solved(run: Comparison) -> _Solution | None:
    spec, transformation = run.reference.optimizer, run.transformation
    if spec is None or transformation is None or run.trained is None:
        return None
    trainable = run.side.trainable(run.reference)
    solved = solve(transformation, trainable, spec)
    rule = solved.rule
    if rule is None:
        return None, solved.known, [], False
    arrays = Arrays(
        trainable.names,
        [leaf.ndim for leaf in trainable.leaves],
        [i for i in range(len(trainable.leaves)) if i not in trainable.frozen],
    )
    tried = [rule]
    if rule.clip is not None and rule.clip.kind == "value":
        # The same where all of an array is one number.
        tried.append(dataclasses.replace(rule, clip=dataclasses.replace(rule.clip, kind="rms")))
    exact = next((each for each in tried if _is_exact(run, each)), None)
    return exact or rule, "", differences(exact or rule, spec, arrays), exact is not None


def _is_exact(run: Comparison, rule: Rule) -> bool:
    """Whether PyTorch's steps with these settings are the model's, to rounding."""
    assert run.trained is not None
    losses, trained = run.trained
    found, params = run.side.train(run.reference, rule_step(rule))
    # Another program may round a schedule's float32 differently.
    share = 1e-6 if _in_float32(rule.rates) else 0.0
    start = run.side.weights()
    return _near(found, losses, share * float(np.ptp(losses))) and all(
        _near(
            params[name],
            trained[name],
            run.amplified(name) + share * float(np.max(np.abs(trained[name] - start[name]))),
        )
        for name in trained
    )


def _in_float32(rates: np.ndarray) -> bool:
    """Of rates that change: whether all are float32 numbers."""
    narrow = rates.astype(np.float32).astype(np.float64)
    return bool(
        np.ptp(rates, axis=0).max() > 1e-8 * np.abs(rates).max()
        and np.allclose(rates, narrow, rtol=1e-12, atol=0.0)
    )


def _near(one: np.ndarray, other: np.ndarray, extra: float = 0.0) -> bool:
    return bool(np.max(np.abs(one - other), initial=0.0) <= 1e-10 * rms(other) + extra)


def _first_step(run: Comparison) -> str:
    """How the first step compares, where one number says it."""
    spec = run.reference.optimizer
    assert spec is not None
    one = dataclasses.replace(spec, steps=1, learning_rate=spec.rates[0])
    reference = dataclasses.replace(run.reference, optimizer=one)
    start = run.side.weights()
    (_, ours), (_, theirs) = (
        run.side.train(reference, step) for step in (run.transformation, None)
    )
    factors = []
    for name, after in theirs.items():
        step, own = after - start[name], ours[name] - start[name]
        square = float(np.vdot(step, step))
        factor = float(np.vdot(step, own)) / square if square else 0.0
        if np.max(np.abs(own - factor * step), initial=0.0) > 1e-6 * max(rms(own), rms(step)):
            return ""
        if square:
            factors.append(factor)
    if not factors or np.ptp(factors) > 1e-6 * abs(factors[0]):
        return ""
    if not factors[0]:
        return "; its first step changes nothing"
    return f"; its first step is {digits(factors[0])} times the reference's on every array"
