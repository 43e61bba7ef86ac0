"""Why a model departs, from the values: what the reference would have to compute to give ours."""

import itertools

import numpy as np

from vit_jax.inspect.stages import split_stage
from vit_jax.parity.dissect.arguments import text_of
from vit_jax.parity.dissect.case import Case
from vit_jax.parity.dissect.derivatives import derivative
from vit_jax.parity.dissect.program import Program
from vit_jax.parity.dissect.relations import part_of, relation
from vit_jax.parity.dissect.search import Trial, slot_name
from vit_jax.parity.dissect.watch import site_in_words
from vit_jax.parity.forward import in_words
from vit_jax.parity.repair import Found
from vit_jax.parity.result import Diagnosis
from vit_jax.parity.run import Comparison
from vit_jax.parity.torch_run import to_numpy
from vit_jax.parity.values import Whole

# So many faults may stand one behind the other.
_ROUNDS = 4


def dissect(run: Comparison) -> Found | None:
    """The fault behind the first value that departs, told by the values alone."""
    case = Case(run)
    told: list[str] = []
    first: tuple[str, str] | None = None
    for _ in range(_ROUNDS):
        if case.bad is None:
            break
        before = case.reach
        found = case.search()
        if found is None:
            break
        trial, program = found
        told.append(_told(trial, program))
        first = first or (trial.fault, _place(trial, program))
        case.apply(trial, program)
        if case.reach <= before:
            break
    if case.bad is None and (not told or case.wrong_gradients()):
        slope = derivative(case)
        if slope is not None:
            text, path = slope
            told.append(text)
            first = first or ("derivative", path)
    if first is None:
        return _related(case)
    complete, outcome = case.outcome()
    text = "; further, ".join(told)
    return Diagnosis(first[0], f"{text}; {outcome}", complete), _known(run, first[1]), ""


def _place(trial: Trial, program: Program) -> str:
    """The path of the module whose code a trial changes."""
    if trial.entered is not None:
        return _common([trial.entered.rpartition(".")[0], *_makers(trial, program)])
    if trial.inserts:
        # What a module gave is right: it is what is done with it.
        return program.frame
    return program.calls[trial.at].stages[-1]


def _makers(trial: Trial, program: Program) -> list[str]:
    """Where the values are made that a trial gives in the place of others."""
    makers = [program.made(slot) for slot in trial.sources.values()]
    return [program.frame if made is None else program.calls[made].path for made in makers]


def _common(paths: list[str]) -> str:
    """The path of the module that all of these are in."""
    parts = itertools.takewhile(
        lambda names: len(set(names)) == 1,
        zip(*(path.split(".") for path in paths), strict=False),
    )
    return ".".join(names[0] for names in parts)


def _known(run: Comparison, path: str) -> str:
    """The nearest module that the model has too."""
    parts = [split_stage(point.stage) for point in run.points]
    known = {f"{part.path}{part.call}" for part in parts}
    while path and path not in known:
        path = path.partition("#")[0] if "#" in path else path.rpartition(".")[0]
    return path


def _told(trial: Trial, program: Program) -> str:
    call = program.calls[trial.at]
    where = f"in {_place(trial, program) or 'the model itself'}"
    at = site_in_words(call.site)
    if trial.is_code:
        theirs = f"where the reference computes {text_of(call)}{at}"
        return f"{where} ours computes {trial.text} {theirs}"
    return f"{where} ours has {trial.text}{'' if trial.entered is not None else at}"


def _related(case: Case) -> Found | None:
    """A relation of the first bad value to the reference's, where no change of code gives it."""
    if case.bad is None:
        return None
    arrays = case.layout()
    if arrays is None:
        return _cut(case)
    got, want = arrays
    others = {}
    if case.program is not None:
        for slot, value in enumerate(case.program.values):
            if tuple(value.shape) == want.shape and value.is_floating_point():
                others[slot_name(case.program, slot)] = to_numpy(value)
    for point in case.points[: case.bad]:
        for expected in case.forward.expected.get(point.stage, ()):
            if point.is_good and isinstance(expected, Whole) and expected.shape == want.shape:
                others[in_words(point.stage)] = expected.array
    found = relation(got, want, dict(list(others.items())[-12:]))
    if found is None:
        return None
    point = case.points[case.bad]
    return Diagnosis(found.fault, f"{in_words(point.stage)}: {found.text}", False), None, ""


def _cut(case: Case) -> Found | None:
    """A value that is a part of the reference's."""
    assert case.bad is not None
    point = case.points[case.bad]
    expected = case.forward.expected[point.stage][0]
    if not isinstance(expected, Whole):
        return None
    value = np.asarray(point.value, np.float64)
    for array in [value, value.transpose(0, 3, 1, 2)] if value.ndim == 4 else [value]:
        text = part_of(array, expected.array)
        if text is not None:
            return Diagnosis("partial", f"{in_words(point.stage)}: {text}", False), None, ""
    return None
