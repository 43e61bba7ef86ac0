"""Split expressions, and the train, validation and test data of a run."""

import functools
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from vit_jax.data.digits import open_digits
from vit_jax.data.folder import labelled_paths, open_folder
from vit_jax.data.order import SPLIT_STREAM, SUBSET_STREAM, permutation
from vit_jax.data.sources import Concatenation, ImageSource, Subset
from vit_jax.data.tfds_source import open_tfds

SOURCES = ("tfds", "folder", "digits")
# Seed 003 cuts CIFAR-100's test split with `random_split(..., manual_seed(42))`.
_SHUFFLED_SEED = 42
_TERM = re.compile(r"(shuffled\()?(\w+)(\))?(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: what is trained on.
        validation, test: None where no split was named for them.
        left_out: what a folder of images holds and is not read, a phrase for each kind.
    """

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource | None
    left_out: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class of each label, the same in all three."""
        return self.train.class_names

    def describe(self) -> str:
        """What was found, in one line."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sizes = [f"{len(part):,} {name}" for name, part in parts.items() if part is not None]
        left = f"; left out: {'; '.join(self.left_out)}" if self.left_out else ""
        names, several = self.class_names, self.train.label_shape
        what = f"{len(names):,} {'labels' if several else 'classes'}" if names else "numbers"
        return f"{what}, images: {', '.join(sizes)}{left}"

    @functools.cached_property
    def identity(self) -> str:
        """How many images of a folder there are, and a hash of their names, labels and classes.

        Empty for other sources: a prepared set does not change under its name.
        """
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        found = [labelled_paths(part) for part in parts]
        paths = [path for part in found for path, _ in part]
        if not paths:
            return ""
        root = len(os.path.commonpath(paths))
        mark = hashlib.sha256(repr(self.class_names).encode())
        for number, part in enumerate(found):
            for path, label in part:
                mark.update(repr((number, path[root:], label)).encode())
        return f"{len(paths):,} images {mark.hexdigest()[:16]}"


def open_splits(
    source: str,
    name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_split: str = "train",
    validation_split: str | None = "validation",
    test_split: str | None = "test",
    seed: int = 0,
    num_train_examples: int | None = None,
    exclude: Collection[str] = (),
    labels_file: str | os.PathLike[str] | None = None,
    kind: str = "classification",
) -> Splits:
    """Opens the train, validation and test data of a run. Reads local files only.

    Of each split the first and the last image are read, so that a damaged or cut-off file is an
    error here and not hours later.

    Args:
        source: "tfds" (a prepared TFDS set), "folder" (images by class) or "digits".
        name: the set's name for "tfds"; a folder below `data_dir` for "folder".
        data_dir: where prepared sets or the image folder are; None: TFDS's own default.
        train_split: a split expression, see `select`.
        validation_split: the same, or None or "" for no validation.
        test_split: the same, or None or "" for no test.
        seed: of the permutation that `num_train_examples` takes its examples from.
        num_train_examples: the first n of a seeded permutation of the training images; None: all.
        exclude, labels_file, kind: of a folder, see `open_folder`.

    Raises:
        ValueError: anything above that cannot be had.
    """
    if "://" in os.fspath(data_dir or ""):
        raise ValueError(
            f"data_dir {data_dir}: wanted a directory; of object storage, mount the bucket "
            "(gcsfuse) or copy the set to each host"
        )
    if labels_file and source in SOURCES and source != "folder":
        raise ValueError(
            f"labels_file {labels_file}: wanted source 'folder' with it, got {source!r}"
        )
    left_out: list[str] = []
    if source == "tfds":
        if not name:
            raise ValueError("source 'tfds' needs the name of a set, such as cifar10")
        available = open_tfds(name, data_dir)
    elif source == "folder":
        if data_dir is None:
            raise ValueError("source 'folder' needs data_dir, the folder of images by class")
        root = os.path.join(data_dir, name) if name else data_dir
        available, left_out = open_folder(root, exclude, labels_file, kind)
    elif source == "digits":
        available = open_digits()
    elif source == "own":
        raise ValueError(
            'the data of source "own" are given in Python, as data= of training.train; '
            f"here, choose one of {', '.join(SOURCES)}"
        )
    else:
        raise ValueError(f"unknown data source {source!r}; valid: {', '.join(SOURCES)}")
    train = select(available, train_split)
    if num_train_examples is not None:
        train = _first_of_permutation(train, num_train_examples, seed)
    splits = Splits(
        train=train,
        validation=select(available, validation_split) if validation_split else None,
        test=select(available, test_split) if test_split else None,
        left_out=tuple(left_out),
    )
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            part.__getitems__([0, len(part) - 1])
    return splits


def select(available: Mapping[str, ImageSource], expression: str) -> ImageSource:
    """The examples that a split expression names.

    As in TFDS: `train`, `train[:90%]`, `train[90%:]`, `test[100:200]`, `test[-500:]`, and sums,
    `train[:80%]+validation`; a percentage is rounded to the nearest example.

    Beyond TFDS: `shuffled(test)[:70%]` and `shuffled(test)[70%:]` cut the split after a fixed
    permutation, the same in every run whatever its seed, so that the parts are disjoint, cover the
    split, and hold every class also where the set is stored class by class.

    Args:
        available: the splits of a set by name.
        expression: what to take.

    Raises:
        ValueError: not an expression, no such split, or no example in the range.
    """
    parts = [_select_term(available, term.strip(), expression) for term in expression.split("+")]
    return (
        parts[0]
        if len(parts) == 1
        else Concatenation(parts, name=" + ".join(part.name for part in parts))
    )


def _select_term(available: Mapping[str, ImageSource], term: str, expression: str) -> ImageSource:
    match = _TERM.fullmatch(term)
    if match is None or bool(match[1]) != bool(match[3]):
        raise ValueError(
            f"split {expression!r} is not understood; valid: NAME, NAME[from:to] with examples or "
            "percentages, shuffled(NAME)[from:to], and sums of these with +"
        )
    shuffled, split = bool(match[1]), match[2]
    if split not in available:
        sizes = ", ".join(f"{name} ({len(part)})" for name, part in available.items())
        raise ValueError(f"there is no split {split!r} for {expression!r}; the set has: {sizes}")
    whole = available[split]
    length = len(whole)
    start = _boundary(match[4], 0, length, term)
    end = _boundary(match[5], length, length, term)
    if start >= end:
        raise ValueError(f"split {term!r} holds no example: {split} has {length}")
    if not shuffled and (start, end) == (0, length):
        return whole
    order = permutation(length, SPLIT_STREAM, _SHUFFLED_SEED) if shuffled else np.arange(length)
    name = whole.name.removesuffix(split) + term
    return Subset(whole, order[start:end], name=name)


def _boundary(text: str | None, default: int, length: int, term: str) -> int:
    if text is None:
        return default
    number = int(text.removesuffix("%"))
    value = round(number * length / 100) if text.endswith("%") else number
    if abs(value) > length or (text.endswith("%") and abs(number) > 100):
        raise ValueError(f"split {term!r} reaches past the {length} examples that there are")
    # A boundary that is written with a minus counts from the end, as in TFDS and Python.
    return value + length if number < 0 else value


def _first_of_permutation(train: ImageSource, count: int, seed: int) -> ImageSource:
    if not 1 <= count <= len(train):
        raise ValueError(
            f"num_train_examples must be from 1 to the {len(train)} of {train.name}, got {count}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    order = permutation(len(train), SUBSET_STREAM, seed)
    return Subset(train, order[:count], name=f"{train.name} ({count} by seed {seed})")
