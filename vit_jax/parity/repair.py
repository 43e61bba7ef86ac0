"""What is left to differ once a fault is taken out of the model."""

import jax

from vit_jax.inspect.recorder import Event, Replace
from vit_jax.parity.forward import Point, first_bad, in_words
from vit_jax.parity.layouts import other_layouts
from vit_jax.parity.result import Diagnosis
from vit_jax.parity.run import Comparison
from vit_jax.parity.sides import ModelSide

# A diagnosis; the module where the fault stands, None, and the place in words, "", where the rows
# know it as well.
Found = tuple[Diagnosis, str | None, str]


def wrong_gradients(
    run: Comparison,
    side: ModelSide | None = None,
    replace: Replace | None = None,
    *,
    keyless: bool = False,
) -> list[str]:
    """What still has another gradient, nearest to the loss first; nothing where none is compared.

    Args:
      side: in the place of the run's.
      replace, keyless: see `Recorder`.
    """
    tried = side or run.side
    if not run.grad or not isinstance(tried, ModelSide):
        return []
    gradients = tried.gradients(run.reference, replace, keyless=keyless, borrowed=run.scene)
    rows = run.gradient_rows(gradients)
    return [row.name for row in reversed(rows) if row.verdict != "noise"]


def outcome_of(run: Comparison, points: list[Point], replace: Replace | None) -> tuple[bool, str]:
    """Whether nothing else departs with a change, and what it does, in words.

    Args:
      points: of the run with the change, up to the first that departs.
      replace: the change.
    """
    if first_bad(points) is not None:
        return False, f"with this changed the model agrees up to {in_words(points[-1].stage)}"
    if not run.grad:
        return True, "with this changed every value agrees"
    wrong = wrong_gradients(run, replace=replace)
    if wrong:
        return False, f"with this changed every value agrees, but not the gradient of {wrong[0]}"
    return True, "with this changed all values and gradients agree"


def output_layout(run: Comparison, point: Point) -> Found | None:
    """The model's answer in another shape, where its numbers are the reference's.

    Args:
      point: of the answer.
    """
    assert point.event is not None
    (expected,) = run.forward.expected[""]
    for text, change in other_layouts(point.shape, tuple(expected.shape)):

        def replace(event: Event, value: jax.Array, change=change) -> jax.Array:
            return change(value) if event.stage == "" else value

        points = run.forward.trial(replace)
        if points[-1].is_good:
            complete, outcome = outcome_of(run, points, replace)
            return (
                Diagnosis("layout", f"the model's output is {text}; {outcome}", complete),
                None,
                "",
            )
    return None
