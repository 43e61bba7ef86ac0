"""Files and folders that appear whole or not at all."""

import contextlib
import glob
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from vit_jax.storage import output_path, system_error


def check_new_folder(path: Path, ours: Collection[str]) -> None:
    """Refuses to put a folder in the place of anything but one as we write it.

    Args:
      path: where it is to be.
      ours: the names of what we write into it.

    Raises:
      ValueError: there is a file, or a folder that holds something else.
    """
    if path.is_dir():
        others = sorted({entry.name for entry in path.iterdir()}.difference(ours))
        if others:
            raise ValueError(f"{str(path)!r} holds {others[0]!r}: give the path of a new folder")
    elif path.exists():
        raise ValueError(f"{str(path)!r} is a file: give the path of a new folder")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a place beside `path` to write to, which then takes its place; a crash leaves none.

    Raises:
      ValueError: see `output_path`.
      OSError: it cannot be written, whatever a library makes of that.
    """
    path = output_path(path)
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
    except Exception as error:
        told = system_error(error, path)
        if told in (None, error):
            raise
        raise told from error
    finally:
        for left in path.parent.glob(f"{glob.escape(partial.name)}*"):  # Orbax adds to the name
            if left == old:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
