"""The changes of a recorded program that give the model's value."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.inspect.stages import Stage
from vit_jax.parity.dissect.arguments import in_digits
from vit_jax.parity.dissect.changes import Knob, changes_of
from vit_jax.parity.dissect.exchanges import (
    exchanges,
    other_operands,
    scaled_sums,
    written_out,
)
from vit_jax.parity.dissect.functions import activations
from vit_jax.parity.dissect.program import Apply, Call, Insert, Program, quiet
from vit_jax.parity.dissect.relations import reorders
from vit_jax.parity.dissect.shared import shared
from vit_jax.parity.dissect.watch import Site, site_in_words
from vit_jax.parity.torch_run import to_numpy
from vit_jax.parity.values import rms

# A trial gives the model's value to this part of the rms: its sums are in another order.
SAME = 1e-11
# Numbers that trials at one place may compute.
_MOST_WORK = 3e9


@dataclasses.dataclass(frozen=True)
class Trial:
    """A changed program.

    Attributes:
      fault, text: see `Diagnosis`; the text of the change alone.
      at: the call that it is about.
      changes, inserts, sources: see `Program.run`.
      is_code: whether the text stands for the call, as code.
      entered: the module that is handed a source, by its path.
      fixed: calls of modules that are right: what these give is changed where it is used.
    """

    fault: str
    text: str
    at: int
    changes: Mapping[int, Apply] = dataclasses.field(default_factory=dict)
    inserts: Mapping[int, Insert] = dataclasses.field(default_factory=dict)
    sources: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    is_code: bool = False
    entered: str | None = None
    fixed: frozenset[int] = frozenset()

    def moved(self, program: Program, outer: Program, slots: Mapping[int, int]) -> "Trial | None":
        """The same in another program that holds the calls of this one.

        Args:
          program, outer: this one, and the other.
          slots: of the other, by those of this one, where it has them.
        """
        places = {(call.site, call.stages[-1]): i for i, call in enumerate(outer.calls)}
        calls = [program.calls[i] for i in (self.at, *(i for i, _ in self.sources))]
        found = [places.get((call.site, call.stages[-1])) for call in calls]
        used = [*self.inserts, *(s for key in self.sources for s in (key[1], self.sources[key]))]
        if None in found or any(slot not in slots for slot in used):
            return None
        inserts = {slots[slot]: insert for slot, insert in self.inserts.items()}
        sources = {
            (places[program.calls[i].site, program.calls[i].stages[-1]], slots[slot]): slots[other]
            for (i, slot), other in self.sources.items()
        }
        at = found[0]
        words = self.text
        for slot in used:
            here, there = slot_name(program, slot), slot_name(outer, slots[slot])
            words = words.replace(here, there, 1)
        for slot in inserts:
            made = outer.made(slot)
            at = at if made is None else made
        changed = {"text": words, "at": at, "inserts": inserts, "sources": sources}
        return dataclasses.replace(self, **changed, fixed=frozenset())


class Search:
    """The changes of a program that give the model's value.

    Args:
      program: the calls of the module where the value is made.
      target: the slot of the value.
      want: the model's value in PyTorch's layout.
      fixed: calls that are known to be right.
    """

    def __init__(self, program: Program, target: int, want: np.ndarray, fixed: set[int]):
        self.program, self.target, self.want, self.fixed = program, target, want, fixed
        self.scale = max(rms(want), rms(to_numpy(program.values[target])), 1e-300)
        last = program.made(target)
        self.calls = [] if last is None else [i for i in range(last + 1) if i not in fixed]
        self._work = 0.0
        self._cost = (
            float(
                sum(program.values[s].numel() for i in self.calls for s in program.calls[i].outputs)
            )
            + 1e4
        )

    def result(self, **changed: Any) -> np.ndarray | None:
        """The value with something changed, see `Program.run`; None where that cannot be."""
        if self._work > _MOST_WORK:
            return None
        self._work += self._cost
        try:
            found = self.program.run(self.target, self.fixed, **changed)
        except Exception:  # PyTorch refuses a change in many ways: then it is none
            return None
        if found is None or tuple(found.shape) != self.want.shape:
            return None
        return to_numpy(found)

    def is_it(self, array: np.ndarray | None) -> bool:
        if array is None:
            return False
        with np.errstate(all="ignore"):
            off = np.max(np.abs(array - self.want), initial=0.0)
        return bool(off <= SAME * self.scale)

    def groups(self, index: int) -> list[tuple[int, ...]]:
        """A call alone, and with all that stand at its line."""
        site = self.program.calls[index].site
        alike = tuple(i for i in self.calls if self.program.calls[i].site.is_alike(site))
        return (
            [(index,)] if len(alike) < 2 else [(index,), alike] if index == alike[0] else [(index,)]
        )

    def run(self) -> Trial | None:
        with quiet():
            for trials in self._kinds():
                for trial in trials():
                    return dataclasses.replace(trial, fixed=frozenset(self.fixed))
        return None

    def _kinds(self) -> Iterator[Callable[[], Iterator[Trial]]]:
        yield from (self.changed, self.moved, self.at_several_places)
        yield from (self.ordered, self.scaled, self.exchanged)

    def changed(self) -> Iterator[Trial]:
        """Other arguments and functions, then other numbers."""
        knobs: list[tuple[int, Knob]] = []
        for index in self.calls:
            call = self.program.calls[index]
            for change in changes_of(call, self.program):
                if isinstance(change, Knob):
                    knobs.append((index, change))
                    continue
                for group in self.groups(index):
                    changes = dict.fromkeys(group, change.apply)
                    if self.is_it(self.result(changes=changes)):
                        yield Trial(change.fault, change.text, index, changes, is_code=True)
        powers = [item for item in knobs if item[1].fault == "rope_base"]
        for index, knob in [*powers, *(item for item in knobs if item not in powers)]:
            for group in self.groups(index):

                def of(number: float, group=group, knob=knob) -> dict[int, Apply]:
                    return dict.fromkeys(group, knob.apply(number))

                number = self.solve(lambda x, of=of: self.result(changes=of(x)), knob.start)
                if number is not None:
                    yield Trial(knob.fault, knob.text(number), index, of(number), is_code=True)

    def moved(self) -> Iterator[Trial]:
        """A function of one tensor before the one that comes before it, or in front of a sum."""
        calls = self.program.calls
        for index in self.calls:
            call = calls[index]
            for slot in dict.fromkeys(call.slots[:2]):
                before = self.program.made(slot)
                if before is None or before not in self.calls:
                    continue
                for text, changes in exchanges(self.program, before, index):
                    if self.is_it(self.result(changes=changes)):
                        names = (call.site.function, calls[before].site.function)
                        yield Trial("order", text.format(*names), index, changes)
            for fault, find in (
                ("gate", other_operands),
                ("order", scaled_sums),
                ("activation", written_out),
            ):
                for text, changes in find(self.program, index):
                    if self.is_it(self.result(changes=changes)):
                        name = calls[index].site.function
                        yield Trial(fault, text.format(name), index, changes)

    def at_several_places(self) -> Iterator[Trial]:
        """A number, or a table, that counts at several places."""
        for found in shared(self.program, self.calls):
            if self.is_it(self.result(changes=found.changes)):
                name = "" if found.slot is None else self.name(found.slot)
                at = next(iter(found.changes))
                yield Trial(found.fault, f"{found.text}{name}", at, found.changes)

    def solve(self, value: Callable[[float], np.ndarray | None], start: float) -> float | None:
        """The number that gives the model's value, by Gauss and Newton from near and far."""
        starts = dict.fromkeys([start, *(start * f for f in (0.1, 10.0, 0.01, 100.0, -1.0)), 0.0])
        base = value(start)
        if base is None:
            return None
        for first in starts:
            x = first
            for _ in range(8):
                here = value(x)
                if here is None or not np.isfinite(here).all():
                    break
                off = here - self.want
                step = 1e-4 * abs(x) or 1e-6
                there = value(x + step)
                if there is None:
                    break
                if np.max(np.abs(off), initial=0.0) <= SAME * self.scale:
                    if self.is_it(there):  # as would any other, of what saturates
                        break
                    nice = float(f"{x:.4g}")
                    return nice if self.is_it(value(nice)) else x
                slope = (there - here) / step
                square = float(np.vdot(slope, slope))
                if not np.isfinite(square) or square <= (1e-14 * self.scale) ** 2:
                    break
                move = float(np.vdot(slope, off)) / square
                if abs(move) <= 1e-15 * abs(x):
                    break
                x -= move
        return None

    def slots(self) -> list[int]:
        """The floats that come up, the last first, and those that come in."""
        made = [s for i in reversed(self.calls) for s in self.program.calls[i].outputs]
        used = [s for i in self.calls for s in self.program.calls[i].slots]
        every = dict.fromkeys([*made, *used])
        return [s for s in every if self.program.values[s].is_floating_point()]

    def at(self, slot: int) -> int:
        made = self.program.made(slot)
        if made is not None and made in self.calls:
            return made
        return next(i for i in self.calls if slot in self.program.calls[i].slots)

    def name(self, slot: int) -> str:
        """A slot in words."""
        return slot_name(self.program, slot)

    def ordered(self) -> Iterator[Trial]:
        """Values in another order, also of all that go through one line, as of queries and keys."""
        lines: dict[Site, list[int]] = collections.defaultdict(list)
        for index in self.calls:
            call = self.program.calls[index]
            if call.slots:
                lines[dataclasses.replace(call.site, number=0)].append(call.slots[0])
        pairs = [tuple(dict.fromkeys(slots)) for slots in lines.values() if 2 <= len(slots) <= 4]
        groups = [(slot,) for slot in self.slots()] + [
            p for p in dict.fromkeys(pairs) if len(p) > 1
        ]
        for group in groups:
            shapes = {tuple(self.program.values[slot].shape) for slot in group}
            if len(shapes) > 1:
                continue
            for fault, text, apply in reorders(next(iter(shapes))):
                inserts = dict.fromkeys(group, apply)
                if self.is_it(self.result(inserts=inserts)):
                    fault = "rope_layout" if len(group) > 1 and fault == "reordered" else fault
                    words = " and ".join(dict.fromkeys(map(self.name, group)))
                    link = " with " if text.startswith("its ") else " "
                    yield Trial(fault, f"{words}{link}{text}", self.at(group[0]), inserts=inserts)
            if len(group) > 1:
                continue
            for axis in range(len(next(iter(shapes)))):
                centre = {group[0]: lambda x, axis=axis: x - x.mean(axis, keepdim=True)}
                if self.is_it(self.result(inserts=centre)):
                    text = f"{self.name(group[0])} minus its mean along axis {axis}"
                    yield Trial("extra_term", text, self.at(group[0]), inserts=centre)
            for name, function in activations().items():
                if self.is_it(self.result(inserts={group[0]: function})):
                    text = f"{self.name(group[0])} through {name}"
                    yield Trial("activation", text, self.at(group[0]), inserts={group[0]: function})

    def scaled(self) -> Iterator[Trial]:
        """Values times a number, or plus one."""
        for slot in self.slots():
            for fault, sign, start, apply in (
                ("factor", "times", 1.0, lambda number: lambda x: x * number),
                ("offset", "plus", 0.0, lambda number: lambda x: x + number),
            ):
                number = self.solve(
                    lambda x, slot=slot, apply=apply: self.result(inserts={slot: apply(x)}), start
                )
                if number is not None and abs(number - start) > 1e-12:
                    text = f"{self.name(slot)} {sign} {in_digits(number)}"
                    yield Trial(fault, text, self.at(slot), inserts={slot: apply(number)})

    def exchanged(self) -> Iterator[Trial]:
        """Another value in the place of an argument, or added to what comes out."""
        values = self.program.values
        for index in self.calls:
            call = self.program.calls[index]
            before = [
                s
                for s, value in enumerate(values)
                if value.is_floating_point() and ((m := self.program.made(s)) is None or m < index)
            ]
            for slot in dict.fromkeys(call.slots):
                for other in before:
                    if other == slot or values[other].shape != values[slot].shape:
                        continue
                    sources = {(index, slot): other}
                    if self.is_it(self.result(sources=sources)):
                        name = call.site.function
                        of, instead = two_names(self.program, other, slot)
                        text = f"{name} of {of} and not of {instead}"
                        yield Trial("another_input", text, index, sources=sources)
            for slot in call.outputs:
                for other in before:
                    if (
                        values[other].shape != values[slot].shape
                        or not values[slot].is_floating_point()
                    ):
                        continue
                    add = _added(values[other])
                    if self.is_it(self.result(inserts={slot: add})):
                        fault = "doubled_term" if other in call.slots else "extra_term"
                        text = f"{self.name(slot)} plus {self.name(other)}"
                        yield Trial(fault, text, index, inserts={slot: add})


