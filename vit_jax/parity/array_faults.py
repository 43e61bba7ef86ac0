"""How an array that was carried over wrongly came from the right one."""

import dataclasses
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vit_jax.layers.position_resize import METHODS, resize_matrix
from vit_jax.parity.dissect.relations import relation
from vit_jax.parity.forms.modules import KERNEL_ORDERS, THIRDS
from vit_jax.parity.values import rms

# Of larger arrays other orders are not searched for.
_MOST_NUMBERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class ArrayFault:
    """Attributes: name, of the fault; text, what the model's array is."""

    name: str
    text: str


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(rms(other), float(np.finfo(np.float64).tiny))
    return bool(np.max(np.abs(one - other), initial=0) <= 1e-7 * scale)


def array_fault(
    name: str, own: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> ArrayFault | None:
    """What turns the reference's array `name` into the model's; None where nothing known does."""
    got = np.asarray(own[name], np.float64)
    want = np.asarray(reference[name], np.float64)
    if got.shape != want.shape:
        if got.ndim == 2 and got.shape == want.shape[::-1] and _same(got, want.T):
            return ArrayFault("transposed_kernel", "it is the reference's, transposed")
        return None
    for fault, text, candidates in (
        ("transposed_kernel", "it is the reference's, transposed", _transposed(want)),
        ("qkv_order", "it has the reference's thirds in another order", _thirds(want)),
        ("head_layout", "its rows are the reference's in another order of heads", _heads(want)),
        ("patch_order", "it has the features of a patch in another order", _patches(want)),
        ("class_token_position", "its first row is zero", _without_first(want)),
        ("missing_bias", "it is zero", [np.zeros_like(want)]),
        ("reversed", "its rows are in the reverse order", [want[::-1]]),
        ("shifted_positions", "its rows are shifted by one", _shifted(want)),
        ("rounded", "it is the reference's, rounded to a narrow type", _rounded(want)),
    ):
        if any(_same(got, candidate) and not _same(candidate, want) for candidate in candidates):
            return ArrayFault(fault, text)
    for other, array in reference.items():
        if other != name and _same(got, np.asarray(array, np.float64)):
            is_head = other.startswith("head") and name.startswith("head")
            return ArrayFault(
                "averaged_heads" if is_head else "exchanged_arrays",
                f"it is the reference's {other}",
            )
    if want.any():
        ratio = float(np.vdot(want, got) / np.vdot(want, want))
        if ratio and _same(got, ratio * want):
            return ArrayFault("scaled_array", f"it is {ratio:.6g} times the reference's")
    resized = _resized(got, want)
    found = relation(got, want) if resized is None and want.size <= _MOST_NUMBERS else None
    return resized if found is None else ArrayFault(found.fault, found.text)


def _transposed(want: np.ndarray) -> list[np.ndarray]:
    return [want.T] if want.ndim == 2 and want.shape[0] == want.shape[1] else []


def _thirds(want: np.ndarray) -> list[np.ndarray]:
    if want.shape[:1] == () or want.shape[0] % 3:
        return []
    parts = np.split(want, 3)
    return [np.concatenate([parts[i] for i in order]) for order in THIRDS.values()]


def _heads(want: np.ndarray) -> list[np.ndarray]:
    """Thirds inside each head, and the other way round, for any number of heads."""
    if want.ndim == 0 or want.shape[0] % 3:
        return []
    found, third = [], want.shape[0] // 3
    for heads in (h for h in range(2, third + 1) if third % h == 0):
        inside = want.reshape(3, heads, third // heads, -1)
        found.append(inside.swapaxes(0, 1).reshape(want.shape))
        found.append(inside.transpose(1, 2, 0, 3).reshape(want.shape))
        found.append(want.reshape(heads, 3, third // heads, -1).swapaxes(0, 1).reshape(want.shape))
        found.append(inside.swapaxes(1, 2).reshape(want.shape))
    return found


def _patches(want: np.ndarray) -> list[np.ndarray]:
    if want.ndim == 4:
        return [function(want) for function in KERNEL_ORDERS.values()]
    if want.ndim != 2:
        return []
    found = []
    for channels in (1, 3, 4):
        side = math.isqrt(want.shape[1] // channels)
        if side > 1 and side * side * channels == want.shape[1]:
            kernel = want.reshape(-1, channels, side, side)
            found += [f(kernel).reshape(want.shape) for f in KERNEL_ORDERS.values()]
    return found


def _without_first(want: np.ndarray) -> list[np.ndarray]:
    if want.ndim < 2:
        return []
    rows = want.reshape(-1, want.shape[-1]).copy()
    rows[0] = 0
    return [rows.reshape(want.shape)]


def _shifted(want: np.ndarray) -> list[np.ndarray]:
    if want.ndim < 2:
        return []
    axis = int(np.argmax(want.shape[:-1]))
    return [np.roll(want, shift, axis) for shift in (1, -1)]


def _rounded(want: np.ndarray) -> list[np.ndarray]:
    types = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
    return [want.astype(kind).astype(np.float64) for kind in types]


# ---------------------------------------------------------------------------- resized positions


def _resized(got: np.ndarray, want: np.ndarray) -> ArrayFault | None:
    """Two interpolations of one smaller table of positions.

    A table that was enlarged lies in the space that the interpolation spans; what it was enlarged
    from follows by least squares. If both tables came from one, they differ in the interpolation.
    """
    if want.ndim < 2:
        return None
    ours, theirs = (a.reshape(-1, a.shape[-1]) for a in (got, want))
    for prefix in (0, 1, 2):
        side = math.isqrt(len(theirs) - prefix) if len(theirs) > prefix else 0
        if side < 3 or side * side != len(theirs) - prefix:
            continue
        if not _same(ours[:prefix], theirs[:prefix]) and prefix:
            continue
        for old in range(2, side):
            sources: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {}
            for method in METHODS:
                rows = resize_matrix(old, side, method)
                matrix = np.kron(rows, rows)
                sources[method] = (
                    _source(matrix, ours[prefix:]),
                    _source(matrix, theirs[prefix:]),
                )
            for mine, (source, _) in sources.items():
                for other, (_, theirs_source) in sources.items():
                    if mine == other or source is None or theirs_source is None:
                        continue
                    if np.max(np.abs(source - theirs_source)) <= 1e-4 * rms(source):
                        return ArrayFault(
                            "resize_kernel",
                            f"a table of {old}x{old} positions was resized to {side}x{side} by "
                            f"{mine}, the reference's by {other}",
                        )
    return None


def _source(matrix: np.ndarray, table: np.ndarray) -> np.ndarray | None:
    """What `matrix` makes the table from; None where it does not."""
    source, *_ = np.linalg.lstsq(matrix, table, rcond=None)
    residual = np.max(np.abs(matrix @ source - table))
    return source if residual <= 1e-5 * rms(table) else None
