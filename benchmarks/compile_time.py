"""How long it takes until the first step is done."""

import dataclasses
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from benchmarks.contestants import Workload
from benchmarks.measure import compete

_ROOT = pathlib.Path(__file__).parents[1]
_FIRST_STEP = re.compile(r"^step 1/")


def measure_compile(
    works: Iterable[Workload], rounds: int, console: Console
) -> list[dict[str, Any]]:
    """Seconds to trace and compile the step of each workload, without any cache."""
    rows = []
    for work in works:
        for scanned in (False, True):
            fields = {**work.fields, "scan_layers": scanned}
            timings, _ = compete(
                ["vit_jax"], dataclasses.replace(work, fields=fields), "compile", rounds, warm_up=0
            )
            row = {
                "work": work.name,
                "scan_layers": scanned,
                "seconds": timings[0].median,
                "first_seconds": timings[0].first_seconds,
            }
            rows.append(row)
            console.print(
                f"{work.name}{', scan_layers' if scanned else ''}: {row['seconds']:.1f} s, "
                f"the first time {row['first_seconds']:.1f} s",
                highlight=False,
            )
    return rows


def measure_start(rounds: int, console: Console) -> dict[str, float]:
    """Seconds from `python train.py --config configs/digits_vit.py` to the end of its first step.

    In turn without a compilation cache and with what the run before left there.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            for name, taken in seconds.items():
                command = [
                    *(sys.executable, "train.py", "--config", "configs/digits_vit.py"),
                    *("--workdir", f"{directory}/{name}", "--config.log.every_steps=1"),
                    "--config.log.progress=plain",
                ]
                taken.append(to_first_step(command, pathlib.Path(directory) / "cache"))
    found = {name: statistics.median(taken) for name, taken in seconds.items()}
    console.print(
        f"digits_vit, from the command to its first step: {found['cold']:.1f} s, with a warm "
        f"cache {found['warm']:.1f} s",
        highlight=False,
    )
    return found


def to_first_step(command: Sequence[str], cache: pathlib.Path) -> float:
    """Seconds until a training command says that its first step is done; it is killed then.

    Args:
      command: that logs every step in plain lines.
      cache: folder of compiled programs.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        assert run.stdout is not None
        said = []
        for line in run.stdout:
            said.append(line)
            if _FIRST_STEP.match(line):
                seconds = time.perf_counter() - start
                run.kill()
                return seconds
    raise RuntimeError(f"the run ended before its first step:\n{''.join(said)[-2000:]}")
