"""A run of the model beside the reference as it has been changed."""

import copy

import numpy as np

from vit_jax.inspect.stages import BEFORE, split_stage
from vit_jax.parity.dissect.everywhere import everywhere, scopes
from vit_jax.parity.dissect.program import Everywhere, Program
from vit_jax.parity.dissect.search import Search, Trial, handed
from vit_jax.parity.forward import Forward, first_bad, in_words
from vit_jax.parity.layouts import in_shape, layout_of_output
from vit_jax.parity.run import Comparison
from vit_jax.parity.sides import ModelSide
from vit_jax.parity.torch_run import to_numpy
from vit_jax.parity.torch_trace import rerun
from vit_jax.parity.values import Reference, Whole


class Case:
    """A run of the model in float64, and the reference as it has been changed.

    Args:
      run: of the comparison.
    """

    def __init__(self, run: Comparison):
        self.run, self.live = run, run.reference.live
        side = run.side
        self.ours = run.forward.trial() if isinstance(side, ModelSide) else run.points
        self.applied: list[Everywhere] = []
        self.program: Program | None = None
        self.see(run.reference)

    def see(self, reference: Reference) -> None:
        """Compares with another reference."""
        self.reference = reference
        self.forward = Forward(reference, self.run.side)
        self.points = self.forward.against(self.ours)
        self.bad = first_bad(self.points)

    @property
    def reach(self) -> int:
        """How far the values agree."""
        return len(self.points) if self.bad is None else self.bad

    def wrong_gradients(self) -> list[str]:
        """What has another gradient, nearest to the loss first."""
        if not self.run.grad or not hasattr(self.run, "gradients"):
            return []
        judged = copy.copy(self.run)
        judged.reference = self.reference
        rows = judged.gradient_rows(self.run.gradients)
        return [row.name for row in reversed(rows) if row.verdict != "noise"]

    def outcome(self) -> tuple[bool, str]:
        """Whether nothing departs any more, and that in words."""
        if self.bad is not None:
            up_to = in_words(self.points[self.bad].stage)
            return False, f"with this changed the model agrees up to {up_to}"
        if not self.run.grad:
            return True, "with this changed every value agrees"
        if wrong := self.wrong_gradients():
            return (
                False,
                f"with this changed every value agrees, but not the gradient of {wrong[0]}",
            )
        return True, "with this changed all values and gradients agree"

    # ------------------------------------------------------------------------ the first bad value

    def layout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The first bad value, the model's and the reference's, in PyTorch's layout."""
        assert self.bad is not None
        point = self.points[self.bad]
        expected = self.forward.expected[point.stage][0]
        if not isinstance(expected, Whole) or not np.isfinite(point.value).all():
            return None
        value = np.asarray(point.value, np.float64)
        if split_stage(point.stage).path or point.stage.startswith(BEFORE):
            module = None if point.event is None else point.event.module
            ways = list(in_shape(value, expected.shape, module))
        else:
            order = layout_of_output(value, expected)
            ways = [] if order is None else [value.transpose(order)]
        if not ways:
            return None
        # Of tokens as many as channels the other order is no nearer for being wrong.
        way = ways[0] if value.ndim == 3 else min(ways, key=expected.error)
        return way, expected.array

    def frames(self) -> list[str]:
        """The calls in which the first bad value may be made, the innermost first."""
        assert self.bad is not None
        point = self.points[self.bad]
        if point.event is not None:
            path = point.event.frame.path
        else:
            parts = split_stage(point.stage)
            path = parts.path.rpartition(".")[0] if parts.before else parts.path
        found = [path]
        while path:
            path = path.rpartition(".")[0]
            found.append(path)
        return found[:2] + ([""] if len(found) > 2 else [])

    def search(self) -> tuple[Trial, Program] | None:
        """What the reference would have to compute to give the first bad value."""
        arrays = self.layout()
        if arrays is None or self.live is None:
            return None
        good = {
            p.stage
            for p in self.points[: self.bad]
            if p.is_good and not p.stage.startswith(BEFORE) and not split_stage(p.stage).part
        }
        for frame in self.frames():
            program = self.live.record(frame, self.applied)
            # Values that are equal by chance, as those of equal tokens before and after attention.
            targets = [] if program is None else list(program.holding(arrays[1]))
            if program is None or not targets:
                continue
            fixed = program.settled(good)
            assert self.bad is not None
            stage = split_stage(self.points[self.bad].stage)
            for target in dict.fromkeys((targets[0], targets[-1])):
                trial = Search(program, target, arrays[0], fixed).run() or handed(
                    program, target, arrays[0], stage
                )
                if trial is not None:
                    return self.climbed(trial, program)
            self.program = self.program or program
        return None

    def climbed(self, trial: Trial, program: Program) -> tuple[Trial, Program]:
        """The trial in the code that makes what a module is given, where that is wrong."""
        while True:
            wrong = [*trial.inserts, *(slot for _, slot in trial.sources)]
            given = [s for s in wrong if program.made(s) is None and not program.is_parameter(s)]
            if not given or len(given) < len(wrong) or not program.frame:
                return trial, program
            if given == [self.entry(program)]:
                return trial, program
            parent, outer = program.frame, None
            while parent and outer is None:
                parent = parent.rpartition(".")[0]
                outer = self.live.record(parent, self.applied)
            if outer is None:
                return trial, program
            found = {s: outer.find(to_numpy(program.values[s])) for s in program.floats()}
            slots = {slot: other for slot, other in found.items() if other is not None}
            moved = trial.moved(program, outer, slots)
            if moved is None:
                return trial, program
            trial, program = moved, outer

    def entry(self, program: Program) -> int | None:
        """The slot of what the module of a program is given, where that is known to be right."""
        stage = f"{BEFORE}{program.frame}"
        if not any(point.stage == stage and point.is_good for point in self.points[: self.bad]):
            return None
        expected = self.forward.expected[stage][0]
        return program.find(expected.array) if isinstance(expected, Whole) else None

    def apply(self, trial: Trial, program: Program) -> None:
        """Changes the reference wherever that makes it agree with the model furthest."""
        best, before, was = None, self.reach, self.reference
        calls = [*trial.changes, *(i for i, _ in trial.sources)] or [trial.at]
        if len(trial.inserts) > 1:
            calls = [made for slot in trial.inserts if (made := program.made(slot)) is not None]
        for scope in scopes(program, calls):
            changes = [*self.applied, *everywhere(program, trial, scope)]
            try:
                self.see(rerun(self.run.reference, changes))
            except Exception:  # elsewhere the change cannot be made
                continue
            is_whole = self.bad is None and not self.wrong_gradients()
            if best is None or (is_whole, self.reach) > best[0]:
                best = ((is_whole, self.reach), changes, self.reference)
            if is_whole:
                break
        if best is None or best[0][1] <= before:
            self.see(was)
            return
        self.applied = best[1]
        self.see(best[2])
