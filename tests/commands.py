"""`vit-jax` and `train.py` as a user types them, run in this process.

What only a process shows (exit codes of signals, what is imported, a kill) needs one of its own.
"""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from unittest import mock

import jax

from vit_jax import cli


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
