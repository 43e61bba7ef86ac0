"""Where the files of a run lie: a disk, or object storage such as gs://BUCKET/DIR.

On object storage each write is a whole object, which appears at once or not at all; nothing can be
added to one, and nobody can hold it. Paths of both kinds have the methods of `pathlib.Path`.
"""

import contextlib
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import cast

from etils import epath

# What etils reaches through fsspec, and the package that each needs.
_REMOTE = {"gs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path names object storage."""
    return "://" in os.fspath(path)


def run_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a run's files: of a disk, `~` opened, or of object storage.

    Raises:
      ValueError: object storage that is not known, or whose package is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return pathlib.Path(text).expanduser()
    scheme = text.split(":")[0]
    if scheme not in _REMOTE:
        raise ValueError(
            f"{text}: wanted a directory, or {' or '.join(f'{name}://' for name in _REMOTE)}"
        )
    try:
        __import__(_REMOTE[scheme])
    except ModuleNotFoundError:
        raise ValueError(
            f"{text}: {scheme}:// needs the package {_REMOTE[scheme]}, which is not installed"
        ) from None
    logging.getLogger(_REMOTE[scheme]).setLevel(logging.ERROR)
    return cast(pathlib.Path, epath.Path(text))


def absolute(path: pathlib.Path) -> pathlib.Path:
    """The path as Orbax wants it."""
    return path if is_remote(path) else path.absolute()


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one.

    Raises:
      OSError: it cannot be written.
    """
    if is_remote(path):
        with _as_os_error(path):
            path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_tree(path: pathlib.Path) -> None:
    """Removes a directory with all in it, if it is there and as far as that can be done."""
    if is_remote(path):
        with _as_os_error(path):
            epath.Path(path).rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _as_os_error(path: pathlib.Path) -> Iterator[None]:
    """The libraries of object storage have errors of their own kinds."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise OSError(errno.EIO, text or type(error).__name__, os.fspath(path)) from error
