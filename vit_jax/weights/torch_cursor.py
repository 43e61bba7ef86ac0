"""A place in the bytes of a pickle, from which its instructions read their operands."""

import mmap
import struct
from typing import Any

MAX_LENGTH = 2**27  # bytes of a pickle; tensors are not in it
_MAX_LINE = 2**20


class Cursor:
    """Reads forward from byte `start`; what is not there is a ValueError."""

    def __init__(self, data: bytes | mmap.mmap, start: int) -> None:
        self.data = data
        self.position = start
        self.end = min(len(data), start + MAX_LENGTH)

    def take(self, length: int) -> bytes:
        if not 0 <= length <= self.end - self.position:
            if self.end < len(self.data) and length >= 0:
                raise ValueError(f"the pickle is longer than {MAX_LENGTH:,} bytes")
            raise ValueError(
                f"the pickle is cut off at byte {self.position}: {length} bytes wanted, "
                f"{self.end - self.position} left"
            )
        self.position += length
        return self.data[self.position - length : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, encoding: str = "utf-8", max_length: int = _MAX_LINE) -> str:
        stop = min(self.end, self.position + max_length)
        end = self.data.find(b"\n", self.position, stop)
        if end < 0:
            raise ValueError(f"the pickle is cut off at byte {self.position}: a line has no end")
        return self.text(self.take(end + 1 - self.position)[:-1], encoding)

    def text(self, raw: bytes, encoding: str) -> str:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            raise ValueError(
                f"the pickle is damaged before byte {self.position}: a text is not {encoding}"
            ) from None
