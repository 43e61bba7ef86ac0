"""Split expressions, the digits, seeded orders, and the opening of a run's data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tests.data.conftest import array_source
from vit_jax.data import ArraySource, ImageSource, open_splits, select
from vit_jax.data.order import epoch_order, permutation, stratified_order
from vit_jax.data.sources import Subset


def labels_of(source: ImageSource) -> np.ndarray:
    return np.array([example["label"] for example in source.__getitems__(range(len(source)))])


def first_pixels(source: ImageSource) -> list[int]:
    """What tells the random images of the tests apart."""
    return [hash(source[i]["image"].tobytes()) for i in range(len(source))]


def test_digits_are_scikit_learns_in_three_exact_stratified_parts() -> None:
    splits = open_splits("digits")
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part) for part in parts if part] == [1257, 180, 360]
    bunch = load_digits(return_X_y=True)
    expected = sorted(
        (np.round(pixels * 255 / 16 + 1e-9).astype(np.uint8).tobytes(), int(label))
        for pixels, label in zip(*bunch, strict=True)
    )
    found = [part[i] for part in parts if part for i in range(len(part))]
    assert sorted((e["image"].tobytes(), e["label"]) for e in found) == expected
    totals = np.bincount(bunch[1])
    for part in parts:
        assert part is not None
        share = np.bincount(labels_of(part)) - totals * len(part) / 1797
        assert np.abs(share).max() < 1.5
    assert splits.train.image_shape == (8, 8, 1)
    assert splits.class_names == tuple("0123456789")


def test_digits_split_is_fixed() -> None:
    # A change of this split would change every published figure.
    validation = open_splits("digits").validation
    assert isinstance(validation, Subset)
    np.testing.assert_array_equal(validation.indices[:8], [3, 10, 28, 42, 47, 48, 49, 58])


def test_permutations_are_stable_seeded_and_complete() -> None:
    np.testing.assert_array_equal(permutation(8, 3, 0, 0), [0, 1, 2, 7, 5, 6, 4, 3])
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4


def test_stratified_order_keeps_proportions_of_unequal_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(labels, 0)
    assert sorted(order) == list(range(1000))
    for end in (10, 90, 500, 770):
        counts = np.bincount(labels[order[:end]], minlength=3)
        np.testing.assert_allclose(counts, end * np.array([0.6, 0.3, 0.1]), atol=1.0)


@pytest.mark.parametrize(
    "expression",
    [
        *("train", "train[:90%]", "train[90%:]", "train[3:7]", "train[-5:]", "train[:-5]"),
        *("train[-33%:]", "train[13%:57%]", "test+train[:4]"),
    ],
)
def test_expressions_select_what_tfds_selects(small_set: Path, expression: str) -> None:
    ours = open_splits(
        "tfds", "small", small_set, train_split=expression, validation_split=None, test_split=None
    ).train
    builder: Any = tfds.builder_from_directory(small_set / "small" / "1.0.0")
    theirs = builder.as_data_source(expression)
    assert first_pixels(ours) == [hash(example["image"].tobytes()) for example in theirs]


def test_shuffled_cuts_are_disjoint_complete_and_mixed() -> None:
    source = ArraySource(
        np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1),
        np.repeat([0, 1], 50),  # stored class by class
        class_names=("a", "b"),
        name="test",
    )
    parts = [select({"test": source}, f"shuffled(test){cut}") for cut in ("[:70%]", "[70%:]")]
    pixels = [[int(part[i]["image"].item()) for i in range(len(part))] for part in parts]
    assert [len(part) for part in pixels] == [70, 30]
    assert sorted(pixels[0] + pixels[1]) == list(range(100))
    assert pixels[0] != sorted(pixels[0])
    assert 10 <= labels_of(parts[1]).sum() <= 20
    assert parts[0].name == "shuffled(test)[:70%]"


def test_sums_read_across_their_border() -> None:
    source = array_source(10)
    both = select({"a": source}, "a[:3]+a[7:]")
    assert len(both) == 6
    assert first_pixels(both) == [first_pixels(source)[i] for i in (0, 1, 2, 7, 8, 9)]
    with pytest.raises(IndexError):
        both[6]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("valid", r"no split 'valid'.*train \(20\)"),
        ("train[5]", "not understood"),
        ("shuffled(train[:5]", "not understood"),
        ("shuffled(train", "not understood"),
        ("train[5:5]", "holds no example"),
        ("train[:21]", "reaches past the 20"),
        ("train[:101%]", "reaches past the 20"),
        ("", "not understood"),
    ],
)
def test_bad_expressions_are_one_clear_error(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select({"train": array_source(20)}, expression)


def test_num_train_examples_takes_the_first_of_a_seeded_permutation() -> None:
    def pixels(count: int | None, seed: int) -> list[int]:
        return first_pixels(open_splits("digits", num_train_examples=count, seed=seed).train)

    assert pixels(40, 0)[:10] == pixels(10, 0)
    assert set(pixels(40, 0)) != set(pixels(40, 1))
    assert pixels(None, 0) == pixels(None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "imagenet"}, "unknown data source 'imagenet'; valid: tfds, folder, digits"),
        ({"source": "tfds"}, "needs the name of a set"),
        ({"source": "folder"}, "needs data_dir"),
        ({"source": "folder", "data_dir": "gs://b/x"}, "gs://b/x: wanted a directory; .* mount"),
        ({"source": "digits", "num_train_examples": 1258}, "from 1 to the 1257 .* got 1258"),
        ({"source": "digits", "num_train_examples": 0}, "got 0"),
        ({"source": "digits", "num_train_examples": 5, "seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_splits(**arguments)


def test_splits_that_are_not_named_are_none() -> None:
    splits = open_splits("digits", validation_split=None, test_split="")
    assert splits.validation is None
    assert splits.test is None


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, int), "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), "must be uint8 of shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), "one label an image"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]), "image 1 has label 2"),
    ],
)
def test_bad_arrays_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArraySource(images, labels, class_names=("a", "b"), name="x")


def test_scikit_learn_without_its_data_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="reinstall scikit-learn"):
        open_splits("digits")
