"""An optimizer's settings beside the reference's, in words."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.parity.optimizers import CLIP_SLACK, Clip, Dynamics, Rule, rule_of
from vit_jax.parity.values import OptimizerSpec

# A fault's name and its sentence.
Fault = tuple[str, str]
# Of a rule that does the reference's: the rounding of float32, and PyTorch's 1e-6 in a norm.
HARMLESS = ("rounded_rate", "clip_slack")
TITLES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop", "lion": "Lion"}
_SAME = 1e-8


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The trained arrays; `live` are those that the reference trains."""

    names: Sequence[str]
    ndims: Sequence[int]
    live: Sequence[int]

    def on(self, where: Iterable[int]) -> str:
        """ " on ..." of some of them; nothing of all."""
        where = list(where)
        if len(where) == len(self.live):
            return ""
        listed = ", ".join(self.names[i] for i in where[:4]) + (", ..." if where[4:] else "")
        count = f"{len(where)} of {len(self.live)}: {listed}"
        for words, fits in (("one axis", lambda n: n <= 1), ("two axes or more", lambda n: n > 1)):
            if where == [i for i in self.live if fits(self.ndims[i])]:
                return f" on arrays with {words} ({count})"
        return f" on some arrays ({count})"


def differences(rule: Rule, spec: OptimizerSpec, arrays: Arrays) -> list[Fault]:
    """In what a rule is not the reference's."""
    wanted = rule_of(spec, arrays.names)
    steps = spec.steps
    # optax.masked hands on the gradients of what it masks, and apply_updates adds them.
    handed_on = [
        i
        for i in arrays.live
        if rule.dynamics[i] == Dynamics("sgd") and same(rule.rates[:, i], -1.0)
    ]
    faults: list[Fault] = []
    if handed_on:
        text = f"the gradient itself is added{arrays.on(handed_on) or ' on every array'}: "
        faults.append(("masked", text + "optax.masked hands on the updates of what it masks"))
    rest = [i for i in arrays.live if i not in handed_on]
    still = [i for i in rest if not rule.rates[:steps, i].any() and wanted.rates[:, i].any()]
    if still:
        words = arrays.on(still)
        text = f"no update{words}" if words else "no array is updated"
        faults.append(("frozen", f"{text}, the reference trains them"))
    moving = [i for i in rest if i not in still]
    of_moments: list[Fault] = []
    for dynamics in dict.fromkeys(rule.dynamics[i] for i in moving):
        where = [i for i in moving if rule.dynamics[i] == dynamics]
        for fault, text, theirs in _of_dynamics(dynamics, wanted.dynamics[where[0]], spec):
            of_moments.append((fault, f"{text}{arrays.on(where)}, the reference's {theirs}"))
    kinds = [fault for fault in of_moments if fault[0] == "optimizer"]
    every = [
        *kinds,
        *faults,
        *_of_rates(rule.rates[:steps], wanted.rates, moving, arrays),
        *_of_decay(rule, wanted, moving, spec, arrays),
        *(fault for fault in of_moments if fault[0] != "optimizer"),
        *_of_clip(rule.clip, wanted.clip),
    ]
    return sorted(every, key=lambda fault: fault[0] in HARMLESS)


def _of_dynamics(ours: Dynamics, theirs: Dynamics, spec: OptimizerSpec) -> Iterable[tuple]:
    """Fault, ours and the reference's in words."""
    if ours.kind != theirs.kind:
        title = TITLES[spec.name]
        yield (
            "optimizer",
            f"the updates are {_dynamics_in_words(ours)}",
            (f"are {title}'s{_dynamics_in_words(theirs)[len(TITLES[theirs.kind]) + 2 :]}"),
        )
        return
    if ours.kind == "sgd":
        if ours.b1 != theirs.b1:
            yield "momentum", _momentum(ours.b1), f"{theirs.b1:g}"
    elif (ours.b1, ours.b2) != (theirs.b1, theirs.b2):
        if ours.kind == "adam":
            one, other = (f"({digits(d.b1)}, {digits(d.b2)})" for d in (ours, theirs))
            yield "betas", f"betas {one}", other
        elif ours.b1 != theirs.b1:
            yield "momentum", _momentum(ours.b1), f"{theirs.b1:g}"
        if ours.kind == "rmsprop" and ours.b2 != theirs.b2:
            yield "betas", f"alpha {digits(ours.b2)}", f"{theirs.b2:g}"
    if ours.root and not ours.eps:
        yield (
            "eps_inside",
            f"epsilon {digits(ours.root)} stands under the root of the second moment",
            f"{theirs.eps:g} is added to the root",
        )
    elif ours.root:
        text = f"epsilon {digits(ours.eps)}, and {digits(ours.root)} under the root"
        yield "eps_inside", text, f"{theirs.eps:g} and nothing under it"
    elif ours.eps != theirs.eps:
        yield "eps", f"epsilon {digits(ours.eps)}", f"{theirs.eps:g}"
    if ours.corrected != theirs.corrected:
        yield "bias_correction", "no bias correction of the moments", "are corrected"
    if ours.nesterov != theirs.nesterov:
        names = {True: "Nesterov's", False: "plain"}
        yield "nesterov", f"{names[ours.nesterov]} momentum", f"is {names[theirs.nesterov]}"
    if ours.dampening != theirs.dampening:
        yield "dampening", f"dampening {digits(ours.dampening)}", f"{theirs.dampening:g}"