def _added(term: Any) -> Insert:
    return lambda x: x + term


def handed(program: Program, target: int, got: np.ndarray, stage: Stage) -> Trial | None:
    """Another value that is at hand in the place of one that is handed to a module."""
    entered = f"{stage.path}{stage.call}"
    users = [
        i
        for i, call in enumerate(program.calls)
        if target in call.slots and entered in call.stages and stage.before
    ]
    if not users:
        return None
    for slot, value in enumerate(program.values):
        if slot == target or not value.is_floating_point() or tuple(value.shape) != got.shape:
            continue
        made = program.made(slot)
        if made is not None and made >= users[0]:
            continue
        if np.max(np.abs(to_numpy(value) - got), initial=0.0) <= SAME * max(rms(got), 1e-300):
            of, instead = two_names(program, slot, target)
            text = f"{stage.path} of {of}, not of {instead}"
            sources = {(users[0], target): slot}
            return Trial("another_input", text, users[0], sources=sources, entered=stage.path)
    return None


def slot_name(program: Program, slot: int) -> str:
    """A slot in words: by the module that gives it, or the function."""
    made = program.made(slot)
    if made is None:
        user = next(call for call in program.calls if slot in call.slots)
        inside = _inside(program, user)
        return f"what {inside[0] if inside else user.site.function} is given"
    call = program.calls[made]
    inside = _inside(program, call)
    if not inside:
        return f"the output of {call.site.function}"
    users = [other.stages for other in program.calls if slot in other.slots]
    left = [
        path
        for path, stage in zip(inside, call.stages[-len(inside) :], strict=True)
        if not users or any(stage not in stages for stages in users)
    ]
    if left:
        return f"the output of {left[0]}"
    return f"the output of {call.site.function} in {call.path}"


def _inside(program: Program, call: Call) -> list[str]:
    """The modules of a program that a call is in, the outermost first."""
    stages = call.stages[call.stages.index(program.frame) + 1 :]
    return [stage.partition("#")[0] for stage in stages]


def two_names(program: Program, one: int, other: int) -> tuple[str, str]:
    """Two slots in words, with their places in the code where the names are the same."""
    names = slot_name(program, one), slot_name(program, other)
    if names[0] != names[1]:
        return names
    makers = [program.made(slot) for slot in (one, other)]
    sites = ["" if m is None else site_in_words(program.calls[m].site) for m in makers]
    if sites[0] != sites[1]:
        return names[0] + sites[0], names[1] + sites[1]
    return f"{names[0]} in another call", names[1]
