"""The batch of a step is a pure function of (seed, step), whoever makes it."""

import pickle
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import array_source, prepare_small, random_images, write_png
from tests.tiers import mostly_slow
from vit_jax.data import (
    ArraySource,
    Batch,
    eval_batches,
    num_eval_batches,
    open_splits,
    steps_per_epoch,
    train_batches,
)
from vit_jax.data.host_crop import RandomResizedCrop, cut, pil_resize


def take(count: int, source: Any, **arguments: Any) -> list[Batch]:
    with train_batches(source, **{"batch_size": 6, "seed": 7, **arguments}) as batches:
        return list(islice(batches, count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert set(a) == set(b)
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


def test_batch_holds_what_the_source_has_at_its_indices() -> None:
    source = array_source(20)
    for batch in take(7, source):
        assert [value.dtype for value in batch.values()] == [np.uint8, np.int32, np.int32, bool]
        assert batch["mask"].all()
        np.testing.assert_array_equal(batch["image"], source.images[batch["index"]])
        np.testing.assert_array_equal(batch["label"], source.labels[batch["index"]])


def test_epochs_are_permutations_that_differ_and_drop_the_short_batch() -> None:
    source = array_source(20)
    assert steps_per_epoch(source, 6) == 3
    epochs = [
        np.concatenate([batch["index"] for batch in take(3, source, start_step=start)])
        for start in (0, 3, 6)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 18
    assert len({epoch.tobytes() for epoch in epochs}) == 3
    assert not np.array_equal(epochs[0], np.arange(18))
    other = np.concatenate([batch["index"] for batch in take(3, source, seed=8)])
    assert not np.array_equal(epochs[0], other)


@pytest.mark.parametrize("start_step", [0, 1, 2, 5, 13])
def test_start_step_continues_as_if_never_stopped(start_step: int) -> None:
    source = array_source(20)
    assert_equal(
        take(17, source)[start_step:], take(17 - start_step, source, start_step=start_step)
    )


def test_any_step_is_reached_at_once() -> None:
    reads: list[int] = []

    class Counting(ArraySource):
        def __getitem__(self, index: int) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    images = random_images(20)
    source = Counting(images, np.zeros(20, int), class_names=("a",), name="counting")
    take(1, source, start_step=10**9)
    assert len(reads) == 6


@pytest.mark.parametrize(
    ("num_workers", "worker_kind"),
    mostly_slow(
        [(1, "thread"), (3, "thread"), (1, "process"), (2, "process"), (3, "process")],
        fast=[(3, "thread"), (2, "process")],
    ),
)
def test_workers_never_change_a_batch(tmp_path: Path, num_workers: int, worker_kind: str) -> None:
    prepare_small(tmp_path)
    source = open_splits("tfds", "small", tmp_path, validation_split=None).train
    expected = take(11, source, start_step=2)
    found = take(
        11, source, start_step=2, num_workers=num_workers, worker_kind=worker_kind, num_steps=11
    )
    assert_equal(found, expected)


def test_hosts_share_a_batch_row_by_row() -> None:
    source = array_source(20)
    whole = take(5, source)
    hosts = ([0, 1], [2, 5], [3, 4])
    parts = [take(5, source, rows=rows) for rows in hosts]
    for key in ("image", "label", "index", "mask"):
        for step in range(5):
            for rows, part in zip(hosts, parts, strict=True):
                np.testing.assert_array_equal(part[step][key], whole[step][key][rows])


def test_num_steps_ends_the_iterator() -> None:
    assert len(take(100, array_source(20), num_steps=4)) == 4
    assert take(100, array_source(20), num_steps=0) == []


@pytest.mark.parametrize(("count", "batch_size"), [(20, 6), (18, 6), (3, 6)])
def test_evaluation_sees_every_image_once_in_order(count: int, batch_size: int) -> None:
    source = array_source(count)
    batches = list(eval_batches(source, batch_size=batch_size, num_workers=2))
    assert len(batches) == num_eval_batches(source, batch_size)
    assert {batch["image"].shape[0] for batch in batches} == {batch_size}
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    mask = joined["mask"]
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < count)
    np.testing.assert_array_equal(joined["index"][mask], np.arange(count))
    np.testing.assert_array_equal(joined["image"][mask], source.images)
    np.testing.assert_array_equal(joined["label"][mask], source.labels)
    assert (joined["index"][~mask] == -1).all()
    assert not joined["image"][~mask].any()
    parts = [
        [batch["index"] for batch in eval_batches(source, batch_size=batch_size, rows=rows)]
        for rows in (range(3), range(3, 6))
    ]
    shared = np.concatenate([np.concatenate(rows) for rows in zip(*parts, strict=True)])
    np.testing.assert_array_equal(shared, joined["index"])


def test_images_of_varying_size_are_resized_on_the_host(tmp_path: Path) -> None:
    for i, side in enumerate((8, 12, 20)):
        write_png(tmp_path / "train" / "ant" / f"{i}.png", random_images(1, side)[0])
    source = open_splits("folder", data_dir=tmp_path, validation_split=None, test_split=None).train
    with pytest.raises(ValueError, match="vary in size: image_size must say"):
        train_batches(source, batch_size=2, seed=0)
    (batch,) = take(1, source, batch_size=3, image_size=(8, 10))
    assert batch["image"].shape == (3, 8, 10, 3)
    (batch,) = eval_batches(source, batch_size=3, image_size=8)
    assert batch["image"].shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(batch["image"][0], source[0]["image"])  # untouched at its size
    (cropped,) = eval_batches(source, batch_size=3, image_size=8, crop_fraction=0.5)
    assert not np.array_equal(cropped["image"][1], batch["image"][1])


def varied_source(root: Path, count: int = 11) -> Any:
    """PNG files of 20 to 30 pixels a side."""
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
        write_png(root / "train" / "ant" / f"{i:02d}.png", image)
    return open_splits("folder", data_dir=root, validation_split=None, test_split=None).train


CROPPED: dict[str, Any] = {"image_size": 16, "repeats": 3, "crop": RandomResizedCrop()}


def test_crops_are_keyed_by_epoch_and_index_and_nothing_else(tmp_path: Path) -> None:
    source = varied_source(tmp_path)
    assert steps_per_epoch(source, 5) == 2
    for step, batch in enumerate(take(5, source, batch_size=5, **CROPPED)):
        for row, index in enumerate(batch["index"].tolist()):
            image = source[index % len(source)]["image"]
            key = {"seed": 7, "epoch": step // 2, "index": index}
            expected = cut(image, CROPPED["crop"].draw(*image.shape[:2], **key), 16, 16)
            np.testing.assert_array_equal(batch["image"][row], expected)


def test_without_a_crop_the_whole_image_is_resized(tmp_path: Path) -> None:
    source = varied_source(tmp_path)
    (batch,) = take(1, source, batch_size=5, image_size=(16, 12))
    for row, index in enumerate(batch["index"].tolist()):
        expected = pil_resize(source[index]["image"], 16, 12, "bilinear")
        np.testing.assert_array_equal(batch["image"][row], expected)


@pytest.mark.parametrize(
    ("num_workers", "worker_kind", "one_size"),
    [(3, "thread", False), (1, "process", False), (3, "thread", True)],
)
def test_crops_and_repeats_survive_workers_resume_and_hosts(
    tmp_path: Path, num_workers: int, worker_kind: str, one_size: bool
) -> None:
    source = array_source(11) if one_size else varied_source(tmp_path)
    cropped = CROPPED | ({"image_size": None} if one_size else {})
    whole = take(9, source, **cropped)
    assert ("crop" in whole[0]) == one_size
    workers: dict[str, Any] = {"num_workers": num_workers, "worker_kind": worker_kind}
    assert_equal(take(5, source, start_step=4, num_steps=5, **workers, **cropped), whole[4:])
    part = take(9, source, rows=[1, 4], num_steps=9, num_workers=3, **cropped)
    for mine, all_of_it in zip(part, whole, strict=True):
        for key in mine:
            np.testing.assert_array_equal(mine[key], all_of_it[key][[1, 4]])


@pytest.mark.parametrize(
    ("num_workers", "worker_kind"),
    mostly_slow([(0, "thread"), (1, "process")], fast=[(0, "thread")]),
)
def test_a_damaged_image_is_named_where_crops_are_made(
    tmp_path: Path, num_workers: int, worker_kind: Any
) -> None:
    source = varied_source(tmp_path)
    path = tmp_path / "train" / "ant" / "05.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"ant/05.png is not a readable image"):
        take(
            6,
            source,
            num_steps=6,
            num_workers=num_workers,
            worker_kind=worker_kind,
            image_size=16,
            crop=RandomResizedCrop(),
        )


def test_repeated_augmentation_shows_a_third_of_the_images_three_times() -> None:
    source = array_source(24)
    for epoch in range(3):
        batches = take(4, source, start_step=4 * epoch, repeats=3)
        index = np.concatenate([batch["index"] for batch in batches])
        images, repeat = index % 24, index // 24
        # An epoch is as long as ever and holds 8 of the 24 images, each as repeat 0, 1 and 2.
        assert len(index) == 24
        shown, times = np.unique(images, return_counts=True)
        assert len(shown) == 8
        assert (times == 3).all()
        np.testing.assert_array_equal(repeat, np.tile([0, 1, 2], 8))
        # The images of a batch are next to each other, and those of the plain order.
        once = np.concatenate([b["index"] for b in take(4, source, start_step=4 * epoch)])
        np.testing.assert_array_equal(images[::3], once[:8])
        for batch in batches:
            np.testing.assert_array_equal(batch["image"], source.images[batch["index"] % 24])
            np.testing.assert_array_equal(batch["label"], source.labels[batch["index"] % 24])


def test_over_many_epochs_each_image_is_shown_as_often() -> None:
    source = array_source(24)
    shown = np.concatenate([b["index"] % 24 for b in take(4 * 120, source, repeats=3)])
    # 120 epochs show each image 120 times on average, in threes: 40 +- 5.2 of binomial(120, 1/3).
    counts = np.bincount(shown, minlength=24) / 3
    assert counts.sum() == 120 * 8
    assert (abs(counts - 40) < 4 * 5.2).all()


def test_repeats_of_an_image_are_cropped_differently(tmp_path: Path) -> None:
    (batch,) = take(1, varied_source(tmp_path), batch_size=3, **CROPPED)
    assert len(set(batch["index"] % 11)) == 1
    assert len({image.tobytes() for image in batch["image"]}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 21}, "batch_size 21 is larger than memory, which has 20 images"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"start_step": -1}, "start_step must be at least 0"),
        ({"num_steps": -1}, "num_steps must be at least 0"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"rows": [5, 6]}, r"rows must be from 0 to 5, and some, got \[5, 6\]"),
        ({"rows": []}, r"rows must be from 0 to 5, and some, got \[\]"),
        ({"image_size": 0}, "image_height must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"repeats": 2**30}, "repeats must be at most 107374182 for the 20 images of memory"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(1, array_source(20), **arguments)


def test_bad_crop_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_fraction must be in \(0, 1\], got 0"):
        eval_batches(array_source(3), batch_size=3, crop_fraction=0.0)
    with pytest.raises(ValueError, match="interpolation 'random'; valid: bilinear, bicubic"):
        eval_batches(array_source(3), batch_size=3, interpolation="random")


@pytest.mark.parametrize(
    ("num_workers", "worker_kind"), [(0, "thread"), (2, "thread"), (1, "process")]
)
def test_workers_errors_arrive_as_they_are(
    tmp_path: Path, num_workers: int, worker_kind: Any
) -> None:
    for i, image in enumerate(random_images(12)):
        write_png(tmp_path / "train" / "ant" / f"{i:02d}.png", image)
    (tmp_path / "train" / "ant" / "07.png").write_bytes(b"broken")
    source = open_splits("folder", data_dir=tmp_path, validation_split=None, test_split=None).train
    batches = eval_batches(
        source, batch_size=3, image_size=8, num_workers=num_workers, worker_kind=worker_kind
    )
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match=r"ant/07.png is not a readable image") as error:
        next(batches)
    assert "\n" not in str(error.value)


def test_closing_leaves_no_thread() -> None:
    def loader_threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    batches = train_batches(array_source(20), batch_size=2, seed=0, num_workers=3)
    next(batches)
    workers = loader_threads()
    assert workers
    batches.close()
    batches.close()
    for worker in workers:
        worker.join(timeout=5)
    assert not loader_threads()


def test_sources_are_picklable(tmp_path: Path) -> None:
    prepare_small(tmp_path)
    for source in (
        open_splits("digits").train,
        open_splits(
            "tfds", "small", tmp_path, train_split="train[:5]+test", validation_split=""
        ).train,
    ):
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[4]["image"], source[4]["image"])
