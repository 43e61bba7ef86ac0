"""Runs what can be run of one page, in the current directory and in this process.

The Python blocks share one namespace, and functions of theirs that are named `test_...` are called.
Bash runs the shell blocks; what they start of this project's programs runs in this process too.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests import commands
from tests.docs.blocks import PYTHON, SHELL, Block, read_blocks

# In place of `python` and `vit-jax`: what another program would do, this one asks the tests for.
_ASKING = f"""#!{sys.executable} -IS
import json, os, socket, sys
words = sys.argv[1:]
if sys.argv[0].endswith("python"):
    if words[:1] != ["train.py"] or not os.path.exists("train.py"):
        os.execv({sys.executable!r}, [{sys.executable!r}, *words])
    words[0] = "train"
with socket.socket(fileno=int(os.environ["TESTS_SOCKET"])) as tests:
    tests.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    ended = json.loads(tests.makefile().readline())
sys.stdout.write(ended["out"])
sys.stderr.write(ended["err"])
sys.exit(ended["status"])
"""


def run_page(page: pathlib.Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with _left_as_it_was():
        for block in read_blocks(page):
            start = _processor_seconds()
            if block.marker == "file":
                pathlib.Path(block.said).write_text(block.code)
            elif block.marker == "not run":
                continue
            elif block.language in PYTHON:
                _run_python(block, namespace)
            elif block.language in SHELL:
                _run_shell(block)
            else:
                continue
            seconds = _processor_seconds() - start
            print(f"{block.place}: {seconds:.1f} s of processor time", flush=True)


def _processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])


@contextlib.contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Blocks import what is in the current directory, and nothing of theirs is left."""
    here, modules = os.getcwd(), set(sys.modules)
    with (
        commands.unchanged_process(),
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "path", [here, *sys.path]),
    ):
        try:
            yield
        finally:
            os.chdir(here)
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", None)).startswith(here):
                    del sys.modules[name]


def _run_python(block: Block, namespace: dict[str, Any]) -> None:
    importlib.invalidate_caches()  # an earlier block may have written a module
    if block.marker == "given":
        exec(compile(block.said, f"{block.place} (given)", "exec"), namespace)
    before = dict(namespace)
    # Empty lines before it, so that a traceback names the line of the page.
    exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_") and value is not before.get(name):
            value()


def write_programs(directory: pathlib.Path) -> None:
    """`python` and `vit-jax` for shell blocks."""
    directory.mkdir(parents=True)
    for name in ("python", "vit-jax"):
        (directory / name).write_text(_ASKING)
        (directory / name).chmod(0o755)


def _run_shell(block: Block) -> None:
    code = block.said if block.marker == "run as" else block.code
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code],
            env=os.environ | {"TESTS_SOCKET": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        for line in ours.makefile():  # up to the end of bash and of all that it started
            ours.sendall(_answer(*json.loads(line)))
    if (status := process.wait()) != 0:
        raise RuntimeError(f"{block.place}: status {status} of\n{code}")


def _answer(words: list[str], directory: str, environment: dict[str, str]) -> bytes:
    with contextlib.chdir(directory), mock.patch.dict(os.environ, environment, clear=True):
        try:
            ended = commands.run(*words)
        except Exception:  # a bug's, which ends a process too
            ended = commands.Ended(1, "", traceback.format_exc())
    return json.dumps(dataclasses.asdict(ended)).encode() + b"\n"
