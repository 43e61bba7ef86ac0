"""What a comparison found."""

import dataclasses
from typing import Literal

Verdict = Literal["noise", "drift", "departs"]
Section = Literal["weights", "forward", "statistics", "backward", "gradients", "losses", "trained"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      section: "weights" (before anything is run), "forward" (values of stages),
        "statistics" (running statistics after one run in train mode), "backward"
        (gradients of the loss by values of stages and by the input), "gradients" (by parameters),
        "losses" (over the optimizer steps), "trained" (parameters after them).
      precision: "float64", "float32", "bfloat16" or "float16", of the model.
      name: the stage or the parameter; see `values.Reference`.
      max_abs: largest difference from the reference in float64; in bfloat16 and float16 the rms of
        the differences, of which `relative`, `noise` and `limit` are too.
      relative: the same over the rms of the reference.
      noise: the reference's own distance between float32, or the narrow type, and float64; 0 where
        it is not known.
      limit: up to here `max_abs` is noise.
      verdict: "noise"; "drift", up to a thousand times the limit: too much for rounding, too little
        for most faults; "departs".
    """

    section: Section
    precision: str
    name: str
    max_abs: float
    relative: float
    noise: float
    limit: float
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """A known fault that, taken out of the model, takes the difference away.

    Attributes:
      fault: its short name, such as "gelu" or "layer_norm_eps".
      text: a sentence: what the model does, and what the reference does.
      complete: whether nothing else departs once it is out; otherwise `text` holds for the first
        departing stage, and another fault stands later.
    """

    fault: str
    text: str
    complete: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """What `vit_jax.parity.compare` returns.

    Attributes:
      model, reference: what was compared, in words.
      rows: in the order in which a forward, a backward pass and training come to them.
      first: the first row that is not noise, by that order (in "backward" and "gradients" the one
        nearest to the loss); None where there is none.
      stage: the module where the fault stands: the inner-most one whose inputs are right and whose
        output is wrong; "" is the model itself.
      where: the place inside it, in words.
      diagnosis: why, where a known fault explains the difference.
      notes: what was not compared and why.
    """

    model: str
    reference: str
    rows: tuple[Row, ...]
    first: Row | None
    stage: str | None
    where: str
    diagnosis: Diagnosis | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every difference is noise."""
        return self.first is None

    def text(self, *, full: bool = False) -> str:
        """The report as `vit-jax parity` prints it: the verdict, the diagnosis, and the rows.

        Args:
          full: all rows; False leaves out those of a long model that say nothing.
        """
        from vit_jax.parity.render import report_text  # which is made of reports

        return report_text(self, full=full)

    def worst(self, section: Section, precision: str = "float64") -> Row | None:
        """The row of a section that is furthest from its limit, or nearest to it."""
        rows = [r for r in self.rows if r.section == section and r.precision == precision]
        return max(rows, key=lambda row: row.max_abs / row.limit, default=None)
