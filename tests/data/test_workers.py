"""No worker process outlives its iterator, an error, or a parent that was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_jax.data.workers import check_killed

# For each loader in turn: prints the ids of its processes and waits for a line before the next.
_SCRIPT = """
import multiprocessing, os, signal, sys
import numpy as np
from vit_jax.data import ArraySource, train_batches

class Failing(ArraySource):
    def __getitem__(self, index):
        if index >= 60:
            raise ValueError("this image is broken")
        return super().__getitem__(index)

def main():
    source = Failing(
        np.zeros((64, 2, 2, 1), np.uint8), np.zeros(64, int), class_names=["a"], name="x"
    )
    for ending in sys.argv[1:]:
        count = 2 if ending == "kill" else 1
        batches = train_batches(
            source, batch_size=1, seed=0, num_workers=count, worker_kind="process"
        )
        next(batches)
        pids = [child.pid for child in multiprocessing.active_children()]
        if ending == "close":
            batches.close()
        elif ending == "error":
            try:
                for _ in batches:
                    pass
            except ValueError as error:
                assert str(error) == "this image is broken"
        elif ending == "worker killed":
            os.kill(pids[0], signal.SIGKILL)
            try:
                for _ in batches:
                    pass
            except ValueError as error:
                assert "was ended from outside (signal 9; " in str(error)
        print(*pids, flush=True)
        sys.stdin.readline()

if __name__ == "__main__":
    main()
"""


def alive(pid: int) -> bool:
    """Whether the process runs; a dead one that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("endings", "number"),
    [
        (["close", "error", "worker killed", "kill"], signal.SIGKILL),
        pytest.param(["kill"], signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["sigkill", "sigterm"],
)
def test_no_process_is_left(tmp_path: Path, endings: list[str], number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), *endings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert parent.stdin is not None
            assert parent.stdout is not None
            for ending in endings:
                workers = [int(pid) for pid in parent.stdout.readline().split()]
                assert len(workers) == (2 if ending == "kill" else 1)
                if ending == "kill":
                    assert all(alive(pid) for pid in workers)
                    os.kill(parent.pid, number)
                assert wait_until(lambda pids=workers: not any(alive(pid) for pid in pids), 10)
                assert alive(parent.pid) == (ending != "kill")
                if ending != "kill":
                    print(file=parent.stdin, flush=True)
        finally:
            parent.kill()


@pytest.mark.parametrize(("code", "words"), [(-9, "signal 9"), (-15, "signal 15"), (1, "code 1")])
def test_a_process_that_was_ended_is_told_in_words(code: int, words: str) -> None:
    error = RuntimeError(
        f"Worker process was terminated unexpectedly with exit code {code}. Search"
    )
    with pytest.raises(ValueError, match=rf"ended from outside \(.*{words}; the system"):
        check_killed(error)
    for other in (RuntimeError("another"), ValueError("an image"), StopIteration()):
        check_killed(other)
