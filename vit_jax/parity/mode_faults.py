"""Faults of modes: what is left in train mode, and how running statistics are updated."""

import numpy as np

from vit_jax.parity.forward import Forward, Point, first_bad
from vit_jax.parity.modes import by_path, drops, in_eval_mode, uses_batch
from vit_jax.parity.repair import Found, wrong_gradients
from vit_jax.parity.result import Diagnosis
from vit_jax.parity.run import Comparison, module_of
from vit_jax.parity.sides import ModelSide
from vit_jax.parity.values import Whole

_EXACT = 1e-9
DROPOUT_TEXT = (
    "dropout is left on: the model drops values that the reference, in eval mode, keeps; "
    "call model.eval()"
)
_BATCH_TEXT = (
    "it normalises by the statistics of the batch, the reference, in eval mode, by its running "
    "ones; call model.eval()"
)


def train_mode_fault(run: Comparison, points: list[Point], bad: int) -> Found | None:
    """A model in train mode that agrees further in eval mode.

    Args:
      points: of a trial.
      bad: the index of the first that departs.
    """
    side = run.side
    assert isinstance(side, ModelSide)
    if run.reference.is_train:
        return None
    left = {p: m for p, m in by_path(side.model).items() if drops(m) or uses_batch(m)}
    if not left:
        return None
    mended = ModelSide(in_eval_mode(side.model), side.dtype, side.outputs, side.islands)
    after = first_bad(Forward(run.reference, mended).run("float64"))
    if after is not None and after <= bad:
        return None
    ran = [p.event.path.partition("#")[0] for p in points[: bad + 1] if p.event is not None]
    path = next((path for path in reversed(ran) if path in left), next(iter(left)))
    complete = after is None and not wrong_gradients(run, mended)
    if drops(left[path]):
        return Diagnosis("dropout", DROPOUT_TEXT, complete), path, ""
    text = f"{path} is left in train mode: {_BATCH_TEXT}"
    return Diagnosis("batch_norm_mode", text, complete), path, ""


def statistics_fault(run: Comparison) -> Found | None:
    """An update of running statistics by another share of the batch, or of its other variance."""
    bad = [r.name for r in run.rows if r.section == "statistics" and r.verdict != "noise"]
    found: list[tuple[str, str, str]] = []
    for path in dict.fromkeys(map(module_of, bad)):
        fault = _update_fault(run, path)
        if fault is None:
            break
        found.append((path, *fault))
    if not found:
        return None
    explained = {path for path, _, _ in found}
    left = [
        row
        for row in run.rows
        if row.verdict != "noise"
        and not (row.section in ("statistics", "trained") and module_of(row.name) in explained)
    ]
    path, name, text = found[0]
    alike = [p for p, other, _ in found[1:] if other == name]
    also = f" (and so {', '.join(alike[:5])}{', ...' if alike[5:] else ''})" if alike else ""
    others = [f"in {p} {more}" for p, other, more in found[1:] if other != name]
    text = "; further, ".join((f"in {path}{also} {text}", *others))
    return Diagnosis(name, text, not left), path, ""


def _update_fault(run: Comparison, path: str) -> tuple[str, str] | None:
    """The fault and the text of one batch normalisation."""
    module = by_path(run.side.model).get(path) if isinstance(run.side, ModelSide) else None
    names = [f"{path}.running_{kind}" for kind in ("mean", "var")]
    reference = run.reference
    if not all(n in run.statistics and n in reference.weights for n in names):
        return None
    expected = [reference.statistics.get(name) for name in names]
    momentum = getattr(module, "momentum", None)
    if not isinstance(momentum, float) or not all(isinstance(e, Whole) for e in expected):
        return None
    share, ours = 1 - momentum, [run.statistics[name] for name in names]
    old = [np.asarray(reference.weights[name], np.float64) for name in names]
    theirs = [e.array for e in expected if isinstance(e, Whole)]
    if all(np.array_equal(now, was) for now, was in zip(ours, old, strict=True)):
        return "batch_norm_frozen", "the running statistics are not updated, the reference's are"
    count = _count(run, path, len(ours[0]))
    batch = [was + (now - was) / share for now, was in zip(ours, old, strict=True)]
    step = batch[0] - old[0]
    theirs_share = float(np.dot(theirs[0] - old[0], step) / np.dot(step, step))
    if not _equal(old[0] + theirs_share * step, theirs[0]):
        return None
    for factor, text in (
        (1.0, ""),
        (count / max(count - 1, 1), "variance over n, the reference the unbiased one, over n - 1"),
        ((count - 1) / count, "unbiased variance, over n - 1, the reference the one over n"),
    ):
        if not _equal(old[1] + theirs_share * (factor * batch[1] - old[1]), theirs[1]):
            continue
        texts = []
        if abs(theirs_share - share) > _EXACT:
            texts.append(
                f"the running statistics take {share:.4g} of each batch, the reference's "
                f"{theirs_share:.4g} (momentum in Flax and Equinox is 1 - momentum in PyTorch)"
            )
        if text:
            texts.append(f"the running variance takes the {text} (here n = {count})")
        name = (
            "batch_norm_momentum" if abs(theirs_share - share) > _EXACT else "batch_norm_unbiased"
        )
        return (name, "; ".join(texts)) if texts else None
    return None


def _count(run: Comparison, path: str, features: int) -> int:
    """Over how many numbers each variance of a batch is taken."""
    shape = next((p.shape for p in run.points if p.stage == path), (features,))
    return int(np.prod(shape)) // features


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.max(np.abs(one - other), initial=0.0) <= _EXACT * np.max(np.abs(other)))
