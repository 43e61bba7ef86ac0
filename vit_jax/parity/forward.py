"""The forward half of a comparison: which values meet, and the first that does not agree."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.inspect.recorder import Event, Frame, Replace, Stop
from vit_jax.inspect.stages import BEFORE, split_stage
from vit_jax.parity.layouts import error_of, layout_of_output, without_unit_axes
from vit_jax.parity.result import Row, Section, Verdict
from vit_jax.parity.sides import (
    FunctionSide,
    ModelSide,
    Side,
    as_model_images,
    is_dropout,
)
from vit_jax.parity.values import Expected, Reference, Whole

# A correct port differs by the order of its sums: a few 1e-14 of the rms were measured over all
# designs, 3e-13 after ten optimizer steps.
_FLOAT64 = 1e-12
# PyTorch's own distance between float32 and float64, brought to float64 by the ratio of their
# epsilons, times a hundred: room where a value is all rounding, as gradients of key biases are.
_NOISE_TO_FLOAT64 = 100 * float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
# A narrow type may err so many times as much as PyTorch's own run in it did; a clean port did up to
# 4.2 times in bfloat16.
TIMES = 10.0
# The least noise of a value, in epsilons of its type times the rms: of the largest difference, and
# of the rms of differences, see `values.Averaged`.
_LEAST = {"float32": 1.0, "bfloat16": 0.25, "float16": 0.25}
_DRIFT = 1000.0


def limit_of(expected: Expected, precision: str, typical: float = 0.0) -> float:
    """Up to where a difference is noise; `typical` is the noise over the rms of others like it."""
    if precision == "float64":
        limit = max(_FLOAT64 * expected.rms, _NOISE_TO_FLOAT64 * expected.noise) + expected.slack
    else:
        typical = max(typical, _LEAST[precision] * float(jax.numpy.finfo(precision).eps))
        limit = TIMES * max(expected.noise, typical * expected.rms)
    return max(limit, float(np.finfo(np.float64).tiny))


def make_row(
    section: Section,
    precision: str,
    name: str,
    error: float,
    expected: Expected,
    *,
    extra: float = 0.0,
    typical: float = 0.0,
) -> Row:
    """A row with its verdict; `extra` is added to the limit, `typical` is that of `limit_of`."""
    limit = limit_of(expected, precision, typical) + extra
    verdict: Verdict = "noise" if error <= limit else "departs"
    if verdict == "departs" and error <= _DRIFT * limit:
        verdict = "drift"
    scale = expected.rms or float(np.finfo(np.float64).tiny)
    return Row(section, precision, name, error, error / scale, expected.noise, limit, verdict)


@dataclasses.dataclass(frozen=True)
class Point:
    """A value that the model came to; `row` where the reference has one for it.

    Attributes:
      value: of a trial; of `Forward.run` its type alone.
      shape: of the value.
      order: of the model's answer, see `Forward.answer_order`.
    """

    stage: str
    value: np.ndarray
    event: Event | None
    row: Row | None
    shape: tuple[int, ...]
    order: tuple[int, ...] | None

    @property
    def is_good(self) -> bool:
        return self.row is not None and self.row.verdict == "noise"

    @property
    def is_bad(self) -> bool:
        return self.row is not None and self.row.verdict != "noise"


class Forward:
    """The values of a reference by the stages of a model.

    Args:
      reference: what is compared with.
      side: whose stages they are.
    """

    def __init__(self, reference: Reference, side: Side):
        self.reference, self.side = reference, side
        self.expected: dict[str, list[Expected]] = {}
        for stage, value in reference.stages.items():
            parts = split_stage(stage)
            path = side.torch_stages.get(parts.path, parts.path)
            name = f"{parts.before}{path}{parts.call}{parts.part}"
            self.expected.setdefault(name, []).append(value)
        # In eval mode a dropout hands its input on: where it stands is not a difference. Files have
        # one, after the positions, as a stage.
        self._drops = not any(stage.startswith(BEFORE) for stage in self.expected)

    def row(self, stage: str, value: np.ndarray, precision: str, module=None) -> Row | None:
        """The comparison of one value; None where there is nothing to compare it with."""
        rows = []
        for expected in self.expected.get(stage, ()):
            error = self._error(stage, value, expected, module)
            if error is None:
                if stage and value.size == int(np.prod(expected.shape)):
                    continue  # other axes, such as heads apart: another form, no fault
                error = np.inf
            rows.append(make_row("forward", precision, stage, error, expected))
        return max(rows, key=lambda row: row.max_abs / row.limit, default=None)

    def _error(self, stage: str, value: np.ndarray, expected: Expected, module) -> float | None:
        """The difference; None where the shapes do not fit."""
        if not is_output(stage):
            return error_of(value, expected, module)
        order = layout_of_output(value, expected)
        return None if order is None else expected.error(value.transpose(order))

    def answer_order(self, array: np.ndarray) -> tuple[int, ...] | None:
        """The order of axes in which the model's answer is the reference's; None: another shape."""
        return layout_of_output(array, self.expected[""][0])

    def agrees(self, point: Point, array: np.ndarray) -> bool:
        """Whether an array in the place of a point's value is the reference's, in float64."""
        module = None if point.event is None else point.event.module
        row = self.row(point.stage, array, "float64", module)
        return row is not None and row.verdict == "noise"

    def run(self, precision: str) -> list[Point]:
        """Runs the model, compiled, and compares all it comes to, in its order.

        The events' frames hold names and modules, no values.
        """
        images = as_model_images(self.reference, self.side.dtype)
        side = self.side
        if isinstance(side, FunctionSide):
            return self._run_function(side, images, precision)
        traced, events = traced_values(side, images)
        if side.see(traced.jaxpr):
            traced, events = traced_values(side, images)
        arrays = traced.lower().compile()(images)
        points = []
        for event, array in zip(events, arrays, strict=True):
            point = self._point(event, np.asarray(array), precision)
            # Of large models the values would take gigabytes.
            points.append(dataclasses.replace(point, value=point.value.ravel()[:0].copy()))
        return points

    def trial(
        self,
        replace: Replace | None = None,
        *,
        keyless: bool = False,
        to_first_bad: bool = False,
    ) -> list[Point]:
        """Runs the model in float64 operation by operation, with something changed in it.

        Args:
          replace, keyless: see `Recorder`.
          to_first_bad: stop at the first value that departs.
        """
        side = self.side
        assert isinstance(side, ModelSide)
        points: list[Point] = []

        def observe(event: Event, value: jax.Array) -> None:
            # As it is now: calls to come are no part of it.
            frame = dataclasses.replace(event.frame, children=list(event.frame.children))
            event = dataclasses.replace(event, frame=frame)
            points.append(self._point(event, np.asarray(value), "float64"))
            if to_first_bad and points[-1].is_bad:
                raise Stop

        images = as_model_images(self.reference, side.dtype)
        with contextlib.suppress(Stop):
            side.forward(images, observe, replace, keyless=keyless)
        return points

    def against(self, points: Iterable[Point]) -> list[Point]:
        """The values of another run of the model, compared with this reference."""
        return [
            self._compared(p.stage, p.value, "float64", None)
            if p.event is None
            else self._point(p.event, p.value, "float64")
            for p in points
        ]

    def _point(self, event: Event, array: np.ndarray, precision: str) -> Point:
        is_compared = self._drops or not is_dropout(event.module)
        return self._compared(event.stage, array, precision, event, is_compared)

    def _compared(
        self, stage: str, array: np.ndarray, precision: str, event: Event | None, is_compared=True
    ) -> Point:
        wide = array.astype(np.float64)
        module = None if event is None else event.module
        row = self.row(stage, wide, precision, module) if is_compared else None
        order = self.answer_order(wide) if stage == "" and "" in self.expected else None
        return Point(stage, array, event, row, array.shape, order)

    def _run_function(self, side: FunctionSide, images: jax.Array, precision: str) -> list[Point]:
        stages = side.stages(images)
        known = [stage for stage in self.expected if stage in stages]
        points = []
        for stage in (*known, *(stage for stage in stages if stage not in self.expected)):
            points.append(self._compared(stage, np.asarray(stages[stage]), precision, None))
        return points

    def skipped(self, points: list[Point], good: int, bad: int) -> list[str]:
        """Modules with arrays that the reference ran between two points and the model did not."""
        order = list(self.expected)
        ran = {point.stage for point in points}
        low = order.index(points[good].stage) if good >= 0 else -1
        known = points[bad].stage in self.expected
        high = order.index(points[bad].stage) if known else len(order)
        holders = {name.rpartition(".")[0] for name in self.reference.weights}
        return [
            stage
            for stage in order[low + 1 : high]
            if stage in holders and stage not in ran and not stage.startswith(BEFORE)
        ]


def traced_values(side: ModelSide, images: jax.Array) -> tuple[Any, list[Event]]:
    """The model with every value as an output, traced; and the events of these."""
    events: list[Event] = []

    def values(images):
        found = []

        def observe(event: Event, value: jax.Array) -> None:
            frame = Frame(event.frame.path, event.frame.module, (), None)
            events.append(dataclasses.replace(event, frame=frame))
            found.append(value)

        side.forward(images, observe)
        return found

    return jax.jit(values).trace(images), events


def is_output(stage: str) -> bool:
    """Whether it is an output of the model itself."""
    parts = split_stage(stage)
    return not parts.path and not parts.before


def typical_noise(values: Iterable[Expected]) -> float:
    """The noise over the rms that three of four values do not exceed.

    One value's own noise is one sample of rounding, and may be small by luck.
    """
    ratios = [value.noise / value.rms for value in values if value.rms]
    return float(np.quantile(ratios, 0.75)) if ratios else 0.0


def first_bad(points: list[Point]) -> int | None:
    """The index of the first value that departs."""
    return next((i for i, point in enumerate(points) if point.is_bad), None)


def last_good(points: list[Point], before: int) -> int:
    """The index of the last value before another that agrees; -1 where there is none."""
    return next((i for i in range(before - 1, -1, -1) if points[i].is_good), -1)


def in_words(stage: str) -> str:
    """A stage as a reader knows it."""
    if stage.startswith(BEFORE):
        return f"the input of {stage.removeprefix(BEFORE) or 'the model'}"
    return f"the output {stage}".strip() if is_output(stage) else stage


def place_of(points: list[Point], bad: int) -> tuple[str, str]:
    """The module in whose own code the first wrong value was made, and the place in words."""
    point, good = points[bad], last_good(points, bad)
    after = f"after {in_words(points[good].stage)}" if good >= 0 else "from the start"
    event = point.event
    if event is None:
        return split_stage(point.stage).path, f"{after}, at {in_words(point.stage)}"
    here = event.frame.path
    if event.entered is not None:
        return here, f"{after}, in what {here or 'the model'} hands to {event.path}"
    inner = [p.event for p in points[good + 1 : bad] if p.event is not None]
    own = f"its output {event.part}".strip() if here else f"the output {event.part} of the model"
    own = own.replace("  ", " ")
    if any(between.frame.path != here for between in inner):
        return here, f"{after}, inside {here or 'the model'}: {own} is the next value to compare"
    return here, f"{after}, at {own}"


def weights_rows(
    own: Mapping[str, np.ndarray], reference: Reference
) -> tuple[list[Row], list[str]]:
    """Arrays of equal names; and notes on those that one side alone has."""
    rows, notes = [], []
    for name, want in reference.weights.items():
        if name not in own:
            continue
        want = np.asarray(want, np.float64)
        got = without_unit_axes(own[name].astype(np.float64), want.shape)
        expected, error = Whole(want, 0.0), np.inf
        if got.shape == want.shape:
            error = expected.error(got)
        else:
            notes.append(f"{name}: the model has {got.shape}, the reference {want.shape}")
        rows.append(make_row("weights", "float64", name, error, expected))
    if own and reference.weights:
        for whose, names in (
            ("the reference", reference.weights.keys() - own.keys()),
            ("the model", own.keys() - reference.weights.keys()),
        ):
            if names:
                shown = ", ".join(sorted(names)[:8])
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                notes.append(f"arrays that {whose} alone has: {shown}{more}")
    return rows, notes
