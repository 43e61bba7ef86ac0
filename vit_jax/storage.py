"""Where the files of a run lie: a disk, or object storage such as gs://BUCKET/DIR.

On object storage each write is a whole object, which appears at once or not at all; nothing can be
added to one, and nobody can hold it. Paths of both kinds have the methods of `pathlib.Path`.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Any, cast

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


def read_bytes(path: pathlib.Path) -> bytes:
    """The bytes of a regular file.

    Raises:
      OSError: it cannot be read, or is of another kind: a pipe would be waited for without end.
    """
    if is_remote(path):
        return path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    with open(descriptor, "rb") as file:
        return file.read()


def check_regular(path: pathlib.Path) -> None:
    """Refuses, for those who read a file or folder, what is or holds anything but these.

    Raises:
      OSError: a pipe, a device or a socket, at any depth.
    """
    if is_remote(path):
        return
    for entry in (path, *path.rglob("*")):
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(entry))


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises:
      ValueError: it is not JSON in UTF-8, or nested too deeply.
      OSError: as `read_bytes`.
    """
    try:
        return json.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def output_path(path: pathlib.Path) -> pathlib.Path:
    """Where an output goes: links are followed, also those that lead to nothing yet.

    Raises:
      ValueError: there is neither nothing, nor a file, nor a folder: a device, a pipe; or the path
        begins with ~, which would make a folder of that name.
    """
    if os.fspath(path).startswith("~"):
        raise ValueError(
            f"{str(path)!r}: wanted a whole path; a shell expands ~, where a word begins with it"
        )
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise ValueError(f"{str(path)!r} is no regular file: give another path to write to")
    return target


def check_output(path: pathlib.Path, kinds: Mapping[str, bytes]) -> None:
    """Refuses to write over a file of another kind.

    Args:
      path: of the file to write.
      kinds: suffixes, and how files of each begin.

    Raises:
      ValueError: the path has another suffix, or there is something else.
    """
    begins = kinds.get(path.suffix.lower())
    if begins is None:
        raise ValueError(f"{str(path)!r}: wanted a file {', '.join(kinds)}")
    if is_remote(path):
        return
    target = output_path(path)
    if target.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: give the path of a file to write")
    if target.exists():
        with target.open("rb") as file:
            head = file.read(len(begins))
        if head and head.lower() != begins.lower():
            raise ValueError(
                f"{str(path)!r} is there, and no {path.suffix} file: give another path to write to"
            )


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one.

    Raises:
      ValueError: see `output_path`.
      OSError: it cannot be written; nothing is left of it.
    """
    if is_remote(path):
        with _as_os_error(path):
            path.write_bytes(data)
        return
    path = output_path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        told = system_error(error, path) or error
        raise told from (None if told is error else error)


def system_error(error: Exception, path: pathlib.Path) -> OSError | None:
    """What the system said, with the path; also where a library made an error of its own of it."""
    if isinstance(error, OSError):
        if error.filename is not None or error.errno is None:
            return error
        return OSError(error.errno, error.strerror, os.fspath(path))
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(code) in str(error):
            return OSError(code, os.strerror(code), os.fspath(path))
    return None


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
