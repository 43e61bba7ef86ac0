"""A comparison in one precision: its rows, and the place of its first difference."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.inspect.stages import BEFORE, path_of, split_stage
from vit_jax.parity.forward import (
    TIMES,
    Forward,
    first_bad,
    is_output,
    limit_of,
    make_row,
    place_of,
    typical_noise,
    weights_rows,
)
from vit_jax.parity.layouts import error_of, without_unit_axes
from vit_jax.parity.result import NARROW, Row, Section
from vit_jax.parity.sides import (
    FunctionSide,
    Gradients,
    ModelSide,
    Side,
    as_model_images,
)
from vit_jax.parity.values import Expected, OptimizerSpec, Reference, Whole, rms

_SECTIONS = get_args(Section)
# Of the rms: by a value that is rounded over the kink of a ReLU a gradient moved so far, divided by
# `TIMES` (a small ResNet: 0.18); JAX sums some gradients up in the narrow type, too.
KINK = 0.03
# Of the largest: a gradient that is zero but for float64's rounding, such as a key bias's.
_ZERO = 1e-9


def in_order(rows: list[Row]) -> list[Row]:
    """As a fault comes to light; the backward sections from the loss on."""
    indexed = list(enumerate(rows))

    def key(item: tuple[int, Row]) -> tuple[bool, int, int]:
        index, row = item
        is_backward = row.section in ("backward", "gradients")
        return (
            row.precision != "float64",
            _SECTIONS.index(row.section),
            -index if is_backward else index,
        )

    return [row for _, row in sorted(indexed, key=key)]


def module_of(name: str) -> str:
    """The module of an array by its name; the array's own name where that is the model."""
    return name.rpartition(".")[0] or name


def _is_input(name: str) -> bool:
    return name == "images" or name.startswith("input ")


def _calls(stages: Iterable[str]) -> collections.Counter[str]:
    """How often each module was left."""
    parts = map(split_stage, stages)
    return collections.Counter(part.path for part in parts if not part.part and not part.before)


