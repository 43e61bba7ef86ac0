"""What a golden file keeps of an array: a few of its values, its mean and its norm."""

import dataclasses
import math
from typing import Literal

import numpy as np


def corner(array: np.ndarray) -> np.ndarray:
    """The first 4 of axis 1 and 16 of axis 2; of a matrix the first 16 of axis 1."""
    return array[:, :16] if array.ndim == 2 else array[:, :4, :16]


def first8(array: np.ndarray) -> np.ndarray:
    """The first eight values in C order, in float64, zero padded."""
    flat = np.ravel(array)[:8].astype(np.float64)
    return np.pad(flat, (0, 8 - len(flat)))


def norm(array: np.ndarray) -> float:
    """The L2 norm, summed in float64."""
    return float(np.linalg.norm(np.ravel(array).astype(np.float64)))


_SAMPLES = {"corner": corner, "first8": first8}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """An array of which a part is known; see `values.Expected`.

    Attributes:
      shape: of the whole array.
      sample: which part: "corner" or "first8", the functions here.
      part: its values.
      l2: norm of the whole array.
      mean: of the whole array; None where it is not known.
      noise: largest difference between the reference's own float32 and float64 run.
      slack: see `values.Expected`.
    """

    shape: tuple[int, ...]
    sample: Literal["corner", "first8"]
    part: np.ndarray
    l2: float
    mean: float | None
    noise: float
    slack: float = 0.0

    @property
    def rms(self) -> float:
        return self.l2 / math.sqrt(math.prod(self.shape))

    def error(self, got: np.ndarray) -> float:
        """Largest difference of a known value, of the mean and of the rms."""
        got = np.asarray(got, np.float64)
        if got.shape != self.shape or not np.isfinite(got).all():
            return np.inf
        errors = [
            float(np.max(np.abs(_SAMPLES[self.sample](got) - self.part), initial=0.0)),
            abs(norm(got) - self.l2) / math.sqrt(got.size),
        ]
        if self.mean is not None:
            errors.append(abs(float(got.mean()) - self.mean))
        return max(errors)
