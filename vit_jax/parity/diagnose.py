"""Why a model departs: known faults, each taken out of the model to see whether it agrees then."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.inspect.recorder import Event, Replace
from vit_jax.parity.array_faults import array_fault
from vit_jax.parity.dissect.dissect import dissect
from vit_jax.parity.forms import Form, Scene, forms_of
from vit_jax.parity.forward import Forward, Point, first_bad, last_good
from vit_jax.parity.loss_factor import loss_factor
from vit_jax.parity.mode_faults import DROPOUT_TEXT, statistics_fault, train_mode_fault
from vit_jax.parity.optimizer_faults import optimizer_fault
from vit_jax.parity.ported import PortedModel
from vit_jax.parity.repair import Found, outcome_of, output_layout, wrong_gradients
from vit_jax.parity.result import Diagnosis
from vit_jax.parity.run import Comparison
from vit_jax.parity.sides import ModelSide, is_dropout
from vit_jax.parity.values import Whole, rms

_SAME = 1e-9  # of the rms: a form is what the model computes
_FAULT_OF_TRAIT = {
    "order": "qkv_order",
    "scale": "attention_scale",
    "layout": "head_layout",
    "weighting": "softmax",
    "performer_eps": "performer_eps",
    "kernel": "performer_features",
}
# So many faults may stand one behind the other.
_ROUNDS = 6


def diagnose(run: Comparison) -> Found | None:
    """Searches for the fault behind the first difference of a run in float64."""
    first = run.first
    if first is None:
        return None
    if first.section in ("backward", "gradients", "losses"):
        found = loss_factor(run)
        if found is not None:
            return found
    if first.section == "trained" or (first.section == "losses" and first.name != "loss"):
        return optimizer_fault(run)
    if first.section in ("forward", "backward", "gradients"):
        # A port of another library takes seconds a run, and the replay runs the reference alone.
        is_ported = isinstance(run.side, ModelSide) and isinstance(run.side.model, PortedModel)
        replayed = dissect(run) if is_ported else None
        if replayed is not None and replayed[0].complete:
            return replayed
        known, is_vague = None, False
        if isinstance(run.side, ModelSide):
            known, is_vague = (
                _values(run) if first.section == "forward" else (_gradients(run), False)
            )
        if known is not None and known[0].complete and not is_vague:
            return known
        found = replayed if is_ported else dissect(run)
        if run.reference.live is not None and is_vague:
            return found
        return found if found is not None and (known is None or found[0].complete) else known
    if not isinstance(run.side, ModelSide):
        return None
    if first.section == "weights":
        return _weights(run)
    if first.section == "statistics":
        return statistics_fault(run)
    return None


# ---------------------------------------------------------------------------- weights


def _weights(run: Comparison) -> Found | None:
    assert isinstance(run.side, ModelSide)
    own = run.side.weights(run.reference.weights)
    bad = [r.name for r in run.rows if r.section == "weights" and r.verdict != "noise"]
    faults = {name: array_fault(name, own, run.reference.weights) for name in bad}
    fault = faults[bad[0]]
    if fault is None:
        return None
    side = run.side.with_weights(run.reference.weights)
    mended = Forward(run.reference, side).run("float64")
    complete = first_bad(mended) is None and not wrong_gradients(run, side)
    also = [n for n in bad[1:] if (other := faults[n]) is not None and other.name == fault.name]
    text = f"{bad[0]}: {fault.text}"
    if also:
        text += f" (and so {', '.join(also[:5])}{', ...' if also[5:] else ''})"
    unlike = [n for n in bad if n not in also and n != bad[0]]
    complete = complete and not unlike
    return Diagnosis(fault.name, text, complete), None, ""


# ---------------------------------------------------------------------------- values


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A form in the place of the model's own value, at one event or wherever its like stands."""

    form: Form
    at: Point
    own: Form | None
    everywhere: bool

    def replaces(self, event: Event) -> bool:
        at = self.at.event
        assert at is not None
        if event.stage == at.stage:
            return True
        alike = (
            self.everywhere
            and (event.entered is None, event.part) == (at.entered is None, at.part)
            and type(event.frame.module) is type(at.frame.module)
            and type(event.module) is type(at.module)
        )
        if self.form.kind == "layer_norm":  # an epsilon is one for all of them, whatever the name
            return alike
        return (
            alike
            and event.path.rpartition(".")[2].partition("#")[0]
            == at.path.rpartition(".")[2].partition("#")[0]
        )

    def __call__(self, event: Event, value: jax.Array) -> jax.Array:
        if not self.replaces(event):
            return value
        new = self.form(event, value)
        return value if new is None else new

    @property
    def fault(self) -> str:
        if self.own is not None and self.form.traits:
            changed = [
                name
                for (name, old), (_, new) in zip(self.own.traits, self.form.traits, strict=True)
                if old != new
            ]
            return _FAULT_OF_TRAIT[changed[0]] if len(changed) == 1 else self.form.kind
        if self.own is None and self.form.kind == "layer_norm":
            return "layer_norm"
        faults = {form.fault for form in (self.own, self.form) if form is not None}
        if self.own is not None and faults == {"gelu", "activation"}:
            return "activation"
        return (self.own and self.own.fault) or self.form.fault or self.form.kind

    @property
    def is_vague(self) -> bool:
        """Whether it knows what the reference computes and not what the model does."""
        return self.own is None and self.form.kind != "skipped"

    @property
    def text(self) -> str:
        if self.form.traits:
            pairs = list(zip(self.own.traits, self.form.traits, strict=True)) if self.own else []
            changed = [(old[1], new[1]) for old, new in pairs if old != new]
            model = "; ".join(old for old, _ in changed) or "another attention"
            wanted = "; ".join(n for _, n in changed) or ", ".join(t for _, t in self.form.traits)
        else:
            model = self.own.text if self.own is not None else "something else"
            wanted = self.form.text
            if self.form.kind == "skipped":
                model = "without it"
        return f"ours is {model}, the reference's {wanted}"


