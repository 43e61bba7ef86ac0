"""Processes that are killed, and what they leave."""

import pathlib
import signal
import subprocess
import time
from collections.abc import Callable

from tests.training.runs import Process


def left_of(leaders: list[int]) -> list[str]:
    """Processes of these leaders' sessions that are alive; zombies only wait to be reaped."""
    command = ["ps", "-e", "-o", "sid=,stat=,pid=,args="]
    listing = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    found = [line.split(maxsplit=3) for line in listing]
    return [" ".join(row[2:]) for row in found if int(row[0]) in leaders and row[1][0] != "Z"]


def check_none_left(leaders: list[int]) -> None:
    """No process of these sessions is alive 10 seconds after their end."""
    end = time.monotonic() + 10
    while left_of(leaders) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_of(leaders) == []


def wait_for(what: Callable[[], bool], process: Process) -> None:
    while not what() and process.poll() is None:
        time.sleep(0.002)


def kill(process: Process, number: int = signal.SIGKILL) -> tuple[str, str]:
    if process.poll() is None:
        process.send_signal(number)
    return process.end(timeout=60)


def run_to_end(process: Process) -> int:
    """Waits until it has ended well; returns its process id."""
    _, err = process.end()
    assert process.returncode == 0, err
    return process.pid


def in_checkpoint(workdir: pathlib.Path) -> bool:
    return any(workdir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def row_count(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0
