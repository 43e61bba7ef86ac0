"""All figures of a GPU in one call of some minutes, for the day one is at hand.

    python -m benchmarks.on_gpu --out DIR [--minutes 12] [--only PART ...] [--small]

Parts, each in a process of its own:
  numbers: forward and gradients of tiny models beside the fixtures of `tests/golden`, in float32
    with all digits, in float32 as the device likes it, and in bfloat16; the gradient of the bias of
    q, k and v through cuDNN's attention over an odd number of tokens, with jit and pmap.
  steps: a train step of ViT-S and ViT-B, bfloat16, batch 256: with cuDNN's attention, with the
    plain one, PyTorch eager, timm compiled.
  flagship: `configs/cifar100_vit.py` on made-up images: steps a second and the host's share with 1
    and 16 steps a dispatch, images on the host and on the device; the cost of
    `training.deterministic`.
  resume: a deterministic run that is killed, terminated or fails, and goes on: the same bits; 200
    steps in bfloat16 with cuDNN's attention beside the plain one.
  start: seconds from the command to its first step, without and with a cache of programs.
  t2t: a train step of T2T-ViT-14, bfloat16, batch 128.
  evaluate: images a second.
  export: for this device, and how far it is from the live model.

Each part gets its share of the time that is left; one that takes longer is cut off, one that fails
is told, and the others go on. DIR/PART.json is replaced, whole, after each figure: what a part
found stays. `--small` runs all of them in tiny sizes, on a CPU too.

Where grain is missing, `flagship`, `resume`, `start` and `evaluate` say so; where PyTorch or timm
are, their rows do. A machine without a network takes grain as wheels. Where there is one, for its
Python 3.12:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 \\
        --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -d wheels \\
        grain array-record portpicker importlib_resources

and on the machine with the GPU:

    python -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python -m benchmarks.on_gpu --out out
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from benchmarks.gpu_parts import PARTS, Part
from vit_jax.weights.atomic import whole

ROOT = pathlib.Path(__file__).parents[1]
Result = dict[str, Any]


def missing(modules: Collection[str]) -> str:
    """Which of the modules are not installed; empty: none."""
    return ", ".join(name for name in modules if importlib.util.find_spec(name) is None)


def run_part(name: str, command: Sequence[str], limit: float, path: pathlib.Path) -> Result:
    """Runs a command that prints figures, one JSON object a line; `path` has them at once.

    Args:
      name: of the part.
      command: a process, which is killed with all that it started.
      limit: seconds.
      path: of a JSON file, replaced whole after each line.

    Returns:
      `status` is "done", or how it ended before; `said` the end of its messages then.
    """
    result: Result = {"part": name, "status": "running", "figures": {}}
    start, is_cut = time.monotonic(), threading.Event()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )

        assert process.stdout is not None

        def cut() -> None:
            is_cut.set()
            _kill(process.pid)

        timer = threading.Timer(limit, cut)
        timer.start()
        try:
            for line in process.stdout:
                if line.endswith("\n"):  # else it was killed within it
                    result["figures"] |= json.loads(line)
                    _write(result, path)
            process.wait()
        finally:
            timer.cancel()
            _kill(process.pid)
            process.wait()
            process.stdout.close()
        result["seconds"] = round(time.monotonic() - start, 1)
        result["status"] = "done"
        if is_cut.is_set():
            result["status"] = f"cut off after {limit:.0f} s"
        elif process.returncode:
            result["status"] = f"failed with status {process.returncode}"
        if result["status"] != "done":
            said.seek(0)
            result["said"] = said.read()[-2000:]
    _write(result, path)
    return result


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _write(result: Result, path: pathlib.Path) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def run_all(
    parts: Mapping[str, Part],
    command_of: Callable[[str], Sequence[str]],
    minutes: float,
    out: pathlib.Path,
) -> list[Result]:
    """Runs the parts, one after the other, within `minutes` in all, a line as each ends."""
    end, results = time.monotonic() + 60 * minutes, []
    present = {name: part for name, part in parts.items() if not missing(part.needs)}
    for name, part in parts.items():
        path = out / f"{name}.json"
        if lacks := missing(part.needs):
            result: Result = {"part": name, "status": f"not installed: {lacks}", "figures": {}}
            _write(result, path)
        else:
            shares = sum(other.share for other in present.values())
            limit = max(0.0, end - time.monotonic()) * part.share / shares
            result = run_part(name, command_of(name), limit, path)
            del present[name]
        print(f"{name}: {result['status']}, {result.get('seconds', 0)} s", flush=True)
        results.append(result)
    return results


def summary(results: Sequence[Result]) -> str:
    """All figures, a line each, with what was said where a part did not end well."""
    lines = []
    for result in results:
        lines.append(f"== {result['part']}: {result['status']}")
        lines += [f"{name}: {json.dumps(figure)}" for name, figure in result["figures"].items()]
        lines += result.get("said", "").splitlines()[-5:]
    return "\n".join(lines)


def _measure(name: str, small: bool) -> None:
    """The process of a part."""
    # Libraries print; the figures go where nothing else does.
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for found in PARTS[name].measure(small):
        print(json.dumps(found), file=figures, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="all figures of a GPU in some minutes")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for a JSON file a part")
    parser.add_argument("--minutes", type=float, default=12.0, help="in all, at most")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        _measure(arguments.part, arguments.small)
        return 0
    if arguments.out is None:
        parser.error("wanted --out DIR, a folder for a JSON file a part")
    # Several processes share one GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    small = ["--small"] if arguments.small else []
    if small:  # most of it is the compiler's time
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    results = run_all(
        {name: part for name, part in PARTS.items() if name in arguments.only},
        lambda name: [sys.executable, "-m", "benchmarks.on_gpu", "--part", name, *small],
        arguments.minutes,
        arguments.out,
    )
    print(summary(results))
    return int(any(result["status"] != "done" for result in results))


if __name__ == "__main__":
    sys.exit(main())
