"""`python -m tests.fuzz.kills --points 40 --seed 0`: commands that are killed at file operations.

Each is a process that kills itself right before its n-th operation on a file of its folder (a file
opened for writing, a folder made, something renamed or removed), or some milliseconds after it,
amid what C++ writes. Then no half-written output may be taken for whole, and the same command again
has to end with the result of one that was not killed.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import tests.fuzz.environment  # noqa: F401 - before JAX is imported
from tests import compilation
from tests.fuzz import corpus, judge
from tests.fuzz.cases import IMAGE, Case, Out
from tests.training.runs import ROOT, shared_programs

_TRAIN = ["train", "--config", corpus.RECIPE, "--workdir"]
# {what is killed: (command line, whether an earlier output is there, share of the points)}
PLANS: dict[str, tuple[list[str], bool, int]] = {
    "train": ([*_TRAIN, Out("new")], False, 10),
    "resume": ([*_TRAIN, Out("stopped")], False, 10),
    "convert .safetensors": (["convert", "folder_run", Out("out.safetensors")], True, 2),
    "convert .pth": (["convert", "folder_run", Out("out.pth")], False, 2),
    "convert google": (["convert", "folder_run", Out("out.npz"), "--to", "google"], True, 2),
    "convert hf": (["convert", "folder_run", Out("hf_new"), "--to", "hf"], True, 3),
    "convert orbax": (["convert", "folder_run", Out("orbax_new"), "--to", "orbax"], True, 3),
    "export": (["export", "folder_run", Out("exported"), "--platforms", "cpu"], True, 5),
    "prepare": (
        ["prepare", "cifar10", "--archive", "cifar-10-binary.tar.gz", "--data-dir", Out("new")],
        False,
        5,
    ),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def child(at: int, delay_ms: int, arguments: list[str]) -> int:
    """Runs a command in this process, which dies at its operation number `at` (0: it lives)."""
    here, count = os.getcwd() + os.sep, 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            is_write = isinstance(args[2], int) and args[2] & _WRITING
        else:
            is_write = event in _EVENTS
        if not is_write or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(here):
            return
        count += 1
        if count == at and not delay_ms:
            os.kill(os.getpid(), signal.SIGKILL)
        elif count == at:
            threading.Thread(target=_die_after, args=(delay_ms / 1000,), daemon=True).start()

    compilation.write_whole_entries()
    from vit_jax import cli

    sys.addaudithook(hook)
    status = cli.main(arguments)
    print(f"operations {count}")
    return status


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def start(place: pathlib.Path, at: int, delay_ms: int, arguments: list[str]) -> tuple[int, str]:
    """Runs `child` as a process in `place`; its status and output."""
    command = [sys.executable, "-m", "tests.fuzz.kills", "--child", str(at), str(delay_ms)]
    ended = subprocess.run(
        [*command, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return ended.returncode, ended.stdout + ended.stderr


def faults_of(
    name: str, at: int, delay_ms: int, inputs: pathlib.Path, reference: dict[str, str]
) -> tuple[list[str], bool]:
    """Kills a command once and repeats it.

    Args:
      name: of `PLANS`.
      at, delay_ms: the operation, and the time after it.
      inputs: the folder as it is before the command.
      reference: of the outputs, `content`, of a command that was not killed.

    Returns:
      What is wrong, and whether the process was killed (it may have ended before).
    """
    arguments, _, _ = PLANS[name]
    (output,) = (word for word in arguments if isinstance(word, Out))
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        place = shutil.copytree(inputs, pathlib.Path(scratch) / "inside")
        old = content(place, output)
        status, text = start(place, at, delay_ms, arguments)
        if status not in (0, -signal.SIGKILL):
            return [f"status {status}: {text[-500:]}"], False
        found = []
        is_run = arguments[0] == "train"
        left = content(place, output)
        if is_run:
            found += list(_unreadable(place, output))
        elif left not in ({}, old, reference) and not _is_between(left, old, reference):
            found.append(f"neither the old output nor the new one: {sorted(left)}")
        if is_run:
            ended = judge.run(Case(arguments), place)
            again, text = ended.status, ended.out + ended.err
        else:  # an exported program states where in this process it was traced
            again, text = start(place, 0, 0, arguments)
        if again != 0 and not (arguments[0] == "prepare" and left == reference):
            found.append(f"repeated, it has status {again}: {text[-500:]}")
        elif content(place, output) != reference:
            found.append("repeated, it has another result")
        if "Traceback" in text:
            found.append(f"repeated, it has a traceback: {text[-500:]}")
        return found, status != 0


def _is_between(left: dict[str, str], old: dict[str, str], new: dict[str, str]) -> bool:
    """Whether each file is whole, the old one or the new: of outputs that are more than one."""
    return all(what in (old.get(path), new.get(path)) for path, what in left.items())


def _unreadable(place: pathlib.Path, run: str) -> Iterator[str]:
    """A run that was killed predicts, or says in one line why not."""
    case = Case(["predict", run, IMAGE, "--json"])
    ended = judge.run(case, place)
    yield from judge._wrong_end(case, ended)


def content(place: pathlib.Path, output: str) -> dict[str, str]:
    """What a command wrote, by path: digests; of a run its rows and what binds its arrays."""
    path = place / output
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        last = {"bonds": json.dumps(judge._bonds(path))} if _steps(path) else {}
        return {"rows": json.dumps(judge._rows(path)), **last}
    beside = (path, path.with_name(path.name + ".json"))
    found = {}
    for name, what in judge.snapshot(place).items():
        is_partial = any(part.startswith(".") for part in pathlib.Path(name).parts)
        if not is_partial and any(judge._is_below(name, p.name) for p in beside):
            found[name] = what
    return _stable(found)


def _steps(run: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]


def _stable(found: dict[str, str]) -> dict[str, str]:
    """Without what differs between two equal outputs of Orbax: names and bytes with times."""
    if any("ocdbt" in name for name in found):
        return {name: "" for name in found if "/d/" not in name and "ocdbt.process" not in name}
    return found


def main() -> int:
    """Kills and repeats; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--points", type=int, default=42)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(PLANS))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    shares = sum(share for _, _, share in PLANS.values())
    bad, figures = 0, collections.defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch, shared_programs():
        whole = corpus.make(pathlib.Path(scratch) / "whole")
        for name, (arguments, has_old, share) in PLANS.items():
            if options.only not in (None, name):
                continue
            inputs = shutil.copytree(whole, pathlib.Path(scratch) / "inputs")
            (output,) = (word for word in arguments if isinstance(word, Out))
            if has_old:  # of another model: the same command, other weights
                earlier = [word if word != "folder_run" else "run" for word in arguments]
                assert judge.run(Case(earlier), inputs).status == 0
            done = shutil.copytree(inputs, pathlib.Path(scratch) / "done")
            status, text = start(done, 0, 0, arguments)
            assert status == 0, text
            reference = content(done, output)
            operations = int(text.split("operations ")[1].split()[0])
            points = max(1, round(options.points * share / shares))
            for number in range(points):
                at = 1 + int((number + rng.random()) * operations / points)
                delay_ms = rng.choice((0, 0, 1, 5, 20))
                began = time.monotonic()
                faults, killed = faults_of(name, at, delay_ms, inputs, reference)
                figures[name].append(killed)
                bad += bool(faults)
                print(
                    f"{name}: operation {at} of {operations}, {delay_ms} ms after: "
                    f"{'; '.join(faults) or 'the same result'}{'' if killed else ' (not killed)'}, "
                    f"{time.monotonic() - began:.0f} s",
                    flush=True,
                )
            for folder in (inputs, done):
                shutil.rmtree(folder)
    for name, killed in figures.items():
        print(f"{name:<22} {len(killed)} points, {sum(killed)} killed")
    total = sum(map(len, figures.values()))
    print(f"{total} points, {bad} with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
    sys.exit(main())
