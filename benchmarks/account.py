"""Where the time of a training step goes, operation by operation, beside the machine's limits.

    python -m benchmarks.account [--only GLOB] [--repeats 4] [--out DIR]

The step of each workload of `benchmarks.run --suite cpu` is run under JAX's profiler, and the time
of each instruction of the compiled program is put to what it does. Beside it stand its operations
(matmuls alone) and the bytes that it reads and writes, and the least time that the machine would
take for the larger of both at the speeds that were measured first: a large matmul, and x + 1 over
128 MiB in place. Of several steps the fastest is shown. On a CPU alone.
"""

import argparse
import collections
import dataclasses
import fnmatch
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import Workload
from benchmarks.contestants.vit_jax_ import TrainedStep, set_up
from benchmarks.run import CPU
from vit_jax.plan.flops import flops_of
from vit_jax.plan.hlo import Computation, HloProgram, Instruction
from vit_jax.plan.traffic import bytes_of

_CONTAINERS = ("while", "call", "conditional")
# What is inside tells what an instruction is for; the first that fits.
_KINDS: tuple[tuple[str, Callable[[Instruction], bool]], ...] = (
    (
        "matmuls of batches (attention)",
        lambda i: i.opcode == "dot" and bool(i.attribute("lhs_batch_dims")),
    ),
    ("matmuls with weights", lambda i: i.opcode in ("dot", "convolution")),
    ("random numbers (dropout)", lambda i: i.opcode == "shift-right-logical"),
    (
        "exp and erf (softmax, performer, GELU)",
        lambda i: i.opcode == "exponential" or "/erf" in i.attributes,
    ),
    ("gathers and scatters", lambda i: i.opcode in ("gather", "scatter")),
    ("sums (norms, biases, losses)", lambda i: i.opcode == "reduce"),
    (
        "other arithmetic",
        lambda i: (
            i.opcode in ("add", "subtract", "multiply", "divide", "select", "maximum", "rsqrt")
        ),
    ),
)
_REST = "copies and layout"