def _chain(trials: list[_Trial]) -> Replace | None:
    if not trials:
        return None

    def replace(event: Event, value: jax.Array) -> jax.Array:
        for trial in trials:
            value = trial(event, value)
        return value

    return replace


def _values(run: Comparison) -> tuple[Found | None, bool]:
    """The fault of a value, and whether one of its forms is vague."""
    bad = first_bad(run.points)
    if bad is None:
        return None, False
    points = run.forward.trial()
    keyless = run.forward.trial(keyless=True)
    if _reach(keyless) > bad:
        complete = first_bad(keyless) is None and not wrong_gradients(run, keyless=True)
        diagnosis = Diagnosis("dropout", DROPOUT_TEXT, complete)
        return (diagnosis, _dropper(points[:bad]) or None, ""), False
    in_train_mode = train_mode_fault(run, points, bad)
    if in_train_mode is not None:
        return in_train_mode, False
    if points[bad].stage == "" and points[bad].order is None:
        return output_layout(run, points[bad]), False
    accepted: list[_Trial] = []
    for _ in range(_ROUNDS):
        trial, after = _best_trial(run, points, accepted)
        if trial is None:
            break
        accepted.append(trial)
        points = after
        if first_bad(points) is None:
            break
    if not accepted:
        return None, False
    complete, outcome = outcome_of(run, points, _chain(accepted))
    first = accepted[0]
    event = first.at.event
    assert event is not None
    names = {trial.fault for trial in accepted}
    text = f"in {_where(event)} {first.text}"
    if len(names) > 1:
        others = "; ".join(f"in {_where(t.at.event)} {t.text}" for t in accepted[1:])
        text += f"; further, {others}"
    text += f"; {outcome}"
    stage = event.frame.path
    if first.form.kind == "skipped":
        stage = first.form.text.partition(" ")[0]
    is_vague = any(trial.is_vague for trial in accepted)
    return (Diagnosis(first.fault, text, complete), stage, ""), is_vague


def _where(event: Event | None) -> str:
    assert event is not None
    return event.frame.path or "the model itself"


def _dropper(points: list[Point]) -> str:
    """The first dropout that drops; "" where it is stochastic depth, which is no module."""
    entered: dict[str, np.ndarray] = {}
    for point in points:
        if point.event is None or not is_dropout(point.event.module):
            continue
        path = point.event.path
        if point.event.entered is not None:
            entered[path] = point.value
        elif not np.array_equal(point.value, entered.get(path, point.value)):
            return path
    return ""


def _reach(points: list[Point]) -> int:
    """How far a run agrees: the index of its first wrong value, or beyond the end."""
    bad = first_bad(points)
    return bad if bad is not None else 10**9


