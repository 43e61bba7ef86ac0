"""Fixed and seeded orders. The same arguments give the same order on every machine, for ever."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Independent purposes draw from independent streams, also when their seeds are equal.
SPLIT_STREAM, SUBSET_STREAM, EPOCH_STREAM, CROP_STREAM, BALANCE_STREAM = 1, 2, 3, 4, 5


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
    return np.argsort(raw_words(length, *words), kind="stable")


def raw_words(count: int, *words: int) -> np.ndarray:
    """(count,) random uint64, a pure function of its arguments; `words` as in `permutation`."""
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(count)


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which `epoch` visits the `length` training images; (length,) int64, read only.

    Cached because each step of an epoch asks for it; with it a step costs O(1), wherever a run
    starts.
    """
    order = permutation(length, EPOCH_STREAM, seed, epoch)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4)
def _balanced_order(labels: bytes, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An epoch in which every class stands equally often, to one: positions, and their repeats.

    The images of a class have their turn in an order of their own, again and again until its places
    are filled; which classes have one place more changes from epoch to epoch.
    """
    of = np.frombuffer(labels, np.int64)
    classes = np.unique(of)
    share, rest = divmod(len(of), len(classes))
    favoured = set(permutation(len(classes), BALANCE_STREAM, seed, epoch)[:rest].tolist())
    positions, repeats = [], []
    for place, label in enumerate(classes.tolist()):
        members, count = np.flatnonzero(of == label), share + (place in favoured)
        turns = -(-count // len(members))
        for turn in range(turns):
            order = permutation(len(members), BALANCE_STREAM, seed, epoch, label, turn)
            positions.append(members[order][: count - turn * len(members)])
            repeats.append(np.full(len(positions[-1]), turn))
    shuffled = permutation(len(of), EPOCH_STREAM, seed, epoch)
    found = np.concatenate(positions)[shuffled], np.concatenate(repeats)[shuffled]
    for array in found:
        array.setflags(write=False)
    return found


def label_key(labels: np.ndarray) -> bytes:
    """The class of each training image, (N,) integers, as what is hashed once for all steps."""
    return labels.astype(np.int64).tobytes()


def balanced_examples(
    places: np.ndarray, labels: bytes, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images stand at `places` of an epoch that shows every class equally often.

    Args:
        places: as of `epoch_examples`.
        labels: of `label_key`.
        seed, epoch: select the order.

    Returns:
        positions, indices: as of `epoch_examples`; an image of a rare class stands there
        repeatedly.
    """
    positions, repeats = _balanced_order(labels, seed, epoch)
    return positions[places], positions[places] + len(positions) * repeats[places]


def epoch_examples(
    places: np.ndarray, length: int, seed: int, epoch: int, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images stand at `places` of an epoch.

    With `repeats` each image of the epoch's order stands there so many times in a row, and only the
    first length / repeats images of the order have their turn: repeated augmentation (Hoffer et
    al., 2020, arXiv:1901.09335), with the epoch as long as before, as DeiT has it.

    Args:
        places: (N,) positions in the epoch, from 0 to length - 1.
        length: number of training images.
        seed: selects the order.
        epoch: likewise.
        repeats: how many times an image appears; 1 for once.

    Returns:
        positions: (N,) int64, of the images in their source.
        indices: (N,) int64, position + length * r for the r-th repeat: what tells repeats apart
            wherever randomness is keyed by index.
    """
    positions = epoch_order(length, seed, epoch)[places // repeats]
    return positions, positions + length * (places % repeats)


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
