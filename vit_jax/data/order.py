"""Fixed and seeded orders. The same arguments give the same order on every machine, for ever."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Independent purposes draw from independent streams, also when their seeds are equal.
SPLIT_STREAM, SUBSET_STREAM, EPOCH_STREAM = 1, 2, 3


def permutation(length: int, *words: int) -> np.ndarray:
    """A permutation of range(length), a pure function of its arguments.

    NumPy keeps a bit generator's raw output stable between releases, and promises no such thing for
    `Generator.permutation` (NEP 19): so raw 64-bit words are sorted, ties by position.

    Args:
        length: number of items.
        words: non-negative integers that select the permutation (purpose, seed, epoch, ...).

    Returns:
        (length,) int64.
    """
    generator = np.random.Philox(np.random.SeedSequence(words))
    return np.argsort(generator.random_raw(length), kind="stable")


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which `epoch` visits the `length` training images; (length,) int64, read only.

    Cached because each step of an epoch asks for it; with it a step costs O(1), wherever a run
    starts.
    """
    order = permutation(length, EPOCH_STREAM, seed, epoch)
    order.setflags(write=False)
    return order


def stratified_order(labels: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """An order of the examples whose every stretch holds each class in proportion.

    Within its class an example's place is random; place r of n stands at the quantile (r + 1/2) /
    n, and the examples of all classes are sorted by that. Cutting the order anywhere therefore
    gives exact sizes, with every class within one or two examples of its share.

    Args:
        labels: (N,) class of each example.
        seed: selects the order.

    Returns:
        (N,) int64 positions.
    """
    labels = np.asarray(labels)
    shuffled = permutation(len(labels), SPLIT_STREAM, seed)
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Classes of equal size tie; the shuffled order decides, so no class comes first throughout.
    return shuffled[np.argsort(quantile[shuffled], kind="stable")]
