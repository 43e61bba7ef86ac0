"""A run's directory: one process at a time, and one config for good."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator

from vit_jax.config import TrainConfig, check_resumable, load_config, to_dict
from vit_jax.training.records import read_rows, write_atomically

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PLOTS = "plots"
_LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the directory if need be and holds it for this process alone.

    The system lets go of the lock with the process, however that ends.

    Raises:
      ValueError: another process trains there, or the directory cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"cannot use {workdir} as a work directory: {error.strerror}; wanted a directory that "
            "can be written, see --workdir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode() or "unknown"
            raise ValueError(
                f"another process (pid {holder}) is training in {workdir}: wait for it to end, or "
                "give another --workdir"
            ) from None
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk; the pid is only told to a second process
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def check_config(config: TrainConfig, workdir: pathlib.Path) -> None:
    """Refuses a work directory of a run that this config would not repeat.

    Raises:
      ValueError: naming the fields that differ; or there are checkpoints and no config.
    """
    path, checkpoints = workdir / CONFIG_FILE, workdir / CHECKPOINTS
    has_checkpoints = checkpoints.is_dir() and any(checkpoints.iterdir())
    if path.exists():
        # A run that failed before its first row has nothing to lose: its config is replaced.
        if has_checkpoints or read_rows(workdir / METRICS_FILE):
            check_resumable(load_config(path), config)
    elif has_checkpoints:
        raise ValueError(
            f"{workdir} holds checkpoints but no {CONFIG_FILE}, so that nobody can tell whose they "
            "are: put the file back, or give another --workdir"
        )


def store_config(config: TrainConfig, workdir: pathlib.Path) -> None:
    """Writes config.json, whole or not at all."""
    write_atomically(workdir / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")
