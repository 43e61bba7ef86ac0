"""A comparison in float64 of sides that compute in narrower types, or hold constants in them.

What a side casts to float32 is replayed in float64, see `widen` and `torch_widen`; where that
cannot be had, differences are judged as those of float32. A constant that is held in float32 is no
cast: what its last digit moves is measured, and is no fault.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.parity.forward import limit_of, traced_values
from vit_jax.parity.held import is_rounded, moved_by_a_digit
from vit_jax.parity.run import Comparison
from vit_jax.parity.sides import FunctionSide, Gradients, ModelSide, Side, as_model_images
from vit_jax.parity.torch_widen import ROUNDED_DERIVATIVES
from vit_jax.parity.values import Expected, Reference
from vit_jax.parity.widen import Islands
from vit_jax.weights.state_dict import load_state_dict

# A few roundings, of the few operations that make a table, for one of its last digit.
_DIGITS = 4.0
_FLOAT32 = float(np.finfo(np.float32).eps)
_SHOWN = 6


def compare_wide(make: Callable[[Reference], Comparison], reference: Reference) -> Comparison:
    """The comparison, done.

    Args:
      make: a comparison of one and the same side with a reference, not yet done.
    """
    if reference.refusal:
        reference = _rounded(reference)
    run = make(reference)
    islands = run.side.islands
    try:
        run.compare()
    except Exception as error:
        if not islands.is_widened:
            raise
        islands.refuse(error)
        run = make(_rounded(reference))
        run.compare()
    for whose, refusal in (("the model", islands.refusal), ("the reference", reference.refusal)):
        if refusal and not reference.is_float32:
            run.notes.append(
                f"{whose} computes partly in float32 and could not be run in float64 throughout "
                f"({refusal}): in float64 differences up to PyTorch's own float32 error go unseen"
            )
    if run.first is not None and not islands.refusal and not reference.refusal:
        run = _with_room(make, run) or run
    run.notes += _notes(islands.found, run.reference.islands)
    return run


def _notes(ours: Mapping[str, Collection[str]], theirs: Mapping[str, Collection[str]]) -> list[str]:
    """Where each side computes in narrower types."""
    notes = []
    types = {kind for found in (ours, theirs) for kinds in found.values() for kind in kinds}
    for function in sorted(types & ROUNDED_DERIVATIVES.keys()):
        paths = [path for path, kinds in theirs.items() if function in kinds]
        notes.append(
            f"PyTorch's own derivative of {function} holds {ROUNDED_DERIVATIVES[function]} rounded "
            f"to float32, in: {_listed(paths)} (float64 is compared with the exact derivative)"
        )
    for kind in sorted(types - ROUNDED_DERIVATIVES.keys()):
        sides = [[path for path in found if kind in found[path]] for found in (ours, theirs)]
        whose = ("the model", "the reference")
        if set(sides[0]) == set(sides[1]):
            texts = [f"each side computes in {kind} inside: {_listed(sides[0])}"]
        else:
            texts = [
                f"{side} computes in {kind} inside: {_listed(paths)}"
                for side, paths in zip(whose, sides, strict=True)
                if paths
            ]
        notes.append(f"{'; '.join(texts)} (float64 is compared with these casts left out)")
    return notes


def _listed(paths: Collection[str]) -> str:
    names = [path or "the model itself" for path in paths]
    more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    return ", ".join(names[:_SHOWN]) + more


def _map(reference: Reference, change: Callable[[str, str, Any], Any]) -> Reference:
    """The reference with each value changed: called with (field, name, value)."""
    fields: dict[str, Any] = {}
    for field in ("stages", "gradients", "stage_gradients", "trained"):
        values: Mapping[str, Expected] = getattr(reference, field)
        fields[field] = {name: change(field, name, value) for name, value in values.items()}
    for field in ("loss", "image_gradient", "losses"):
        value = getattr(reference, field)
        fields[field] = None if value is None else change(field, "", value)
    return dataclasses.replace(reference, **fields)


def _rounded(reference: Reference) -> Reference:
    """The reference with PyTorch's own float32 error as room."""
    return _map(
        reference,
        lambda field, name, value: dataclasses.replace(value, slack=limit_of(value, "float32")),
    )


# ---------------------------------------------------------------------------- constants