def _best_trial(
    run: Comparison, points: list[Point], accepted: list[_Trial]
) -> tuple[_Trial | None, list[Point]]:
    """The trial that makes the model agree furthest, and the run with it."""
    bad = first_bad(points)
    assert bad is not None
    good = last_good(points, bad)
    best: tuple[_Trial | None, list[Point]] = (None, points)
    # The value itself first, then those between, which the reference does not have; and the last
    # one that agrees, where only a part of it was compared.
    known = run.forward.expected.get(points[good].stage, ()) if good >= 0 else ()
    is_part = any(not isinstance(value, Whole) for value in known)
    order = [bad, *range(bad - 1, good - is_part, -1)]
    for index in order:
        for trial in _trials(run, points, index, index == bad, good):
            after = run.forward.trial(_chain([*accepted, trial]), to_first_bad=True)
            if _reach(after) > max(bad, _reach(best[1])):
                best = (trial, after)
                if first_bad(after) is None:
                    return best
    if best[0] is not None and len(best[1]) <= bad + 1:
        return None, points
    return best


def _trials(
    run: Comparison, points: list[Point], index: int, is_bad: bool, good: int
) -> Iterator[_Trial]:
    point = points[index]
    event = point.event
    if event is None:
        return
    value = jnp.asarray(point.value)
    expected = run.forward.expected.get(point.stage, ())
    scene = Scene(
        run.scene,
        tuple(run.forward.skipped(points, good, index)),
        expected[0] if expected else None,
    )
    forms = forms_of(event, value, scene)
    own: list[Form] = []
    fitting: list[Form] = []
    for form in forms:
        found = form(event, value)
        if found is None:
            continue
        array = np.asarray(found, np.float64)
        if _is_same(array, point.value):
            own.append(form)
        elif not is_bad or run.forward.agrees(point, array):
            fitting.append(form)
    for form in sorted(fitting, key=lambda form: _distance(form, own)):
        alike = [o for o in own if o.kind == form.kind]
        # Of what has several traits one is changed; all, where the model's own are not known.
        if form.traits and (_distance(form, own) > 1 if alike else not is_bad):
            continue
        nearest = min(alike, key=lambda o: _difference(o, form), default=None)
        if form.kind == "sum" and nearest is None and not is_bad:
            continue
        for everywhere in (True, False):
            yield _Trial(form, point, nearest, everywhere)


def _difference(one: Form, other: Form) -> int:
    return sum(a != b for a, b in zip(one.traits, other.traits, strict=False))


def _distance(form: Form, own: list[Form]) -> int:
    """In how many traits a form differs from what the model computes."""
    alike = [_difference(o, form) for o in own if o.kind == form.kind]
    return min(alike, default=len(form.traits))


def _is_same(found: np.ndarray, value: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.max(np.abs(found - value), initial=0) <= _SAME * max(rms(value), 1e-300))


# ---------------------------------------------------------------------------- gradients


def _gradients(run: Comparison) -> Found | None:
    """A right value with a wrong derivative: the form that has the value, with its own."""
    assert isinstance(run.side, ModelSide)
    stage, _ = run.place()
    inside = [
        p
        for p in run.forward.trial()
        if p.event is not None and p.event.frame.path.startswith(stage)
    ]
    scene = Scene(run.scene)
    wrong = [r.name for r in run.rows if r.section == "backward" and r.verdict != "noise"]
    stages = [stage for stage in run.gradients.stages if stage in wrong]
    tried: set[tuple] = set()
    for point in inside:
        event = point.event
        assert event is not None
        for form in forms_of(event, jnp.asarray(point.value), scene):
            found = form(event, jnp.asarray(point.value))
            if found is None or not _is_same(np.asarray(found, np.float64), point.value):
                continue
            trial = _Trial(form, point, form, everywhere=True)
            key = (form.kind, form.text, form.traits, type(event.frame.module), type(event.module))
            if key in tried:
                continue
            tried.add(key)
            mended = run.side.gradients(run.reference, trial, stages, borrowed=run.scene)
            rows = run.gradient_rows(mended)
            if all(row.verdict == "noise" for row in rows):
                what = form.text or "; ".join(text for _, text in form.traits)
                text = (
                    f"in {_where(event)} the value of {form.kind} ({what}) is right and its "
                    "derivative is not"
                )
                return Diagnosis(f"derivative_of_{form.kind}", text, True), event.frame.path, ""
    return None
