"""Files of a tar archive, in memory: nothing is unpacked to disk."""

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"


def read_tar_files(
    archive: str | os.PathLike[str],
    choose: Callable[[str], tuple[str, int] | None],
    *,
    most_bytes: int,
    wanted: str,
) -> dict[str, bytes]:
    """The contents of the chosen files of a .tar or .tar.gz.

    No name leads to a path of the disk, links and devices are left out, and so are sparse files,
    whose zeros the archive does not hold; it is unpacked to `most_bytes` at the most, whatever its
    headers say.

    Args:
        archive: the path.
        choose: of a member's path the key of the result and the most bytes that it may have, or
            None to leave it out.
        most_bytes: of the whole archive, unpacked.
        wanted: what errors say was wanted.

    Raises:
        ValueError: no such file, no tar archive, one that is damaged, cut off or larger, or a
            chosen file that appears twice or is larger.
    """
    archive = Path(archive).expanduser()
    if not archive.is_file():
        raise ValueError(f"there is no archive {archive}; {wanted}")
    files: dict[str, bytes] = {}
    try:
        with _opened(archive) as unpacked:
            stream: Any = _AtMost(unpacked, most_bytes)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    chosen = choose(info.name)
                    if chosen is None or not info.isfile() or info.issparse():
                        continue
                    key, most = chosen
                    if info.size > most or key in files:
                        raise ValueError(
                            f"{archive}: {key} appears twice or is larger than the {most} bytes "
                            f"that it may have; {wanted}"
                        )
                    file = tar.extractfile(info)
                    assert file is not None, "a regular file has contents"
                    files[key] = file.read()
            # gzip's checksum comes last, after what tar reads.
            while stream.read(_CHUNK_BYTES):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{archive} is damaged, cut off, or no tar archive ({error}); {wanted}"
        ) from error
    return files


def _opened(archive: Path) -> Any:
    with archive.open("rb") as file:
        is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.open(archive) if is_gzip else archive.open("rb")


class _AtMost:
    """A file that refuses to be read beyond its first bytes."""

    def __init__(self, file: Any, most: int) -> None:
        self._file, self._most = file, most

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._most + 1 - self.tell()))
        self._check(self.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise tarfile.ReadError(f"it unpacks to more than {self._most:,} bytes")