@dataclasses.dataclass
class Share:
    """Of a step, what went into one kind of operation.

    Attributes:
      seconds: measured.
      flops: of matmuls and convolutions.
      bytes: read and written.
      count: instructions that ran.
    """

    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0
    count: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Speeds that this machine reaches: operations and bytes a second."""

    flops: float
    bytes: float

    def seconds(self, share: Share) -> float:
        """The least time of what `share` computes and moves."""
        return max(share.flops / self.flops, share.bytes / self.bytes)


def measure_limits() -> Limits:
    """A float32 matmul of 2,048 rows and columns, and x + 1 over 128 MiB, in place."""
    square, long = jnp.ones((2048, 2048)), jnp.zeros(2**25)
    matmul, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1, donate_argnums=0)
    nbytes = long.nbytes

    def add_in_place() -> jax.Array:
        nonlocal long
        long = add(long)
        return long

    return Limits(
        2 * 2048**3 / _fastest(lambda: matmul(square, square)),
        2 * nbytes / _fastest(add_in_place),
    )


def _fastest(call: Callable[[], jax.Array]) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def _inside(
    program: HloProgram, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """What a fusion is made of, with what is inside of its calls."""
    called = instruction.attribute("calls" if instruction.opcode == "fusion" else "to_apply")
    computation = program.computations[called or ""]
    for part in computation.instructions.values():
        yield computation, part
        if part.opcode in ("fusion", "call"):
            yield from _inside(program, part)


def kind_of(program: HloProgram, instruction: Instruction) -> str:
    """What an instruction of a compiled step is for, by what is inside of it."""
    parts = [instruction]
    if instruction.opcode == "fusion":
        parts += [part for _, part in _inside(program, instruction)]
    return next((name for name, is_it in _KINDS if any(map(is_it, parts))), _REST)


def account(text: str, times: list[dict[str, float]]) -> dict[str, Share]:
    """Puts the seconds of instructions to what they do.

    Args:
      text: of the compiled program.
      times: of each run under the profiler, seconds of each instruction that ran, by name.

    Returns:
      The shares of the fastest run, the largest first.
    """
    program = HloProgram(text)
    seconds = min(times, key=lambda one: sum(one.values()))
    found: dict[str, Share] = collections.defaultdict(Share)
    for computation, instruction, runs in program.instructions():
        if computation.name in program.fused or instruction.name not in seconds:
            continue
        share = found[kind_of(program, instruction)]
        share.seconds += seconds[instruction.name]
        share.bytes += runs * bytes_of(program, computation, instruction)
        share.flops += runs * flops_of(computation, instruction)
        if instruction.opcode == "fusion":
            share.flops += runs * sum(flops_of(*part) for part in _inside(program, instruction))
        share.count += runs
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def profiled(step: TrainedStep, repeats: int) -> tuple[str, list[dict[str, float]], float]:
    """The program, the seconds of its instructions in each run, and of the fastest step alone."""
    text = step.compile().as_text() or ""
    alone = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        step()
        alone.append(time.perf_counter() - start)
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                step()
            times.append(_instruction_seconds(directory, HloProgram(text)))
    return text, times, min(alone)


def _instruction_seconds(directory: str, program: HloProgram) -> dict[str, float]:
    (path,) = pathlib.Path(directory).glob("**/*.xplane.pb")
    opcodes = {i.name: i.opcode for _, i, _ in program.instructions()}
    seconds: dict[str, float] = collections.defaultdict(float)
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                # A loop's own event spans those of what it runs.
                if opcodes.get(event.name, "while") in _CONTAINERS:
                    continue
                if any(name == "hlo_op" for name, _ in event.stats):
                    seconds[event.name] += event.duration_ns / 1e9
    return dict(seconds)


def table(work: Workload, shares: dict[str, Share], alone: float, limits: Limits) -> Table:
    """Shares of the step, and how far each is from what the machine can do."""
    shown = Table(
        title=f"{work.name}: {1e3 * alone:,.0f} ms a step, fastest, without the profiler",
        title_justify="left",
    )
    for name in ("operations", "count", "ms", "GFLOP", "GFLOP/s", "GB", "GB/s", "least, ms"):
        shown.add_column(name, justify="left" if name == "operations" else "right")
    total = Share()
    for name, share in shares.items():
        total.seconds += share.seconds
        total.flops += share.flops
        total.bytes += share.bytes
        total.count += share.count
        shown.add_row(name, *_cells(share, limits.seconds(share)))
    shown.add_section()
    least = sum(limits.seconds(share) for share in shares.values())
    shown.add_row("all", *_cells(total, least))
    return shown


def _cells(share: Share, least: float) -> Iterator[str]:
    yield f"{share.count:,}"
    yield f"{1e3 * share.seconds:,.0f}"
    yield f"{share.flops / 1e9:,.1f}" if share.flops else ""
    yield f"{share.flops / share.seconds / 1e9:,.0f}" if share.flops else ""
    yield f"{share.bytes / 1e9:,.2f}"
    yield f"{share.bytes / share.seconds / 1e9:,.1f}"
    yield f"{1e3 * least:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="where the time of a training step goes")
    parser.add_argument("--only", default="*", help="workloads whose name matches this glob")
    parser.add_argument("--repeats", type=int, default=4, help="steps under the profiler")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for account.json")
    arguments = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("the names of a profile are read as those of JAX's CPU client")
    works = [work for work in CPU if fnmatch.fnmatch(work.name, arguments.only)]
    if not works:
        parser.error(f"--only matches none of: {'; '.join(work.name for work in CPU)}")
    set_up()
    console = Console()
    if not console.is_terminal:  # a file has no width
        console.width = 160
    limits = measure_limits()
    console.print(
        f"limits: {limits.flops / 1e9:,.0f} GFLOP/s (float32 matmul), "
        f"{limits.bytes / 1e9:,.1f} GB/s (x + 1 in place)",
        highlight=False,
    )
    report: dict[str, Any] = {"limits": dataclasses.asdict(limits), "steps": []}
    for work in works:
        text, times, alone = profiled(TrainedStep(work), arguments.repeats)
        shares = account(text, times)
        console.print(table(work, shares, alone, limits))
        report["steps"].append(
            {"work": dataclasses.asdict(work), "seconds": alone}
            | {"shares": {name: dataclasses.asdict(share) for name, share in shares.items()}}
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "account.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
