"""How one array is another's, with no knowledge of what computed them: orders, factors, terms."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.parity.dissect.arguments import in_digits
from vit_jax.parity.values import rms

_SAME = 1e-10  # of the rms
_LEAST = 4  # numbers: of fewer everything follows from everything


@dataclasses.dataclass(frozen=True)
class Relation:
    """Attributes: fault, its short name; text, what the model's array is, in words."""

    fault: str
    text: str


def reorders(shape: tuple[int, ...]) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """Orders in which an array may stand by mistake: fault, words, and what brings it there.

    The functions take arrays of NumPy and tensors of PyTorch.
    """
    for axis, size in enumerate(shape):
        if size < 2:
            continue
        where = f"along axis {axis}"
        if size % 2 == 0:
            yield (
                "swapped_halves",
                f"its two halves {where} exchanged",
                _by_index(axis, np.roll(np.arange(size), size // 2)),
            )
        if size > 2:
            yield (
                "flipped",
                f"{where} in the reverse order",
                _by_index(axis, np.arange(size)[::-1].copy()),
            )
            for by in dict.fromkeys((1, size - 1, 2, size - 2)):
                shift = by if by <= 2 else by - size
                order = np.roll(np.arange(size), shift)
                if by != size // 2 or size % 2:
                    yield "rolled", f"rolled by {shift} {where}", _by_index(axis, order)
        for groups in (g for g in range(2, size) if size % g == 0 and size // g > 1):
            order = np.arange(size).reshape(groups, -1).T.ravel()
            yield "reordered", f"its {groups} groups {where} interleaved", _by_index(axis, order)
            if groups <= 4 and groups > 2:
                parts = np.arange(size).reshape(groups, -1)
                for way in list(itertools.permutations(range(groups)))[1:]:
                    text = f"its {groups} parts {where} in the order {way}"
                    yield "reordered", text, _by_index(axis, parts[list(way)].ravel())
        if axis == len(shape) - 1 and size % 3 == 0:
            third = size // 3
            for heads in (h for h in range(2, third) if third % h == 0):
                order = np.arange(size).reshape(3, heads, -1)
                for text, way in (
                    ("(3, heads, channels) and not (heads, 3, channels)", order.swapaxes(0, 1)),
                    (
                        "(heads, 3, channels) and not (3, heads, channels)",
                        order.reshape(heads, 3, -1).swapaxes(0, 1),
                    ),
                ):
                    words = f"its channels read as {text}, of {heads} heads"
                    yield "head_layout", words, _by_index(axis, way.ravel())
        if size % 2 == 0 and size > 2:
            pairs = np.arange(size).reshape(-1, 2)[:, ::-1].ravel()
            yield "reordered", f"its neighbours {where} exchanged in pairs", _by_index(axis, pairs)
    for one, other in itertools.combinations(range(len(shape)), 2):
        if shape[one] == shape[other] > 1:
            order = list(range(len(shape)))
            order[one], order[other] = other, one
            yield "permuted_axes", f"its axes {one} and {other} exchanged", _by_axes(order)


def _by_index(axis: int, order: np.ndarray) -> Callable[[Any], Any]:
    def apply(array: Any) -> Any:
        index: list[Any] = [slice(None)] * array.ndim
        index[axis] = order.tolist()
        return array[tuple(index)]

    return apply


def _by_axes(order: list[int]) -> Callable[[Any], Any]:
    def apply(array: Any) -> Any:
        return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)

    return apply


def relation(
    got: np.ndarray, want: np.ndarray, others: Mapping[str, np.ndarray] | None = None
) -> Relation | None:
    """What turns the reference's array into the model's; None where nothing known does.

    Args:
      got, want: the model's and the reference's, of one shape.
      others: by name, values of the same run that may be the one in the place of the other, or a
        term of it.
    """
    if got.shape != want.shape or want.size < _LEAST or not np.isfinite(got).all():
        return None
    others = {n: a for n, a in (others or {}).items() if a.shape == want.shape}
    for find in (_lone, _taken, _factor, _order, _terms, _clamped, _partial):
        found = find(got, want, others)
        if found is not None:
            return found
    return None


def _same(one: np.ndarray, other: np.ndarray, scale: float | None = None) -> bool:
    size = rms(other) if scale is None else scale
    return bool(np.max(np.abs(one - other), initial=0.0) <= _SAME * max(size, 1e-300))


def _lone(got: np.ndarray, want: np.ndarray, others: Mapping) -> Relation | None:
    del others
    if not got.any() and want.any():
        return Relation("missing_term", "it is zero")
    return None


def _taken(got: np.ndarray, want: np.ndarray, others: Mapping[str, np.ndarray]) -> Relation | None:
    for name, array in others.items():
        if _same(got, array) and not _same(want, array):
            return Relation("another_input", f"it is the value of {name}")
    return None


def _factor(got: np.ndarray, want: np.ndarray, others: Mapping) -> Relation | None:
    del others
    square = float(np.vdot(want, want))
    if square == 0.0:
        return None
    ratio = float(np.vdot(want, got)) / square
    if ratio and _same(got, ratio * want, rms(got)):
        if abs(ratio + 1) < _SAME:
            return Relation("sign", "it has the other sign")
        return Relation("factor", f"it is {in_digits(ratio)} times the reference's")
    offset = float(np.mean(got - want))
    if offset and _same(got, want + offset):
        return Relation("offset", f"it is the reference's plus {in_digits(offset)}")
    for axis in range(want.ndim):
        rest = tuple(k for k in range(want.ndim) if k != axis)
        if want.shape[axis] in (1, want.size) or want.size < 4 * want.shape[axis]:
            continue
        squares = np.sum(want * want, rest, keepdims=True)
        with np.errstate(all="ignore"):
            ratios = np.sum(want * got, rest, keepdims=True) / squares
        if np.isfinite(ratios).all() and _same(got, ratios * want, rms(got)):
            off = np.flatnonzero(np.abs(ratios.ravel() - 1) > 1e-8)
            return Relation(
                "channel_factor", f"it is the reference's times {_each(off, axis, want)}"
            )
        offsets = np.mean(got - want, rest, keepdims=True)
        if _same(got, want + offsets):
            off = np.flatnonzero(np.abs(offsets.ravel()) > 1e-12)
            return Relation(
                "channel_offset", f"it is the reference's plus {_each(off, axis, want)}"
            )
    return None


def _each(off: np.ndarray, axis: int, want: np.ndarray) -> str:
    if len(off) == 1:
        return f"a number at index {off[0]} of axis {axis}"
    if len(off) == want.shape[axis]:
        return f"a number of its own for each index of axis {axis}"
    return f"a number at the indices {_numbers(off)} of axis {axis}"


def _numbers(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:6]))
    return shown + (", ..." if len(indices) > 6 else "")


