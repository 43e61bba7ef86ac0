"""The batch of a step is a pure function of (seed, step), whoever makes it."""

import pickle
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import array_source, prepare_small, random_images, write_png
from vit_jax.data import (
    ArraySource,
    Batch,
    eval_batches,
    num_eval_batches,
    open_splits,
    steps_per_epoch,
    train_batches,
)


def take(count: int, source: Any, **arguments: Any) -> list[Batch]:
    with train_batches(source, **{"batch_size": 6, "seed": 7, **arguments}) as batches:
        return list(islice(batches, count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert set(a) == {"image", "label", "index", "mask"}
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
    ("num_workers", "worker_kind"), [(1, "thread"), (3, "thread"), (1, "process"), (3, "process")]
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
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take(1, array_source(20), **arguments)


def test_bad_crop_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_fraction must be in \(0, 1\], got 0"):
        eval_batches(array_source(3), batch_size=3, crop_fraction=0.0)


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