class Comparison:
    """One precision of a comparison."""

    def __init__(
        self,
        side: Side,
        reference: Reference,
        precision: str,
        grad: bool,
        optimizer: OptimizerSpec | None,
        transformation: optax.GradientTransformation | None,
    ):
        self.side, self.reference, self.precision = side, reference, precision
        self.grad = grad and reference.loss is not None
        self.optimizer = optimizer if reference.losses is not None else None
        self.transformation = transformation
        self.forward = Forward(reference, side)
        # What trials compute with, in the place of the model's own arrays.
        self.scene = {n: jnp.asarray(a, side.dtype) for n, a in reference.weights.items()}
        self.rows: list[Row] = []
        self.notes: list[str] = []
        gradients = {
            "backward": reference.stage_gradients,
            "gradients": reference.gradients,
        }
        self._typical = {
            section: typical_noise(values.values()) for section, values in gradients.items()
        }
        self._largest: dict[str, float] = {}
        if precision in NARROW:
            self._typical = dict.fromkeys(gradients, KINK)
            self._largest = {
                section: max((value.rms for value in values.values()), default=0.0)
                for section, values in gradients.items()
            }
        self.trained: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
        self.statistics: dict[str, np.ndarray] = {}
        self.solution: Any = None  # see `optimizer_faults`
        if grad and reference.loss is None:
            self.notes.append("the reference holds no gradients")

    @property
    def first(self) -> Row | None:
        return next((row for row in in_order(self.rows) if row.verdict != "noise"), None)

    def compare(self) -> None:
        is_wide = self.precision == "float64"
        if is_wide:
            rows, notes = weights_rows(self.side.weights(self.reference.weights), self.reference)
            self.rows += rows
            self.notes += notes
        self.points = self.forward.run(self.precision)
        forward = [point.row for point in self.points if point.row is not None]
        if not any(row.name == "" for row in forward):
            raise ValueError("the reference has no output to compare")
        if isinstance(self.side, ModelSide) and not self.side.is_plain:
            outputs = self.side.as_it_stands(as_model_images(self.reference, self.side.dtype))
            for part, output in outputs.items():
                row = self.forward.row(part, np.asarray(output, np.float64), self.precision)
                forward += [row] if row is not None else []
        self.rows += forward
        self._note_unmatched()
        self._see_answer()
        if any(row.verdict != "noise" and not np.isfinite(row.max_abs) for row in forward):
            self.notes.append(
                f"gradients and training were not compared in {self.precision}: the values have "
                "another shape or are not finite"
            )
            return
        if self.reference.statistics:
            self._compare_statistics()
        if self.grad:
            self.gradients = self._differentiate()
            self.rows += self.gradient_rows(self.gradients)
        if self.optimizer is not None:
            self.trained = self.side.train(self.reference, self.transformation)
            self.rows += self.training_rows(*self.trained)

    def _compare_statistics(self) -> None:
        if isinstance(self.side, ModelSide):
            images = as_model_images(self.reference, self.side.dtype)
            self.statistics = self.side.statistics(images)
        for name, expected in self.reference.statistics.items():
            if name in self.statistics:
                self.rows.append(self._row("statistics", name, self.statistics[name], expected))
        missing = [name for name in self.reference.statistics if name not in self.statistics]
        if missing and self.precision == "float64":
            self.notes.append(
                f"running statistics that the reference alone has: {', '.join(missing[:6])}"
                + (f" and {len(missing) - 6} more" if missing[6:] else "")
            )

    def _note_unmatched(self) -> None:
        ran = {point.stage for point in self.points if point.row is not None}
        alone = [s for s in self.reference.later if s not in ran and not s.startswith(BEFORE)]
        if alone:
            raise ValueError(
                "by `names` several modules are one, and the model calls it less often: "
                + ", ".join(f"{self.reference.later[s]} is {path_of(s)} too" for s in alone)
            )
        if self.precision == "float64":
            self._note_calls(ran)
        holders = {name.rpartition(".")[0] for name in self.reference.weights}
        modules = {path_of(s) for s in self.forward.expected if s in holders}
        matched = {path_of(s) for s in ran if not s.startswith(BEFORE)}
        missing = sorted(modules - matched)
        outputs = {stage for stage in self.forward.expected if is_output(stage)}
        for whose, names in (
            ("the reference", outputs - ran),
            ("the model", {p.stage for p in self.points if is_output(p.stage)} - ran),
        ):
            if names and self.precision == "float64":
                self.notes.append(f"outputs that {whose} alone has: {', '.join(sorted(names))}")
        if missing and self.precision == "float64":
            more = f" and {len(missing) - 6} more" if missing[6:] else ""
            self.notes.append(
                "modules of the reference without a value of the model to compare: "
                f"{', '.join(missing[:6])}{more}"
            )

    def _note_calls(self, ran: set[str]) -> None:
        """Of modules that one side calls more often, the calls that are compared with nothing."""
        paths = {path_of(stage) for stage in ran if not stage.startswith(BEFORE)}
        for whose, stages in (
            ("the reference", set(self.forward.expected)),
            ("the model", {point.stage for point in self.points}),
        ):
            further = (s for s in stages - ran if not s.startswith(BEFORE) and not is_output(s))
            calls = sorted(s for s in further if split_stage(s).call and path_of(s) in paths)
            if calls:
                self.notes.append(f"further calls that {whose} alone has: {', '.join(calls)}")

    def _see_answer(self) -> None:
        """Notes another shape; puts the loss's direction in the layout of the model's answer."""
        answer = next(point for point in self.points if point.stage == "")
        if answer.order is None:
            wanted = tuple(self.forward.expected[""][0].shape)
            self.notes.append(f"the model's output is {answer.shape}, the reference's {wanted}")
        elif self.reference.direction is not None:
            direction = self.reference.direction.transpose(np.argsort(answer.order))
            self.reference = dataclasses.replace(self.reference, direction=direction)

    def _differentiate(self) -> Gradients:
        # Of a module that one side calls more often, each call has a part of the gradient.
        ours = _calls(point.stage for point in self.points)
        theirs = _calls(self.forward.expected)
        stages = [
            point.stage
            for point in self.points
            if point.row is not None
            and point.stage in self.reference.stage_gradients
            and path_of(point.stage)
            and ours[path := path_of(point.stage)] == theirs[path]
        ]
        found = self.side.gradients(self.reference, stages=stages)
        if isinstance(self.side, FunctionSide) or self.side.is_plain:
            return found
        # Those of the model as it stands.
        return dataclasses.replace(self.side.gradients(self.reference), stages=found.stages)

    def gradient_rows(self, gradients: Gradients) -> list[Row]:
        """Rows of the loss, of stages and the image, and of parameters."""
        reference, rows = self.reference, []
        assert reference.loss is not None
        rows.append(self._row("losses", "loss", np.asarray(gradients.loss), reference.loss))
        modules = {point.stage: point.event and point.event.module for point in self.points}
        if reference.image_gradient is not None and gradients.image is not None:
            rows.append(self._row("backward", "images", gradients.image, reference.image_gradient))
        for name, expected in reference.input_gradients.items():
            if name in gradients.inputs:
                row = self._row("backward", f"input {name}", gradients.inputs[name], expected)
                rows.append(row)
        for stage, value in gradients.stages.items():
            expected = reference.stage_gradients[stage]
            error = error_of(value, expected, modules.get(stage))
            if error is not None:
                rows.append(self._row_of("backward", stage, error, expected))
        for name, expected in reference.gradients.items():
            if name in gradients.parameters:
                rows.append(self._row("gradients", name, gradients.parameters[name], expected))
        for name in sorted(reference.untrained & gradients.parameters.keys()):
            zero = Whole(np.zeros_like(gradients.parameters[name]), 0.0)
            rows.append(self._row("gradients", name, gradients.parameters[name], zero))
        return rows

    def training_rows(self, losses: np.ndarray, trained: Mapping[str, np.ndarray]) -> list[Row]:
        """Rows of the losses over the steps, and of the parameters after them."""
        reference = self.reference
        assert reference.losses is not None
        rows = self._loss_rows(losses, reference.losses)
        for name, expected in reference.trained.items():
            if name in trained and name not in reference.untrained:
                rows.append(
                    self._row("trained", name, trained[name], expected, self.amplified(name))
                )
        return rows

    def _loss_rows(self, losses: np.ndarray, expected: Expected) -> list[Row]:
        """One a step where the reference has them all, with the noise of the worst."""
        if not isinstance(expected, Whole) or losses.shape != expected.shape:
            return [self._row("losses", "losses over the steps", losses, expected)]
        return [
            self._row(
                "losses",
                f"loss after {step} steps",
                loss,
                Whole(want, expected.noise, expected.slack),
            )
            for step, (loss, want) in enumerate(zip(losses, expected.array, strict=True))
        ]

    def _row(self, section, name, got, expected, extra=0.0) -> Row:
        got = without_unit_axes(np.asarray(got, np.float64), tuple(expected.shape))
        error = expected.error(got) if got.shape == tuple(expected.shape) else np.inf
        return self._row_of(section, name, error, expected, extra)

    def _row_of(
        self, section: Section, name: str, error: float, expected: Expected, extra: float = 0.0
    ) -> Row:
        return make_row(
            section,
            self.precision,
            name,
            error,
            expected,
            extra=extra + self._remainder(section, name, expected),
            typical=self._typical.get(section, 0.0),
        )

    def _remainder(self, section: Section, name: str, expected: Expected) -> float:
        """In a narrow type, the rounding of what cancels in a value, which is small for it."""
        if self.precision not in NARROW:
            return 0.0
        if name == "loss":
            answer = self.forward.expected[""][0]
            return limit_of(answer, self.precision) / float(np.sqrt(np.prod(answer.shape)))
        largest = self._largest.get(section, 0.0)
        if expected.rms > _ZERO * largest:
            return 0.0
        return TIMES * self._typical[section] * largest

    def amplified(self, name: str) -> float:
        """How far AdamW may carry a parameter whose exact gradient is zero.

        What arrives there is rounding, about 1e-16 of the gradients' size or what it is in the
        reference, and AdamW divides it by its own size plus epsilon: the key biases of a softmax
        attention move so, and the biases before a batch normalisation.
        """
        optimizer = self.optimizer
        if optimizer is None or not np.isfinite(optimizer.reach) or not self.grad:
            return 0.0
        every = self.gradients.parameters
        if name not in every:  # running statistics follow the parameters before them
            return max(map(self.amplified, every), default=0.0)
        size = np.sqrt(np.mean([rms(array) ** 2 for array in every.values()]))
        ulp = float(jnp.finfo(self.precision).eps)
        rounding = 10 * ulp * size
        if name in self.reference.gradients:
            rounding = max(rounding, limit_of(self.reference.gradients[name], self.precision))
        own = np.abs(every[name].astype(np.float64))
        return float(optimizer.reach * np.max(np.minimum(1.0, rounding / (own + optimizer.eps))))

    def place(self) -> tuple[str, str]:
        """The module where the fault stands, and the place in words."""
        first = self.first
        assert first is not None
        if first.section == "weights":
            return module_of(first.name), f"in the array {first.name}"
        if first.section == "forward":
            bad = first_bad(self.points)
            if bad is None:  # as it stands, with scans or rematerialisation
                return "", "in the model with its scan or rematerialisation, not in its plain form"
            return place_of(self.points, bad)
        if first.section == "statistics":
            return module_of(first.name), "in the update of its running statistics"
        is_loss_wrong = any(row.name == "loss" and row.verdict != "noise" for row in self.rows)
        if first.section in ("backward", "gradients") and not is_loss_wrong:
            return self._backward_place(first)
        if not is_loss_wrong and (first.section == "trained" or first.name != "loss"):
            return "optimizer", "in the update of the parameters: the gradients are right"
        return "loss", "in the loss: the outputs are right"

    def _backward_place(self, first: Row) -> tuple[str, str]:
        backward = [row for row in self.rows if row.section == "backward"]
        bad = {row.name for row in backward if row.verdict != "noise"}
        good = {row.name for row in backward} - bad
        for row in self.rows:
            # Its own gradient is wrong, and what comes to it from the loss is right.
            module = module_of(row.name)
            if row.section == "gradients" and row.verdict != "noise" and module in good:
                return module, f"in the derivative by {row.name}"
        if not bad:
            return module_of(first.name), f"in the derivative by {first.name}"
        order = [row.name for row in backward if not _is_input(row.name)]
        if _is_input(first.name):
            until = order[0] if order else "the output"
            return "", f"in the derivative between the {first.name} and {until}"
        until = next((name for name in order[order.index(first.name) + 1 :] if name in good), "")
        pairs = zip(first.name.split("."), until.split("."), strict=False)
        parent = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return ".".join(part for part, _ in parent), (
            f"in the derivative between {first.name} and {until or 'the output'}"
        )