def _momentum(b1: float) -> str:
    return f"momentum {digits(b1)}" if b1 else "no momentum"


def _dynamics_in_words(dynamics: Dynamics) -> str:
    b1, b2 = digits(dynamics.b1), digits(dynamics.b2)
    eps = digits(dynamics.eps or dynamics.root) + (" under the root" * bool(dynamics.root))
    settings = {
        "sgd": _momentum(dynamics.b1),
        "rmsprop": f"alpha {b2}, {_momentum(dynamics.b1)}, epsilon {eps}",
        "adam": f"betas ({b1}, {b2}), epsilon {eps}",
        "lion": f"betas ({b1}, {b2})",
    }[dynamics.kind]
    return f"{TITLES[dynamics.kind]}'s ({settings})"


def _of_rates(
    ours: np.ndarray, theirs: np.ndarray, moving: Sequence[int], arrays: Arrays
) -> list[Fault]:
    """Differing learning rates, (T, L) each."""
    groups: dict[Fault, list[int]] = {}
    for i in moving:
        fault = _of_rate(ours[:, i], theirs[:, i])
        if fault is not None:
            groups.setdefault(fault, []).append(i)
    return [(fault, text.format(on=arrays.on(where))) for (fault, text), where in groups.items()]


def _of_rate(ours: np.ndarray, theirs: np.ndarray) -> Fault | None:
    """Of one array; `{on}` stands where the arrays are to be named."""
    if same(ours, theirs):
        return None
    if _close(ours, theirs):
        step = int(np.argmax(~np.isclose(ours, theirs, rtol=_SAME, atol=0.0)))
        return "rounded_rate", (
            f"the learning rates are rounded to float32{{on}}: step {step + 1} has "
            f"{ours[step]:.10g}, the reference's {theirs[step]:.10g}"
        )
    is_steady, is_ours_steady = same(theirs, theirs[0]), same(ours, ours[0])
    if is_steady and is_ours_steady:
        text = f"learning rate {digits(ours[0], theirs[0])}{{on}}, the reference's {theirs[0]:.6g}"
        return "learning_rate", text
    factor = float(np.vdot(theirs, ours) / np.vdot(theirs, theirs)) if theirs.any() else 0.0
    if factor and _close(ours, factor * theirs):
        text = f"the learning rate is {digits(factor)} times the reference's at every step{{on}}"
        return "learning_rate", text
    if len(ours) > 2 and not is_ours_steady and not is_steady:
        for fits, words in (
            (_close(ours[1:], theirs[:-1]), "late: step n has the rate of step n - 1"),
            (_close(ours[:-1], theirs[1:]), "early: step n has the rate of step n + 1"),
        ):
            if fits:
                return "schedule", f"the schedule is one step {words}{{on}}"
    step = int(np.argmax(~np.isclose(ours, theirs, rtol=1e-6, atol=0.0)))
    return "schedule", (
        f"another schedule{{on}}: step {step + 1} has the learning rate {digits(ours[step])}, the "
        f"reference's {theirs[step]:.6g}"
    )