def _order(got: np.ndarray, want: np.ndarray, others: Mapping) -> Relation | None:
    del others
    if not _same(np.sort(got, None), np.sort(want, None), rms(want)):
        return None
    for fault, text, apply in reorders(want.shape):
        if _same(apply(want), got):
            return Relation(fault, f"it is the reference's, {text}")
    for axis, size in enumerate(want.shape):
        order = _permutation(np.moveaxis(got, axis, 0), np.moveaxis(want, axis, 0))
        if order is not None:
            shift = int(order[0])
            if np.array_equal(order, (np.arange(size) + shift) % size):
                shift = -shift if shift <= size // 2 else size - shift
                return Relation(
                    "rolled", f"it is the reference's, rolled by {shift} along axis {axis}"
                )
            text = f"it is the reference's, reordered along axis {axis}: {_numbers(order)}"
            return Relation("reordered", text)
    for order in list(itertools.permutations(range(want.ndim)))[1:] if want.ndim <= 5 else []:
        turned = want.transpose(order)
        if turned.size == got.size and _same(turned.reshape(got.shape), got):
            text = f"it is the reference's with its axes in the order {order}, reshaped"
            return Relation("permuted_axes", text)
    return None


def _permutation(got: np.ndarray, want: np.ndarray) -> np.ndarray | None:
    """Which index of `want` along the first axis each one of `got` is."""
    got, want = (x.reshape(len(x), -1) for x in (got, want))
    if len(got) < 2 or got.shape[1] < 2:
        return None
    direction = np.random.default_rng(0).standard_normal(got.shape[1])
    mine, theirs = np.argsort(got @ direction), np.argsort(want @ direction)
    order = np.empty(len(got), int)
    order[mine] = theirs
    return order if _same(got, want[order]) else None


