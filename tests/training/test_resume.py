"""Runs that are killed: repeated, they are the run that was not.

Few kills by default, at moments that are hard by design; `VIT_JAX_STRESS=20` adds as many runs that
are killed at random moments.
"""

import os
import pathlib
import random
import signal
import time

import pytest

from tests.training.kills import (
    check_none_left,
    in_checkpoint,
    kill,
    row_count,
    run_to_end,
    wait_for,
)
from tests.training.runs import arrays, child, rows, steps, tiny

STRESS = int(os.environ.get("VIT_JAX_STRESS", "0"))
WORKERS = [(0, "thread"), (1, "thread"), (3, "thread"), (1, "process")]


def config(workers: int = 0, kind: str = "thread"):
    return tiny(
        num_epochs=4,
        checkpoint__every_steps=3,
        data__num_workers=workers,
        data__worker_kind=kind,
    )


LAST = 24


def check_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    assert rows(workdir) == rows(reference)
    assert arrays(workdir, LAST) == arrays(reference, LAST)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> pathlib.Path:
    """Not that of the other tests: JAX warns of an entry that a kill left half written."""
    return tmp_path_factory.mktemp("cache_of_killed_runs")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache_dir) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("reference")
    run_to_end(child(config(), workdir, cache_dir))
    return workdir


def test_killed_in_a_checkpoint_and_in_an_epoch_with_other_workers_each_time(
    reference, tmp_path, cache_dir
):
    moments = [
        lambda: in_checkpoint(tmp_path),
        lambda: row_count(tmp_path) >= 3,
        lambda: row_count(tmp_path) >= 6 and in_checkpoint(tmp_path),
    ]
    leaders = []
    for moment, (workers, kind) in zip(moments, WORKERS[1:], strict=True):
        process = child(config(workers, kind), tmp_path, cache_dir)
        leaders.append(process.pid)
        wait_for(moment, process)
        assert process.poll() is None, "it ended before it could be killed"
        kill(process)
    # None of these is complete, and one may be there to be repaired.
    leaders.append(run_to_end(child(config(), tmp_path, cache_dir)))
    check_same(tmp_path, reference)
    check_none_left(leaders)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_a_signal_ends_the_process_with_its_status_and_no_traceback(
    number, status, tmp_path, cache_dir
):
    process = child(config(), tmp_path, cache_dir)
    wait_for(lambda: row_count(tmp_path) >= 1, process)
    _, err = kill(process, number)
    assert process.returncode == status
    assert "Traceback" not in err
    assert steps(tmp_path), err


def test_a_signal_to_the_whole_group_finds_the_workers_ready(tmp_path, cache_dir):
    """As `timeout`, systemd and schedulers send it."""
    process = child(config(1, "process"), tmp_path, cache_dir)
    wait_for(lambda: row_count(tmp_path) >= 1, process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert steps(tmp_path), err
    check_none_left([process.pid])


def test_training_imports_neither_tensorflow_nor_torch(tmp_path, cache_dir):
    process = child(tiny(num_epochs=1, log__tensorboard=True), tmp_path, cache_dir)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    modules = next(line for line in out.splitlines() if line.startswith("modules:")).split()[1:]
    assert not {"tensorflow", "torch"} & set(modules)


def test_full_disk_in_a_checkpoint_keeps_the_last_good_one(tmp_path, cache_dir):
    """A limit on file sizes stands for the disk: the arrays of a checkpoint do not fit."""
    wide = tiny(checkpoint__every_steps=4, model__kwargs__embed_dim=64)
    process = child(wide, tmp_path, cache_dir)
    wait_for((tmp_path / "checkpoints" / "4").exists, process)
    kill(process)
    good = steps(tmp_path)[-1]

    process = child(wide, tmp_path, cache_dir, file_size_limit=50_000)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    error = next(line for line in err.splitlines() if line.startswith("error:"))
    assert "cannot be written" in error
    # Which of Orbax's several failing writes is told first, and in what words, depends on timing.
    assert "is the disk full?" in error
    assert f"the last good one is that of step {good}" in error
    assert "Traceback" not in err
    assert steps(tmp_path) == [good]

    process = child(wide, tmp_path, cache_dir)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert rows(tmp_path)[-1]["split"] == "test"
    assert not in_checkpoint(tmp_path)


@pytest.mark.skipif(not STRESS, reason="set VIT_JAX_STRESS=20 to run it")
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("seed", range(STRESS))
def test_killed_at_random_moments(seed, reference, tmp_path, cache_dir):
    choose = random.Random(seed)
    leaders = []
    for _ in range(choose.randint(1, 4)):
        process = child(config(*choose.choice(WORKERS)), tmp_path, cache_dir)
        leaders.append(process.pid)
        # From the first row on, moments are uniform over the run; before, nothing is at stake.
        begun = row_count(tmp_path)
        wait_for(lambda begun=begun: row_count(tmp_path) > begun, process)
        time.sleep(choose.uniform(0, 1.5))
        kill(process)
    leaders.append(run_to_end(child(config(*choose.choice(WORKERS)), tmp_path, cache_dir)))
    check_same(tmp_path, reference)
    check_none_left(leaders)
