"""No worker process outlives its iterator, an error, or a parent that was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Prints the ids of the loader's processes, goes on as told, and prints "end".
_SCRIPT = """
import multiprocessing, sys, time
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
    batches = train_batches(source, batch_size=1, seed=0, num_workers=2, worker_kind="process")
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    ending = sys.argv[1]
    if ending == "close":
        batches.close()
    elif ending == "error":
        try:
            for _ in batches:
                pass
        except ValueError as error:
            assert str(error) == "this image is broken"
    print("end", flush=True)
    time.sleep(60)

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
@pytest.mark.parametrize("ending", ["close", "error", "sigkill", "sigterm"])
def test_no_process_is_left(tmp_path: Path, ending: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), ending], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            workers = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(workers) == 2
            assert parent.stdout.readline() == "end\n"
            if ending in ("sigkill", "sigterm"):
                assert all(alive(pid) for pid in workers)
                os.kill(parent.pid, signal.SIGKILL if ending == "sigkill" else signal.SIGTERM)
            assert wait_until(lambda: not any(alive(pid) for pid in workers), 10)
            assert alive(parent.pid) == (ending in ("close", "error"))
        finally:
            parent.kill()
