"""Interleaved timing: of compiled functions, and of programs in processes of their own."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from benchmarks.contestants import CannotCompute, Workload

_ROOT = pathlib.Path(__file__).parents[1]


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each call: the median over `rounds` rounds, each of which runs every call once.

    Interleaved, so that what disturbs the machine disturbs all alike. Each call ran once before.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class Contestant:
    """A program in its own process, which runs only when `call` says so.

    Args:
      name: of `benchmarks.contestants.CONTESTANTS`.
      work, form: what it computes.

    Raises:
      CannotCompute: it has no such model.
      RuntimeError: it failed; with what it said.
    """

    def __init__(self, name: str, work: Workload, form: str):
        self.name = name
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until it is closed
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=_ROOT,
            text=True,
        )
        try:
            order = {"contestant": name, "work": dataclasses.asdict(work), "form": form}
            self.first_seconds = self._ask(order)
        except BaseException:
            self.close()
            raise

    def call(self) -> float:
        """Seconds of one forward pass or step."""
        return self._ask({})

    def _ask(self, order: dict[str, Any]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # no answer comes then
            print(json.dumps(order), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise RuntimeError(f"{self.name} failed:\n{self._said.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise CannotCompute(f"{self.name}: {answer['refused']}")
        self.peak_bytes = answer["peak_bytes"]
        return answer["seconds"]

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._said.close()


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one contestant in one workload.

    Attributes:
      first_seconds: of the first call, which compiles.
      seconds: of each of the later calls.
      peak_bytes: that its process held at most, of the host's memory.
    """

    contestant: str
    first_seconds: float
    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compete(
    names: Iterable[str], work: Workload, form: str, rounds: int, warm_up: int = 2
) -> tuple[list[Timing], list[str]]:
    """Runs the contestants in turn, `rounds` times after `warm_up` that do not count.

    Returns:
      Timings; and for those that cannot compute this, why.

    Raises:
      RuntimeError: one failed.
    """
    with contextlib.ExitStack() as stack:
        entered, refused = [], []
        for name in names:
            try:
                contestant = Contestant(name, work, form)
            except CannotCompute as error:
                refused.append(str(error))
                continue
            stack.callback(contestant.close)
            entered.append(contestant)
        times: dict[str, list[float]] = {one.name: [] for one in entered}
        for number in range(warm_up + rounds):
            for one in entered:
                seconds = one.call()
                if number >= warm_up:
                    times[one.name].append(seconds)
        return [
            Timing(one.name, one.first_seconds, tuple(times[one.name]), one.peak_bytes)
            for one in entered
        ], refused