def _with_room(make: Callable[[Reference], Comparison], run: Comparison) -> Comparison | None:
    """The comparison with room for the rounding of what one side alone holds; None: no help."""
    reference, side = run.reference, run.side
    own = side.weights()
    moves: list[tuple[str, Callable[[str, str, Any], float]]] = []
    if reference.moved is not None:
        moved, names = reference.moved(own)
        if names:
            moves.append((f"the reference holds {_listed(names)}", _theirs(reference, moved)))
    moved_side, names = _moved_side(side, own, reference)
    if names:
        moves.append((f"the model holds {_listed(names)}", _ours(run, moved_side)))
    if not moves:
        return None

    def room(field: str, name: str, value: Any) -> Any:
        moved_by = sum(move(field, name, value) for _, move in moves)
        return dataclasses.replace(value, slack=_DIGITS * moved_by)

    again = make(_map(reference, room))
    again.compare()
    was = {(row.section, row.name) for row in run.rows if row.verdict != "noise"}
    new = [row for row in again.rows if (row.section, row.name) in was and row.verdict == "noise"]
    if not new:
        return None
    what = "; ".join(text for text, _ in moves)
    again.notes.append(
        f"{what} rounded to float32, and the other side does not: what the last digit of these "
        f"moves goes unseen, from {new[0].name or 'the output'} on "
        f"({new[0].limit / (new[0].max_abs / new[0].relative):.0e} of the rms there)"
    )
    return again


def _theirs(reference: Reference, moved: Reference) -> Callable[[str, str, Any], float]:
    def move(field: str, name: str, value: Any) -> float:
        other = getattr(moved, field)
        other = other if field in ("loss", "image_gradient", "losses") else other.get(name)
        return 0.0 if other is None else _apart(value.array, other.array)

    return move


def _apart(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape:
        return 0.0
    difference = np.abs(one - other)
    return float(np.max(difference[np.isfinite(difference)], initial=0.0))


def _moved_side(
    side: Side, own: Mapping[str, np.ndarray], reference: Reference
) -> tuple[Side, list[str]]:
    """The model with its constants moved that the reference does not have; and their names."""
    tables = {
        name: array
        for name, array in own.items()
        if reference.weights
        and name not in reference.weights
        and is_rounded(array)
        and np.array_equal(array, array.astype(np.float32))
    }
    moved = {name: moved_by_a_digit(array, _FLOAT32) for name, array in tables.items()}
    islands = Islands(is_widened=True, jitter=True)
    if isinstance(side, FunctionSide):
        copy: Side = FunctionSide(side.function, side.dtype, side.outputs)
        copy.params |= {name: jnp.asarray(array) for name, array in moved.items()}
        copy.islands = islands
    else:
        copy = ModelSide(side.model, side.dtype, side.outputs, islands)
        copy.is_named = side.is_named
        if moved:
            load_state_dict(copy.model, {**own, **moved})
    images = as_model_images(reference, side.dtype)
    try:
        _values(copy, images)
    except Exception:  # it cannot run so, and then nothing is known of it
        return side, []
    return copy, [
        *tables,
        *(f"a constant of {path or 'the model itself'}" for path in sorted(islands.held)),
    ]


def _values(side: Side, images: jax.Array) -> dict[str, Any]:
    if isinstance(side, FunctionSide):
        return side.stages(images)
    traced, events = traced_values(side, images)
    arrays = traced.lower().compile()(images)
    return {event.stage: array for event, array in zip(events, arrays, strict=True)}


def _ours(run: Comparison, moved: Side) -> Callable[[str, str, Any], float]:
    side, reference = run.side, run.reference
    images = as_model_images(reference, side.dtype)
    stages = [_values(one, images) for one in (side, moved)]
    both: list[Gradients] | None = None
    if run.grad:
        both = [_gradients(one, run) for one in (side, moved)]
    trained = None
    if run.optimizer is not None:
        trained = [one.train(reference) for one in (side, moved)]

    def move(field: str, name: str, value: Any) -> float:
        del value
        if field == "stages":
            return max(
                (
                    _apart(stages[0][stage], stages[1][stage])
                    for stage in (name, side.torch_stages.get(name, name))
                    if stage in stages[0]
                ),
                default=0.0,
            )
        if field == "losses" or field == "trained":
            if trained is None:
                return 0.0
            if field == "losses":
                return _apart(trained[0][0], trained[1][0])
            return _apart(trained[0][1].get(name, 0.0), trained[1][1].get(name, 0.0))
        if both is None:
            return 0.0
        if field == "loss":
            return _apart(both[0].loss, both[1].loss)
        if field == "image_gradient":
            return 0.0 if both[0].image is None else _apart(both[0].image, both[1].image)
        kind = "parameters" if field == "gradients" else "stages"
        one, other = getattr(both[0], kind), getattr(both[1], kind)
        name = name if name in one else side.torch_stages.get(name, name)
        return _apart(one[name], other[name]) if name in one else 0.0

    return move


def _gradients(side: Side, run: Comparison) -> Gradients:
    return side.gradients(run.reference, stages=list(run.gradients.stages))
