"""`vit-jax` and `train.py` as a user types them, run in this process.

What only a process shows (exit codes of signals, what is imported, a kill) needs one: `run_alone`.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from unittest import mock

import jax

from tests.compilation import ROOT
from vit_jax import cli

# Settings of the tests' own JAX: XLA for TPUs, for one, does not start with flags of that for CPUs.
OF_JAX = ("JAX_", "XLA_")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(*arguments: str) -> Ended:
    """Runs `vit-jax ARGUMENTS...`; for `python train.py` the first one is "train"."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), unchanged_process():
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as end:  # argparse's way out
            status = end.code
    if not isinstance(status, int):  # sys.exit() and sys.exit("text")
        status = int(status is not None)
    return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Takes back what a command does to its process: JAX's settings, warnings, the allocator's."""
    before = dict(jax.config.values)
    with warnings.catch_warnings(), mock.patch("vit_jax.cli.train.keep_freed_memory"):
        try:
            yield
        finally:
            for name, value in before.items():
                if jax.config.values[name] != value:
                    jax.config.update(name, value)


def run_alone(
    *arguments: str,
    status: int = 0,
    stdin: str | None = None,
    cwd: pathlib.Path = ROOT,
    timeout: float | None = 120,
    variables: Mapping[str, str] | None = None,
    dropped: tuple[str, ...] = OF_JAX,
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS...` in a process of its own, and fails where it ends otherwise.

    Args:
      *arguments: of the interpreter.
      status: that it is to end with.
      stdin: what it reads.
      cwd: its directory.
      timeout: in seconds.
      variables: of its environment, added to those of this process that are not dropped.
      dropped: what the names of variables begin with that it does not get from this process.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    ended = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        cwd=cwd,
        env=kept | dict(variables or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == status, ended.stderr
    return ended
