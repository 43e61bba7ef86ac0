"""Speed beside PyTorch and plain Flax, measured in turn.

    python -m benchmarks.run --suite cpu [--rounds 7] [--only GLOB] [--out DIR] [--against FILE]

Suites:
  cpu: forward pass and training step of seven models in float32.
  gpu: both with larger batches in bfloat16 (autocast in PyTorch).
  compile: seconds that our training step takes to be traced and compiled, plainly and with its
    layers in a loop, and those from `python train.py` to the first step, without and with a cache.
  input: images/s from prepared records to batches, and PyTorch's DataLoader with PIL beside it;
    how long training waits for its input.
  scale: our step against batch, image size, depth and tokens, beside what the FLOPs say.

Every contestant has a process of its own and computes only when it is its turn; nothing else
should run. Ratios are of medians: how many times as fast as PyTorch eager. `--out` keeps all
times as JSON, and a picture. `--against` compares speed and memory of the suites cpu and gpu with
such a JSON file (one is committed: benchmarks/results/cpu.json). It ends with status 1 where one is
worse by more than a tenth, or nothing could be compared. For Linux.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.against import changes, check_comparable, read_timings
from benchmarks.against import table as table_of_changes
from benchmarks.contestants import BASE, CONTESTANTS, FORMS, Workload
from benchmarks.measure import Timing, compete
from benchmarks.pictures import draw_ratios, draw_scale

CPU = (
    Workload("vit_classifier", 72, 32),
    Workload("vit_classifier", 72, 256),
    Workload("vit_small_patch16_224", 224, 8),
    Workload("vit_base_patch16_224", 224, 4),
    Workload("t2t_vit_7", 224, 8),
    Workload("t2t_vit_14", 224, 4),
    Workload("t2t_vit_t_14", 224, 4),
    Workload("swin_tiny_patch4_window7_224", 224, 8),
)
GPU = (
    Workload("vit_small_patch16_224", 224, 256, dtype="bfloat16"),
    Workload("vit_base_patch16_224", 224, 256, dtype="bfloat16"),
    Workload("t2t_vit_14", 224, 128, dtype="bfloat16"),
    Workload("t2t_vit_t_14", 224, 64, dtype="bfloat16"),
)


_SUITES = ("cpu", "gpu", "compile", "input", "scale")


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table."""

    work: Workload
    form: str
    timings: list[Timing]
    refused: list[str]

    @property
    def name(self) -> str:
        return f"{self.work.name}, {self.form}"

    @property
    def by_contestant(self) -> dict[str, Timing]:
        return {one.contestant: one for one in self.timings}

    def of(self, contestant: str) -> Timing | None:
        return self.by_contestant.get(contestant)

    def ratio(self, contestant: str) -> float | None:
        """How many times as fast as the base."""
        base, one = self.of(BASE), self.of(contestant)
        return base.median / one.median if base is not None and one is not None else None


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for name in ("jax", "flax", "torch", "timm"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "versions": versions,
    }


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def race(
    works: Sequence[Workload], names: Sequence[str], rounds: int, console: Console
) -> list[Result]:
    """Measures every workload in every form, a line as each is done."""
    results = []
    for work in works:
        for form in FORMS:
            result = Result(work, form, *compete(names, work, form, rounds))
            results.append(result)
            parts = [f"{one.contestant} {1e3 * one.median:,.1f} ms" for one in result.timings]
            console.print(f"{result.name}: {', '.join(parts)}", style="dim", highlight=False)
    return results


def table(results: Sequence[Result]) -> Table:
    """Ratios to the base, and our own time and memory."""
    entered = [name for name in CONTESTANTS if any(result.of(name) for result in results)]
    shown = Table(title=f"times as fast as {BASE}", title_justify="left")
    shown.add_column("workload")
    for name in entered:
        shown.add_column(name, justify="right")
    shown.add_column("vit_jax, ms", justify="right")
    shown.add_column("first call, s", justify="right")
    shown.add_column("peak of the host, MiB", justify="right")
    for result in results:
        ratios = [result.ratio(name) for name in entered]
        ours = result.of("vit_jax")
        shown.add_row(
            result.name,
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            *(
                ("", "", "")
                if ours is None
                else (
                    f"{1e3 * ours.median:,.1f}",
                    f"{ours.first_seconds:.1f}",
                    f"{ours.peak_bytes / 2**20:,.0f}",
                )
            ),
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description="speed beside PyTorch and plain Flax")
    parser.add_argument("--suite", choices=_SUITES, default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="that count, of each contestant")
    parser.add_argument("--only", default="*", help="workloads whose name matches this glob")
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument("--data-dir", type=pathlib.Path, help="of the suite input: TFDS data")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for the JSON and the picture")
    parser.add_argument(
        "--against", type=pathlib.Path, metavar="FILE", help="a JSON file of --out to compare with"
    )
    arguments = parser.parse_args()
    races = {"cpu": CPU, "gpu": GPU}
    if arguments.against is not None and arguments.suite not in races:
        parser.error(f"--against compares --suite {' and '.join(races)}, got {arguments.suite}")
    # Several processes share one GPU, this one among them.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as the commands do
    console = Console()
    if not console.is_terminal:  # a file has no width
        console.width = 160
    report: dict[str, Any] = {"suite": arguments.suite, "machine": machine()}
    draw: Any = None
    status = 0
    if arguments.suite == "input":
        if arguments.data_dir is None:
            parser.error("--suite input wants --data-dir, where the prepared sets are")
        from benchmarks.input_pipeline import measure_input
        from benchmarks.input_wait import measure_wait

        report["input"] = measure_input(arguments.data_dir, arguments.rounds, console)
        report["wait"] = measure_wait(arguments.data_dir, console)
    elif arguments.suite == "compile":
        from benchmarks.compile_time import measure_compile, measure_start

        report["compile"] = measure_compile(CPU, arguments.rounds, console)
        report["start"] = measure_start(arguments.rounds, console)
    elif arguments.suite == "scale":
        from benchmarks.scale import measure_scale

        report["scale"] = measure_scale(arguments.rounds, console)
        draw = draw_scale
    else:
        known = races[arguments.suite]
        works = [work for work in known if fnmatch.fnmatch(work.name, arguments.only)]
        if not works:
            parser.error(f"--only matches none of: {'; '.join(work.name for work in known)}")
        before = {}
        if arguments.against is not None:
            try:
                before = read_timings(arguments.against, arguments.suite)
                check_comparable(before, works, arguments.contestants)
            except ValueError as error:
                parser.error(str(error))
        results = race(works, arguments.contestants, arguments.rounds, console)
        console.print(table(results))
        if arguments.against is not None:
            now = {(one.work.name, one.form): one.by_contestant for one in results}
            found = list(changes(before, now))
            console.print(table_of_changes(found, arguments.against))
            status = int(not found or any(change.is_worse for change in found))
        for reason in dict.fromkeys(reason for result in results for reason in result.refused):
            console.print(f"not measured: {reason}", style="dim", highlight=False)
        report["results"] = [
            {"work": dataclasses.asdict(result.work), "form": result.form}
            | {"timings": [dataclasses.asdict(one) for one in result.timings]}
            | {"refused": result.refused}
            for result in results
        ]
        draw = draw_ratios
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{arguments.suite}.json").write_text(json.dumps(report, indent=1))
        if draw is not None:
            draw(report, arguments.out / f"{arguments.suite}.png")
        console.print(f"wrote {arguments.out}")
    return status


if __name__ == "__main__":
    sys.exit(main())
