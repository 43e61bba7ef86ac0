"""Damages files at random, and sees what a reader makes of them: for the tests of every format.

`python -m tests.weights.mutate MODULE:FUNCTION FILE SEED COUNT` runs a reader on mutations of a
file, in a process of its own with bounded memory, and prints the figures as JSON. Linux only.
"""

import dataclasses
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MAX_BYTES = 2**31
MAX_SECONDS = 10
_EDGE = 2**14  # bytes at either end, where formats keep their headers and directories
_LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Yields `count` damaged copies of the data; the same seed gives the same ones.

    Flipped bits, a cut-off end, a piece left out, doubled, moved or overwritten by noise, and
    numbers of 1 to 8 bytes overwritten by extreme ones or changed by a little, in both byte orders.
    Two thirds of the places lie near an end of the data.
    """
    rng = random.Random(seed)
    kinds = (_flip, _truncate, _splice, _overwrite, _edit_number)
    for index in range(count):
        yield kinds[index % len(kinds)](data, rng)


def _place(data: bytes, rng: random.Random) -> int:
    edge = min(len(data), _EDGE)
    where = rng.randrange(3)
    if where == 0:
        return rng.randrange(len(data))
    near = rng.randrange(edge)
    return near if where == 1 else len(data) - 1 - near


def _flip(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        damaged[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _splice(data: bytes, rng: random.Random) -> bytes:
    """Leaves a piece out, doubles it, or puts it in another place."""
    start, target = _place(data, rng), _place(data, rng)
    end = start + rng.choice((1, 4, 8, 64, 4096, len(data) // 2))
    piece = data[start:end]
    rest = data[:start] + data[end:]
    kind = rng.randrange(3)
    if kind == 0:
        return rest
    base = data if kind == 1 else rest
    return base[:target] + piece + base[target:]


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    noise = rng.randbytes(min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - start))
    return data[:start] + noise + data[start + len(noise) :]


def _edit_number(data: bytes, rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    start = min(_place(data, rng), max(0, len(data) - width))
    order = rng.choice(("little", "little", "big"))
    old = int.from_bytes(data[start : start + width], order)
    new = rng.choice((*_LENGTHS, old + 1, old - 1, old * 2, old // 2, old + 2**16, -old))
    raw = (new % 2 ** (8 * width)).to_bytes(width, order)
    return data[:start] + raw + data[start + width :]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What became of the mutations.

    Attributes:
      count, loaded, refused: mutations, those that were read, those that ended in a ValueError.
      failures: what ended otherwise: the mutation's number and the error.
      acts: audit events of the reader that would be those of a running payload.
      seconds, peak_bytes: of the slowest, of the whole process.
    """

    count: int
    loaded: int
    refused: int
    failures: list[str]
    acts: list[str]
    seconds: float
    peak_bytes: int

    def check(self) -> None:
        """Asserts that each was read or refused, in bounded time and memory, and nothing ran."""
        assert not self.failures, self.failures
        assert not self.acts, self.acts
        assert self.loaded + self.refused == self.count
        assert self.seconds < MAX_SECONDS
        assert self.peak_bytes < MAX_BYTES


# What no reader has a reason to do. Files that are opened to be read are its business.
_ACTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
    "os.remove", "os.rename", "os.mkdir", "shutil.", "socket.", "ctypes.", "exec", "compile",
    "pickle.find_class", "import",
)  # fmt: skip


def _touch(result: object) -> None:
    """Reads every element: a lazy array may lie outside its file."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        for item in result:
            _touch(item)
    elif isinstance(result, np.ndarray):
        result.copy()


def run_here(reader: Callable[[str], object], path: Path, seed: int, count: int) -> Figures:
    """The figures of `reader` on mutations of the file, in this process; its memory gets bounded.

    The undamaged file is read first, so that the modules a reader needs are there.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    data = path.read_bytes()
    _touch(reader(str(path)))
    acts: list[str] = []
    watching = False

    def watch(event: str, args: tuple) -> None:
        is_write = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if watching and (event.startswith(_ACTS) or is_write):
            acts.append(f"{event} {args!r}"[:200])

    sys.addaudithook(watch)
    loaded = refused = 0
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index, damaged in enumerate(mutations(data, seed, count)):
            file = Path(folder, path.name)
            file.write_bytes(damaged)
            watching, start = True, time.perf_counter()
            try:
                _touch(reader(str(file)))
                loaded += 1
            except ValueError:
                refused += 1
            except BaseException as error:
                failures.append(f"mutation {index} of seed {seed}: {error!r}"[:300])
            watching = False
            slowest = max(slowest, time.perf_counter() - start)
            file.unlink()  # the next is a new file: arrays may still map this one
    # Of this process alone: getrusage counts what its parent had when it was started.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return Figures(count, loaded, refused, failures, acts, slowest, peak)


def attack(reader: str, path: Path, seed: int, count: int) -> Figures:
    """The figures of a reader, "module:function", in a process of its own."""
    command = [sys.executable, "-m", "tests.weights.mutate", reader, str(path), str(seed)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(count)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return Figures(**json.loads(result.stdout))


def main(reader: str, path: str, seed: str, count: str) -> None:
    module, function = reader.split(":")
    figures = run_here(
        getattr(importlib.import_module(module), function), Path(path), int(seed), int(count)
    )
    print(json.dumps(dataclasses.asdict(figures)))


if __name__ == "__main__":
    main(*sys.argv[1:])
