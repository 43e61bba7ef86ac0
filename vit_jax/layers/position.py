"""Fixed position tables."""

import numpy as np


def sinusoid_table(positions: int, dim: int) -> np.ndarray:
    """Sines and cosines of the positions (Vaswani et al. 2017, 1706.03762, section 3.5).

    Returns:
      (positions, dim) in float64: sin(p / 10000**(2 (j // 2) / dim)) at even j, the cosine of the
      same angle at odd j.
    """
    even = 2 * (np.arange(dim) // 2)
    angles = np.arange(positions)[:, None] / np.power(10000.0, even / dim)
    return np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles))