def _of_decay(
    ours: Rule, theirs: Rule, moving: Sequence[int], spec: OptimizerSpec, arrays: Arrays
) -> list[Fault]:
    groups: dict[tuple, list[int]] = {}
    decaying = []
    for i in moving:
        wanted = (
            (
                "decoupled" if theirs.shrink[:, i].any() else "l2",
                spec.settings_of(arrays.names[i])[0],
            )
            if theirs.shrink[:, i].any() or theirs.l2[i]
            else ("none", 0.0)
        )
        found = _decay_of(ours, i, spec.steps, wanted[1])
        if found[0] != "none" or wanted[0] != "none":
            decaying.append(i)
        if found[0] != wanted[0] or not same(np.array(found[1]), wanted[1]):
            groups.setdefault((found[0], digits(found[1], wanted[1]), *wanted), []).append(i)
    faults = []
    for (kind, value, wanted_kind, wanted), where in groups.items():
        on = "" if len(where) == len(decaying) else arrays.on(where)
        reference = f"the reference's {wanted:g}" if wanted else "the reference has none there"
        if not on and not wanted:
            reference = "the reference has none"
        fault = "decay_group" if on else "weight_decay"
        if kind == "none":
            text = f"no weight decay{on}, {reference}"
        elif kind == "unscaled":
            text = f"every step takes {value} of the parameter off{on}: the weight decay is not "
            text += f"multiplied by the learning rate, {reference} times the rate"
        elif kind == "grown":
            text = f"every step adds {value} of the parameter to it{on}: the weight decay is added "
            text += f"after the learning rate and its sign, {reference} times the rate, taken off"
        elif kind == "schedule":
            text = f"the weight decay does not follow the learning rate{on}, the reference's does"
        elif wanted_kind not in (kind, "none"):
            fault = "coupled_decay" if kind == "l2" else "decoupled_decay"
            forms = {
                "l2": "is added to the gradient (L2, as torch.optim.Adam's)",
                "decoupled": "is decoupled (as torch.optim.AdamW's)",
            }
            text = f"the weight decay {value} {forms[kind]}{on}, the reference's {wanted:g} "
            text += forms[wanted_kind]
        else:
            text = f"weight decay {value}{on}, {reference}"
        faults.append((fault, text))
    return faults


def _decay_of(rule: Rule, i: int, steps: int, wanted: float) -> tuple[str, float]:
    """The kind of decay of one array and its size."""
    if rule.l2[i]:
        return "l2", float(rule.l2[i])
    shrink, rates = rule.shrink[:steps, i], rule.rates[:steps, i]
    if not shrink.any():
        return "none", 0.0
    is_steady = same(shrink, shrink[0])
    is_scaled = not shrink[rates == 0].any()
    shares = shrink[rates != 0] / rates[rates != 0]
    is_scaled = is_scaled and shares.size > 0 and same(shares, shares[0])
    if is_steady and (not is_scaled or same(shrink, wanted)) and shrink[0] > 0:
        return "unscaled", float(shrink[0])
    if is_steady and shrink[0] < 0 and (not is_scaled or same(-shrink, wanted)):
        return "grown", float(-shrink[0])
    if is_scaled:
        return "decoupled", float(shares[0])
    return "schedule", float("nan")


def _of_clip(ours: Clip | None, theirs: Clip | None) -> list[Fault]:
    if ours is None and theirs is None:
        return []
    if ours is None or theirs is None:
        given = ours or theirs
        assert given is not None
        text = f"gradients are clipped {_clip_in_words(given)}, the reference's are not"
        if ours is None:
            text = f"gradients are not clipped, the reference's are, {_clip_in_words(given)}"
        return [("clip", text)]
    if (ours.kind, ours.slack) == (theirs.kind, theirs.slack) and same(
        np.array(ours.most), theirs.most
    ):
        return []
    text = f"gradients are clipped {_clip_in_words(ours)}, the reference's {_clip_in_words(theirs)}"
    if ours.kind == theirs.kind and same(np.array(ours.most), theirs.most):
        text = (
            f"gradients are clipped to a global norm of {ours.most:g} exactly, PyTorch's "
            f"clip_grad_norm_ adds {CLIP_SLACK:g} to the norm"
        )
        return [("clip_slack", text)]
    return [("clip", text)]


def _clip_in_words(clip: Clip) -> str:
    most = digits(clip.most)
    return {
        "norm": f"to a global norm of {most}",
        "array": f"to a norm of {most}, each array by itself",
        "value": f"to values of {most}",
        "rms": f"to a root mean square of {most}, each array by itself",
    }[clip.kind]


def same(ours: np.ndarray, theirs: Any) -> bool:
    return bool(np.all(np.abs(ours - theirs) <= _SAME * np.abs(theirs)))


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """As float32 has them: a schedule's sums are rounded at the size of its largest rate."""
    return bool(np.allclose(ours, theirs, rtol=1e-6, atol=3e-7 * np.max(np.abs(theirs))))


def digits(value: float, beside: float | None = None) -> str:
    """Short, but not the same as what it is told apart from."""
    short = f"{value:.6g}"
    return short if beside is None or short != f"{beside:.6g}" else f"{value:.12g}"
