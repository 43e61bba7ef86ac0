"""Several updates in one dispatch, and images that live on the devices: the same run."""

import dataclasses
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from tests.tiers import mostly_slow
from tests.training import many
from tests.training.conftest import uninterrupted
from tests.training.runs import arrays, child, rows, steps, tiny
from tests.training.test_loop import same
from vit_jax.training import Interrupted, train
from vit_jax.training.mesh import make_mesh, put_batch, stacked
from vit_jax.training.resident import ResidentImages
from vit_jax.training.run import Run, open_run

pytestmark = pytest.mark.xdist_group("runs")

BLOCK = 4


def looped(**overrides: Any):
    """Its dispatches end after steps 4, 5, 6, 8, 10 and 12."""
    return tiny(training__steps_per_dispatch=BLOCK, **overrides)


@pytest.fixture(scope="module")
def in_a_loop(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run of `looped`, uninterrupted; no test changes it."""
    return uninterrupted(looped(), tmp_path_factory.mktemp("in_a_loop"))


def made_in(run: Run, *counts: int) -> tuple[np.ndarray, list[bytes]]:
    """The losses and all bits of the state of the first updates, so many in each dispatch."""
    state, losses = run.steps.init(), []
    with run.train_batches(0) as batches:
        for count in counts:
            block = run.block_on_device([next(batches) for _ in range(count)])
            state, found = run.steps.train_block(state, block, np.int32(count))
            losses.append(np.asarray(found)[:count])
            assert not np.asarray(found)[count:].any()
    return np.concatenate(losses), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_every_split_of_a_loop_gives_the_same_bits():
    run = open_run(looped())
    losses, state = made_in(run, 4, 4)
    assert len(set(losses.tolist())) == 8
    for counts in ((1, 1, 4, 2), (3, 3, 2)):
        others, other_state = made_in(run, *counts)
        np.testing.assert_array_equal(others, losses)
        assert other_state == state


def test_rows_and_checkpoints_stand_where_they_stand_with_steps_by_themselves(in_a_loop, finished):
    assert steps(in_a_loop) == steps(finished)
    for ours, theirs in zip(rows(in_a_loop), rows(finished), strict=True):
        assert list(ours) == list(theirs)
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # another program


class Watched:
    """Batches of a loader; something happens before the batch of a number is given."""

    def __init__(self, batches: Any, number: int, what: Any) -> None:
        self.batches, self.left, self.what = batches, number, what

    def __next__(self) -> Any:
        if self.left == 0:
            self.what()
        self.left -= 1
        return next(self.batches)

    def __enter__(self) -> Iterator[Any]:
        return self  # pyright: ignore[reportReturnType]

    def __exit__(self, *error: Any) -> None:
        self.batches.close()


def before_batch(number: int, what: Any) -> Any:
    """A patch: `what()` is called before the loader gives batch `number`, counted from 0."""
    made = Run.train_batches
    return mock.patch.object(Run, "train_batches", lambda *args: Watched(made(*args), number, what))


def test_what_ends_a_dispatch_early_loses_no_update(in_a_loop, tmp_path):
    def fail() -> None:
        raise ValueError("image 17 of digits cannot be decoded")

    with before_batch(7, fail), pytest.raises(ValueError, match="image 17 of digits"):
        train(looped(), tmp_path)
    assert steps(tmp_path)[-1] == 7
    # While the dispatch of steps 9 and 10 is gathered: it is made, then saved.
    with (
        before_batch(2, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        pytest.raises(Interrupted),
    ):
        train(looped(), tmp_path)
    assert steps(tmp_path)[-1] == 10
    train(tiny(training__steps_per_dispatch=3), tmp_path)  # another number of the same loop
    assert same(tmp_path, in_a_loop)


@pytest.mark.parametrize("config", mostly_slow([looped, tiny], [looped]))
def test_images_on_the_device_are_those_of_the_loader(config, finished, in_a_loop, tmp_path):
    with mock.patch.object(
        ResidentImages, "filled", autospec=True, side_effect=ResidentImages.filled
    ) as filled:
        train(config(data__on_device=True), tmp_path)
    assert filled.call_count >= 6
    assert same(tmp_path, in_a_loop if config is looped else finished)


@pytest.mark.slow
def test_two_devices_in_a_loop_with_images_there(tmp_path):
    fields: dict[str, Any] = {
        "mesh__data": 2,
        "data__random_resized_crop": True,
        "data__repeated_augmentation": 3,
    }
    for name, more in (("host", {}), ("device", {"data__on_device": True})):
        process = child(looped(**fields, **more), tmp_path / name, devices=2)
        _, err = process.end()
        assert process.returncode == 0, err
    assert same(tmp_path / "device", tmp_path / "host")
    assert arrays(tmp_path / "device", 12)


@pytest.mark.slow
def test_two_processes_in_a_loop_with_images_there(tmp_path):
    config = many.exact(training__steps_per_dispatch=BLOCK, data__on_device=True)
    many.run(config, tmp_path / "two")
    many.run(config, tmp_path / "one", processes=1, devices=2)
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_gradients_reduced_in_a_type_are_those_of_one_device(kind, finished, tmp_path):
    """With dropout, of which each device draws its own rows; AdamW feels the sign of a gradient."""
    fields: dict[str, Any] = {"mesh__data": 2, "training__reduce_dtype": kind}
    process = child(tiny(**fields), tmp_path / "two", devices=2)
    _, err = process.end()
    assert process.returncode == 0, err
    for ours, theirs in zip(rows(tmp_path / "two"), rows(finished), strict=True):
        tolerance = 1e-5 if kind == "float32" else 1e-2
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance)


def test_padding_and_repeats_are_found_by_their_index():
    images = np.arange(2 * 3, dtype=np.uint8).reshape(3, 1, 2, 1)
    mesh = make_mesh(1, 1)
    here = ResidentImages(mesh, jax.numpy.asarray(images), jax.numpy.asarray([7, 8, 9]))
    batch = {"index": np.array([4, -1, 2], np.int32)}
    found = here.filled(put_batch(mesh, batch))
    np.testing.assert_array_equal(found["image"], [images[1], 0 * images[0], images[2]])
    np.testing.assert_array_equal(found["label"], [8, 0, 9])
    block = here.filled(put_batch(mesh, stacked([batch], 2), is_block=True))
    np.testing.assert_array_equal(block["image"][0], found["image"])


def test_images_that_cannot_live_on_a_device_are_refused(every_method):
    varying = dataclasses.replace(every_method.data, on_device=True)
    with pytest.raises(ValueError, match=r"data\.on_device: .* vary in size .*set it to false"):
        open_run(dataclasses.replace(every_method, data=varying))
    large = mock.patch("vit_jax.training.resident._memory", return_value=50_000)
    with large, pytest.raises(ValueError, match=r"data\.on_device: .* take 0\.00 GB"):
        open_run(tiny(data__on_device=True))
    assert open_run(tiny()).resident == ()  # a CPU gains nothing


def test_what_crosses_the_border_of_jit_is_plain():
    """Dictionaries, tuples and dataclasses, which JAX takes apart in C++; no `nnx.State`."""
    state = open_run(tiny()).template
    for tree in (state.params, state.frozen):
        assert "CustomNode" not in str(jax.tree.structure(tree))