def _terms(got: np.ndarray, want: np.ndarray, others: Mapping[str, np.ndarray]) -> Relation | None:
    """The reference's with a value more or less of it."""
    off = got - want
    for name, array in others.items():
        square = float(np.vdot(array, array))
        if square == 0.0 or _same(array, want):
            continue
        times = float(np.vdot(array, off)) / square
        if abs(times) > 1e-8 and _same(off, times * array, rms(off)):
            if abs(times + 1) < 1e-8:
                return Relation("missing_term", f"it is the reference's without {name}")
            if abs(times - 1) < 1e-8:
                return Relation(
                    "doubled_term", f"it is the reference's with {name} added once more"
                )
            return Relation(
                "extra_term", f"it is the reference's plus {in_digits(times)} times {name}"
            )
    return None


def _clamped(got: np.ndarray, want: np.ndarray, others: Mapping) -> Relation | None:
    del others
    for one, other, text in ((got, want, "the reference's, clamped"), (want, got, "")):
        low, high = float(one.min()), float(one.max())
        if _same(np.clip(other, low, high), one) and low < high:
            ends = [
                f"{what} {in_digits(end)}"
                for what, end, cut in (
                    ("from below at", low, other.min() < low - 1e-9),
                    ("from above at", high, other.max() > high + 1e-9),
                )
                if cut
            ]
            if ends and np.count_nonzero(other != one) < 0.95 * one.size:
                words = text or "not clamped, and the reference's is"
                return Relation("clamp", f"it is {words} {' and '.join(ends)}")
    return None


def _partial(got: np.ndarray, want: np.ndarray, others: Mapping) -> Relation | None:
    """Where alone they differ."""
    del others
    off = np.abs(got - want) > _SAME * max(rms(want), 1e-300)
    share = np.count_nonzero(off) / off.size
    if not 0 < share <= 0.75:
        return None
    for axis, size in enumerate(off.shape):
        rest = tuple(k for k in range(off.ndim) if k != axis)
        wrong = np.flatnonzero(off.any(rest))
        if size > 1 and len(wrong) < size and share > 0.5 * len(wrong) / size:
            text = f"it is right but at index {_numbers(wrong)} of axis {axis} (of {size})"
            return Relation("partial", text)
    inner = [axis for axis, size in enumerate(off.shape) if size > 2]
    for axes in itertools.combinations(inner, 2):
        cut = tuple(slice(1, -1) if k in axes else slice(None) for k in range(off.ndim))
        if not off[cut].any():
            return Relation("partial", f"it is right but at the border of axes {axes}")
    if off.ndim >= 2 and off.shape[-1] == off.shape[-2]:
        for words, part in (("above", np.tril), ("below", np.triu)):
            if not off[
                ..., part(np.ones(off.shape[-2:], bool), {"above": -1, "below": 1}[words])
            ].any():
                text = f"it is right but on and {words} the diagonal of its last axes"
                return Relation("mask", text)
    return None


def part_of(got: np.ndarray, want: np.ndarray) -> str | None:
    """Which part of the reference's array the model's is, in words; None where it is none."""
    if got.ndim != want.ndim or got.shape == want.shape or got.size < _LEAST:
        return None
    ways: list[list[tuple[str, slice]]] = []
    for size, whole in zip(got.shape, want.shape, strict=True):
        cuts = [("", slice(None))] if size == whole else []
        if size < whole:
            cuts = [(f"{k}:{k + size}", slice(k, k + size)) for k in range(whole - size + 1)][:8]
            for step in range(2, whole // size + 1):
                cuts += [
                    (f"{k}::{step}", slice(k, k + (size - 1) * step + 1, step)) for k in range(step)
                ]
        ways.append(cuts)
    if np.prod([len(cuts) for cuts in ways]) > 500:
        return None
    for way in itertools.product(*ways):
        part = want[tuple(cut for _, cut in way)]
        if part.shape == got.shape and _same(part, got):
            named = [f"{text} of axis {axis}" for axis, (text, _) in enumerate(way) if text]
            return f"it is a part of the reference's: {', '.join(named)}"
    return None
