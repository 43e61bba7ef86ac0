"""The directory of a zip file of stored (uncompressed) entries, read with distrust.

Python's `zipfile` believes what a directory says; here each entry's place is checked against the
file, against its own header and against the other entries, before anything is read.
Source: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3 (zip64).
"""

import dataclasses
import itertools
import mmap
import struct

MAX_ENTRIES = 200_000

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8


@dataclasses.dataclass(frozen=True)
class ZipEntry:
    """Where an entry's bytes lie in the file, and the CRC-32 the directory gives for them."""

    name: str
    header: int
    start: int
    size: int
    crc: int

    @property
    def end(self) -> int:
        return self.start + self.size


def read_directory(data: bytes | mmap.mmap) -> dict[str, ZipEntry]:
    """The entries by name, in the directory's order.

    Raises:
      ValueError: this is no whole zip file, or an entry is compressed, encrypted, named twice, not
        where the directory says, of another size than its header says, or in another's place.
    """
    count, offset, size = _find_directory(data)
    if count > MAX_ENTRIES:
        raise ValueError(f"the zip directory has {count:,} entries: {MAX_ENTRIES:,} are allowed")
    entries: dict[str, ZipEntry] = {}
    position = offset
    for _ in range(count):
        entry, position = _read_entry(data, position, offset, offset + size)
        if entry.name in entries:
            raise ValueError(f"the zip file has two entries {_shown(entry.name)}")
        entries[entry.name] = entry
    if position != offset + size:
        raise ValueError("the zip directory is of another size than the file says")
    in_order = sorted(entries.values(), key=lambda entry: entry.header)
    for entry, following in itertools.pairwise(in_order):
        if entry.end > following.header:
            raise ValueError(
                f"zip entries {_shown(entry.name)} and {_shown(following.name)} overlap"
            )
    return entries


def _shown(name: str) -> str:
    return ascii(name[:120])


def _find_directory(data: bytes | mmap.mmap) -> tuple[int, int, int]:
    """The number of entries, and the directory's place and size."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - 0xFFFF))
    if end < 0 or end + _END.size > len(data):
        raise ValueError("it is cut off, or no zip file: the directory at its end is missing")
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise ValueError("the zip file does not end where its directory says")
    if disk or first_disk or here != count:
        raise ValueError("the zip file is one of several parts")
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, _, end64, _ = _END64_LOCATOR.unpack_from(data, locator)
        if end64 + _END64.size > locator or data[end64 : end64 + 4] != b"PK\x06\x06":
            raise ValueError("the zip64 directory is not where the file says")
        short = (count, size, offset)
        *_, here, count, size, offset = _END64.unpack_from(data, end64)
        for value, short_value, limit in zip(
            (count, size, offset), short, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True
        ):
            if short_value not in (value, limit):
                raise ValueError("the zip and zip64 directories contradict each other")
        end = end64
    if offset + size > end or count * _CENTRAL.size > size:
        raise ValueError("the zip directory does not lie within the file")
    return count, offset, size


def _read_entry(
    data: bytes | mmap.mmap, position: int, directory: int, end: int
) -> tuple[ZipEntry, int]:
    """One entry of the directory, checked against its own header, and the place of the next."""
    if position + _CENTRAL.size > end:
        raise ValueError("the zip directory is cut off")
    (signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
     comment_length, disk, _, _, header) = _CENTRAL.unpack_from(data, position)  # fmt: skip
    name_at = position + _CENTRAL.size
    extra_at = name_at + name_length
    following = extra_at + extra_length + comment_length
    if signature != b"PK\x01\x02" or following > end:
        raise ValueError("the zip directory is damaged")
    raw_name = data[name_at:extra_at]
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"a zip entry has a name that is no text: {raw_name[:40]!r}") from None
    extra = data[extra_at : extra_at + extra_length]
    size, packed, header = _widen(name, extra, size, packed, header)
    if flags & _ENCRYPTED or disk not in (0, 0xFFFF):
        raise ValueError(f"zip entry {_shown(name)} is encrypted or in another file")
    if method != 0 or packed != size:
        raise ValueError(
            f"zip entry {_shown(name)} is compressed: PyTorch stores entries as they are (zip -0)"
        )
    if header + _LOCAL.size > directory:
        raise ValueError(f"zip entry {_shown(name)} lies outside the file")
    (signature, _, local_flags, local_method, _, _, _, _, local_size, local_name_length,
     local_extra_length) = _LOCAL.unpack_from(data, header)  # fmt: skip
    local_name_at = header + _LOCAL.size
    start = local_name_at + local_name_length + local_extra_length
    if (
        signature != b"PK\x03\x04"
        or local_method != method
        or data[local_name_at : local_name_at + local_name_length] != raw_name
    ):
        raise ValueError(f"zip entry {_shown(name)} is not where the directory says")
    says_size = not local_flags & _SIZES_FOLLOW and local_size != 0xFFFFFFFF
    if says_size and local_size != size:
        raise ValueError(
            f"zip entry {_shown(name)} is of {size} bytes in the directory, of {local_size} in its "
            "own header"
        )
    if start + size > directory:
        raise ValueError(f"zip entry {_shown(name)} reaches past the end of the data")
    return ZipEntry(name, header, start, size, crc), following


def _widen(name: str, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers, those that do not fit 32 bits from the zip64 field of the entry."""
    if 0xFFFFFFFF not in (size, packed, header):
        return size, packed, header
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 1:
            wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            values = [next(wide, None) if v == 0xFFFFFFFF else v for v in (size, packed, header)]
            if None not in values:
                return tuple(values)  # type: ignore[return-value]
    raise ValueError(f"zip entry {_shown(name)} does not say its size or place")
