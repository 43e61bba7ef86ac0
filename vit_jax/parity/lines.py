"""The rows of a report as a reader wants them: a line a stage, and the lines that tell something.

A line joins the rows of one stage, or of one parameter, in all precisions.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from vit_jax.inspect.stages import BEFORE, path_of, split_stage
from vit_jax.parity.result import Report, Row, Section, Verdict

SECTIONS: tuple[Section, ...] = (
    "weights",
    "forward",
    "statistics",
    "backward",
    "gradients",
    "losses",
    "trained",
)
# What a line of a section is, and what the section compares.
KINDS: dict[Section, tuple[str, str]] = {
    "weights": ("array", "arrays, before anything is run"),
    "forward": ("stage", "values of stages, in order"),
    "statistics": ("array", "running statistics after one pass in train mode"),
    "backward": ("stage", "gradients of the loss by stages"),
    "gradients": ("parameter", "gradients of the loss by parameters"),
    "losses": ("loss", "of these images, and over the optimizer steps"),
    "trained": ("parameter", "parameters after the optimizer steps"),
}
_SEVERITY: dict[Verdict, int] = {"noise": 0, "drift": 1, "departs": 2}
_SHORT = 30  # lines of a forward section that are shown in full
_AROUND = 6  # lines before and after the first departing stage
_WORST = 5
_MANY = 10  # lines of another section that are not noise


@dataclasses.dataclass(frozen=True)
class Line:
    """One stage or parameter.

    Attributes:
      name: see `values.Reference`.
      rows: by precision; one at least.
    """

    name: str
    rows: dict[str, Row]

    @property
    def main(self) -> Row:
        """The row in float64, or the only one."""
        return self.rows.get("float64") or next(iter(self.rows.values()))

    @property
    def verdict(self) -> Verdict:
        return max((row.verdict for row in self.rows.values()), key=_SEVERITY.__getitem__)

    @property
    def excess(self) -> float:
        return max(excess(row) for row in self.rows.values())


def excess(row: Row) -> float:
    """A row's error in units of its limit; infinite where there is nothing to compare."""
    if math.isnan(row.max_abs):
        return math.inf
    if row.limit > 0:
        return row.max_abs / row.limit
    return math.inf if row.max_abs > 0 else 0.0


def in_floors(row: Row) -> float | None:
    """A row's error in units of PyTorch's own in its type, or float32; None: not known."""
    return row.max_abs / row.noise if row.noise > 0 else None


def narrow_of(report: Report) -> list[str]:
    """The precisions of a report but float64; float32, whose noise float64 is shown beside."""
    found = dict.fromkeys(row.precision for row in report.rows if row.precision != "float64")
    return list(found) or ["float32"]


def short_name(precision: str) -> str:
    """`f32`, `bf16`."""
    return precision.replace("float", "f")


def lines_of(report: Report, section: Section) -> list[Line]:
    """The lines of a section, in the report's order."""
    grouped: dict[str, dict[str, Row]] = {}
    for row in report.rows:
        if row.section == section:
            grouped.setdefault(row.name, {})[row.precision] = row
    return [Line(name, rows) for name, rows in grouped.items()]


def display_name(name: str) -> str:
    """A stage's name, in words where there is none: the path of the model itself is empty."""
    if split_stage(name).path:
        return name
    return "the model's input" if name.startswith(BEFORE) else f"the model's output {name}".strip()


def coarse(name: str) -> str:
    """The part of the model in which a stage lies: `blocks.0`, or two names where none counts."""
    path = path_of(name)
    numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", path)
    return numbered[0] if numbered else ".".join(path.split(".")[:2])


def is_coarse(name: str) -> bool:
    """Whether a stage is the end of a whole part of the model."""
    return not name.startswith(BEFORE) and coarse(name) == path_of(name)


def chosen(lines: Sequence[Line], section: Section, first: Row | None) -> list[Line]:
    """The lines worth a reader's time.

    Of a long forward section the coarse stages, and all near the first departing one; of the others
    the worst few and what is not noise, up to ten lines, and the first that departs.
    """
    here = first.name if first is not None and first.section == section else None
    if section == "forward":
        if len(lines) <= _SHORT:
            return list(lines)
        at = next((i for i, line in enumerate(lines) if line.name == here), None)
        near = range(0) if at is None else range(at - _AROUND, at + _AROUND + 1)
        return [line for i, line in enumerate(lines) if i in near or is_coarse(line.name)]
    # Array by array the same weights are no news.
    worst = 0 if section == "weights" else _WORST
    by_excess = sorted(lines, key=lambda line: -line.excess)
    wrong = sum(line.verdict != "noise" for line in lines)
    names = {line.name for line in by_excess[: max(worst, min(wrong, _MANY))]} | {here}
    return [line for line in lines if line.name in names]
