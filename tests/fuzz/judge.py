"""Runs a case in this process, and says what is wrong with how it ended."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from tests.commands import unchanged_process
from tests.fuzz.cases import Case
from vit_jax import cli

LIMIT = 180  # seconds: of a search for faults on a machine in use, which takes 20 by itself
LONGEST = 2_020  # characters of an error, as `vit_jax.cli.errors` cuts them
_INTERRUPTED = 128 + signal.SIGINT
_STOPPED = 128 + signal.SIGTERM  # runs that would be long are stopped by the fuzzer
# Not all images read, or whole; a difference; it does not fit.
_MAY_BE_ONE = ("predict", "embed", "data", "parity", "plan")
_TRAIN = ("train", "finetune")


class Hung(BaseException):
    """The case did not end in time."""


class Ended:
    """How a case ended.

    Attributes:
      status: None where it hung.
      out, err: what it wrote to the descriptors 1 and 2.
      seconds: that it took.
    """

    def __init__(self, status: object, out: str, err: str, seconds: float) -> None:
        self.status, self.out, self.err, self.seconds = status, out, err, seconds


def run(case: Case, place: pathlib.Path) -> Ended:
    """Runs a case in the folder `place`."""
    began = time.monotonic()
    status: object = None
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            with _inside(place), _captured(out, err), unchanged_process(), _alarm(place):
                try:
                    status = cli.main(list(map(str, case.arguments)))
                except SystemExit as end:
                    status = end.code
        except Hung:
            status = None
        text = [_read(file) for file in (out, err)]
    if (place / ".hung").exists():
        (place / ".hung").unlink()
        status = None
    return Ended(status, *text, time.monotonic() - began)


def _read(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextlib.contextmanager
def _inside(place: pathlib.Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _captured(*files) -> Iterator[None]:
    """What this process writes to descriptors 1 and 2, also from C, goes to these files."""
    names = ("stdout", "stderr")
    streams = [getattr(sys, name) for name in names]
    opened = [open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2)]  # noqa: SIM115
    saved = [os.dup(number) for number in (1, 2)]
    try:
        for number, name, file, stream in zip((1, 2), names, files, opened, strict=True):
            os.dup2(file.fileno(), number)
            setattr(sys, name, stream)
        yield
    finally:
        for number, name, stream, old in zip((1, 2), names, streams, saved, strict=True):
            with contextlib.suppress(OSError, ValueError):
                getattr(sys, name).flush()
            setattr(sys, name, stream)
            os.dup2(old, number)
            os.close(old)


@contextlib.contextmanager
def _alarm(place: pathlib.Path) -> Iterator[None]:
    def hang(*_: object) -> None:
        (place / ".hung").touch()
        raise Hung

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(place: pathlib.Path) -> dict[str, str]:
    """{path: what is there} of all but folders."""
    found = {}
    for directory, folders, files in os.walk(place):
        for name in [*files, *folders]:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                what = "link to " + os.readlink(path)
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    what = hashlib.file_digest(file, "sha256").hexdigest()
            elif stat.S_ISDIR(mode):
                continue
            else:
                what = str(stat.S_IFMT(mode))
            found[os.path.relpath(path, place)] = what
    return found


def faults(
    case: Case, ended: Ended, before: dict[str, str], place: pathlib.Path, whole: pathlib.Path
) -> list[str]:
    """What is wrong, a line each; nothing where the promises hold.

    Args:
      case, ended: it, and how it ended.
      before: `snapshot` of its folder before it ran.
      place: its folder.
      whole: the undamaged inputs.
    """
    found = [*_wrong_end(case, ended), *_wrong_files(case, ended, before, place)]
    if ended.status == 0 and not found:
        found += _wrong_result(case, ended, place)
    if ended.status == 0 and case.continues and not found:
        found += _lost(case.continues, ended, place, whole)
    if left := multiprocessing.active_children():
        found.append(f"left running: {left}")
    return found


def _wrong_end(case: Case, ended: Ended) -> Iterator[str]:
    command = case.arguments[0] if case.arguments else ""
    if ended.status is None:
        yield f"hung for {LIMIT} seconds"
        return
    if "Traceback (most recent call last)" in ended.out + ended.err:
        yield "a traceback"
    allowed = {0, 2, *([_STOPPED] if command in _TRAIN else [])}
    if "raise KeyboardInterrupt" in case.notes:  # as if by Ctrl-C
        allowed.add(_INTERRUPTED)
    if command in _MAY_BE_ONE:
        allowed.add(1)
    if ended.status not in allowed:
        yield f"status {ended.status!r}"
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.status == 2 and len(errors) != 1:
        yield f"status 2 with {len(errors)} lines of error"
    if ended.status != 2 and errors:
        yield f"status {ended.status} with an error"
    yield from (f"an error of {len(e)} characters" for e in errors if len(e) > LONGEST)
    if errors and not errors[0].removeprefix("error: ").strip():
        yield "an error without words"
    strange = sorted({c for c in ended.err if not c.isprintable()} - set("\n\r\t"))
    if strange:
        yield f"unprintable in standard error: {strange}"


def _wrong_files(
    case: Case, ended: Ended, before: dict[str, str], place: pathlib.Path
) -> Iterator[str]:
    after = snapshot(place)
    outputs = [os.path.normpath(word) for word in case.outputs]
    if case.arguments and case.arguments[0] in _TRAIN:
        outputs.append("runs")
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path):
            continue
        name = os.path.basename(path)
        if path in after and ("tmp" in path.lower() or name.startswith(".")):
            if name != ".lock":
                yield f"left over: {path}"
            continue
        is_output = any(_is_below(path, output) for output in outputs)
        if path in before and not is_output:
            yield f"changed or removed: {path}"
        elif path not in before and not is_output and not _is_named(path, case.arguments):
            yield f"new beside the outputs: {path}"
        elif ended.status not in _written_with(case.arguments[0]):
            yield f"status {ended.status}, and {path} is changed or new"


def _written_with(command: str) -> tuple[object, ...]:
    """The statuses with which a command may have written its outputs."""
    if command in _TRAIN:
        return (0, 2, None, _STOPPED, _INTERRUPTED)
    return (0, 1) if command == "embed" else (0,)


def _is_below(path: str, folder: str) -> bool:
    return folder == "." or path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_named(path: str, arguments: list[str]) -> bool:
    ends = [os.path.normpath(word.partition("=")[2] or word) for word in arguments if word]
    return any(_is_below(path, end) or path == end + ".json" for end in ends if end != ".")


def _wrong_result(case: Case, ended: Ended, place: pathlib.Path) -> Iterator[str]:
    """Status 0, and the result is not there or not whole."""
    words, command = case.arguments, case.arguments[0]
    if {"--help", "-h", "--version"} & set(words):
        if not ended.out.strip():
            yield "status 0 without a help text"
        return
    try:
        if command in _TRAIN and "warning: " in ended.err:
            pass  # it says what is not whole
        elif command in _TRAIN:
            default = "runs/recipe" if command == "train" else "runs/images"
            _check_run(place / (case.outputs or [default])[-1])
        elif command == "plot" or (command == "embed" and case.outputs):
            _check_file(place / case.outputs[-1])
        elif command in ("convert", "export", "prepare"):
            line = ended.out.splitlines()[-1].split(" ", 1)[1].split(";")[0]
            _check_file(place / (case.outputs[-1] if "?" in line else line))
        elif not ended.out.strip():
            yield "status 0 without output"
        elif "--json" in words:
            many = command in ("predict", "embed")
            lines = ended.out.splitlines() if many else [ended.out]
            for line in lines:
                json.loads(line)
    except Exception as error:
        yield f"status 0, and the result cannot be read: {error!r}"[:300]


def _check_run(run: pathlib.Path) -> None:
    from vit_jax.config import load_config
    from vit_jax.training.records import read_rows

    config, rows = load_config(run / "config.json"), read_rows(run / "metrics.jsonl")
    last = rows[-1]
    if last["epoch"] != config.num_epochs:
        raise ValueError(f"the last row is of epoch {last['epoch']}")
    info = run / "checkpoints" / str(last["step"]) / "info" / "metadata"
    if json.loads(info.read_text())["step"] != last["step"]:
        raise ValueError("the last checkpoint is of another step")


def _check_file(path: pathlib.Path) -> None:
    """Raises unless a file, or folder, that a command wrote opens as what its name says."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        if not files:
            raise ValueError(f"{path.name} is empty")
        for file in files:
            if file.suffix in (".json", ".safetensors"):
                _check_file(file)
        return
    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load

        load(data)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            [arrays[name] for name in arrays]
    elif path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        from PIL import Image

        with Image.open(path) as image:
            image.load()
    elif not data:
        raise ValueError(f"{path.name} is empty")


def _lost(run: str, ended: Ended, place: pathlib.Path, whole: pathlib.Path) -> Iterator[str]:
    """A resume that ended well, and is neither the undamaged run nor says what was damaged."""
    said = [line for line in (ended.out + ended.err).splitlines() if line.startswith("warning")]
    if said:
        return
    reference = whole / ("folder_run" if run == "folder_run" else "run")
    got, want = _rows(place / run), _rows(reference)
    if got != want:
        yield f"other rows, and nothing said: {len(got)} of {len(want)}"
    elif run == "stopped" and _bonds(place / run) != _bonds(reference):
        yield "other parameters, and nothing said"


def _rows(run: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("images_per_second", None)
    return rows


def _bonds(run: pathlib.Path) -> dict:
    """What a run's last checkpoint says, with the hashes of its arrays."""
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    last = max(steps, key=lambda path: int(path.name))
    return json.loads((last / "info" / "metadata").read_text())
