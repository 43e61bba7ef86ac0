"""Constants that one side holds rounded to float32 and the other computes: room for their rounding.

A table made once, such as the frequencies of rotary positions, is what it was rounded to, also in a
model of float64. Whoever computes it anew in float64 has other numbers.
"""

import numpy as np


def _rounded(array: np.ndarray) -> np.ndarray:
    mantissa, _ = np.frexp(np.where(np.isfinite(array), array, 0.0).astype(np.float32))
    return mantissa * 256 % 1 != 0


def is_rounded(array: np.ndarray) -> bool:
    """Whether its numbers may have been rounded: not those of few digits, such as 0, 1 or 0.5."""
    return bool(_rounded(array).any())


def moved_by_a_digit(array: np.ndarray, eps: float) -> np.ndarray:
    """The array with each rounded number up or down by `eps` of itself."""
    signs = np.random.default_rng(array.size).choice((-eps, eps), size=array.shape)
    return np.where(_rounded(array), array * (1 + signs), array)
