"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a place beside `path` to write to, which then takes its place; a crash leaves none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    old = path.with_name(f"{partial.name}.old")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():  # a folder does not take the place of a full one
            os.replace(path, old)
        os.replace(partial, path)
        if old.is_dir():
            shutil.rmtree(old)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
