"""Runs that are killed: repeated, they are the run that was not.

Few kills by default, at moments that are hard by design; `VIT_JAX_STRESS=20` adds as many runs that
are killed at random moments.
"""

import os
import pathlib
import random
import shutil
import signal
import time

import pytest

from tests.training.conftest import uninterrupted
from tests.training.kills import check_none_left, in_checkpoint, kill, row_count, wait_for
from tests.training.runs import arrays, child, rows, steps, tiny, trained
from tests.training.test_loop import same, stop_at
from vit_jax.config import TrainConfig
from vit_jax.training import Interrupted, train

pytestmark = pytest.mark.xdist_group("runs")

STRESS = int(os.environ.get("VIT_JAX_STRESS", "0"))
WORKERS = [(0, "thread"), (1, "thread"), (3, "thread"), (1, "process")]
LAST = 24


def config(workers: int = 0, kind: str = "thread") -> TrainConfig:
    return tiny(
        num_epochs=4,
        checkpoint__every_steps=3,
        data__num_workers=workers,
        data__worker_kind=kind,
        log__tensorboard=True,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> pathlib.Path:
    return uninterrupted(config(), tmp_path_factory.mktemp("reference"))


def check_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    assert rows(workdir) == rows(reference)
    assert arrays(workdir, LAST) == arrays(reference, LAST)


def test_a_finished_run_goes_on_for_more_epochs(finished, reference, tmp_path):
    """With the bits of a run that was that long from the start, and one test, at the new end."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"num_epochs \(was 2, now 1\)"):
        train(tiny(num_epochs=1), tmp_path)
    train(config(), tmp_path)
    for split in ("validation", "test"):
        ours, whole = (
            [row for row in rows(run) if row["split"] == split] for run in (tmp_path, reference)
        )
        assert ours == whole
    assert trained(tmp_path, LAST) == trained(reference, LAST)


def test_killed_and_stopped_with_other_workers_each_time(reference, tmp_path):
    process = child(config(3, "thread"), tmp_path)
    leaders = [process.pid]
    wait_for(lambda: row_count(tmp_path) >= 4 and in_checkpoint(tmp_path), process)
    assert process.poll() is None, "it ended before it could be killed"
    kill(process)

    # The workers receive the signal too, as `timeout`, systemd and schedulers send it.
    begun = row_count(tmp_path)
    process = child(config(1, "process"), tmp_path)
    leaders.append(process.pid)
    wait_for(lambda: row_count(tmp_path) >= begun + 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.end(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    modules = next(line for line in out.splitlines() if line.startswith("modules:")).split()[1:]
    assert not {"tensorflow", "torch"} & set(modules)
    assert rows(tmp_path)[-1]["step"] <= steps(tmp_path)[-1] < LAST

    train(config(1, "thread"), tmp_path)
    check_same(tmp_path, reference)
    check_none_left(leaders)


def test_killed_in_the_first_checkpoint(finished, tmp_path):
    """None is complete, and the one that was begun is not used."""
    shutil.copy(finished / "config.json", tmp_path)
    begun = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(finished / "checkpoints" / "8", begun)
    (begun / "info" / "metadata").unlink()
    train(tiny(), tmp_path)
    assert same(tmp_path, finished)
    assert not in_checkpoint(tmp_path)


def test_a_run_of_every_method_killed_in_an_epoch(
    every_method, every_method_finished, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def kill(run) -> None:
        run.checkpoints.wait()
        raise Killed

    stop_at(monkeypatch, 11, kill)  # the latest checkpoint is of step 9
    with pytest.raises(Killed):
        train(every_method, tmp_path)
    monkeypatch.undo()
    train(every_method, tmp_path)
    check_same(tmp_path, every_method_finished)
    assert {name.split("/")[0] for name in arrays(tmp_path, LAST)} == {"model", "training", "ema"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_process_with_its_status_and_no_traceback(number, tmp_path):
    process = child(config(), tmp_path)
    wait_for(lambda: row_count(tmp_path) >= 1, process)
    _, err = kill(process, number)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert steps(tmp_path), err


def test_full_disk_in_a_checkpoint_keeps_the_last_good_one(finished, tmp_path, monkeypatch):
    """A limit on file sizes stands for the disk: the arrays of a checkpoint do not fit."""
    stop_at(monkeypatch, 4, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path)
    monkeypatch.undo()

    process = child(tiny(), tmp_path, file_size_limit=10_000)
    _, err = process.end()
    assert process.returncode == 2, err
    error = next(line for line in err.splitlines() if line.startswith("error:"))
    assert "cannot be written" in error
    # Which of Orbax's several failing writes is told first, and in what words, depends on timing.
    assert "is the disk full?" in error
    assert "the last good one is that of step 4" in error
    assert "Traceback" not in err
    assert steps(tmp_path) == [4]

    train(tiny(), tmp_path)
    assert same(tmp_path, finished)
    assert not in_checkpoint(tmp_path)


@pytest.mark.skipif(not STRESS, reason="set VIT_JAX_STRESS=20 to run it")
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("seed", range(STRESS))
def test_killed_at_random_moments(seed, reference, tmp_path):
    choose = random.Random(seed)
    leaders = []
    for _ in range(choose.randint(1, 4)):
        process = child(config(*choose.choice(WORKERS)), tmp_path)
        leaders.append(process.pid)
        # From the first row on, moments are uniform over the run; before, nothing is at stake.
        begun = row_count(tmp_path)
        wait_for(lambda begun=begun: row_count(tmp_path) > begun, process)
        time.sleep(choose.uniform(0, 1.5))
        kill(process)
    process = child(config(*choose.choice(WORKERS)), tmp_path)
    _, err = process.end()
    assert process.returncode == 0, err
    check_same(tmp_path, reference)
    check_none_left([*leaders, process.pid])
