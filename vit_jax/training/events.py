"""TensorBoard event files.

Written here and not by a library: those that write them import TensorFlow or torch where they are
installed, and write from a thread of their own, which a full disk kills unseen. The format is that
of TensorFlow's `record_writer.cc` around the protocol buffers of `event.proto` and `summary.proto`.
"""

import contextlib
import io
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from vit_jax.storage import is_remote, write_bytes


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), masked as TFRecord asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _event(step: int, content: bytes) -> bytes:
    wall_time = _varint(1 << 3 | 1) + struct.pack("<d", time.time())
    return wall_time + _varint(2 << 3) + _varint(step) + content


def _scalar(tag: str, value: float) -> bytes:
    return _message(1, _message(1, tag.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", value))


class EventWriter:
    """Writes scalars to one new event file.

    Args:
      directory: where the file is made.
      purge_step: points of earlier files from this step on are void. TensorBoard drops them: a
        resumed run writes them again.
    """

    _VERSION = _message(3, b"brain.Event:2")
    _SESSION_START = _message(7, _varint(1 << 3) + _varint(1))

    def __init__(self, directory: pathlib.Path, purge_step: int) -> None:
        # TensorBoard reads the files of a directory in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self._path = directory / name
        # On object storage, where nothing can be added to a file, it is written anew each time.
        self._file = io.BytesIO() if is_remote(directory) else self._path.open("wb")
        self._write(_event(0, self._VERSION))
        self._write(_event(purge_step, self._SESSION_START))
        self._flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each tag.

        Raises:
          OSError: it cannot be written.
        """
        summary = b"".join(_scalar(tag, value) for tag, value in values.items())
        self._write(_event(step, _message(5, summary)))
        self._flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # a full disk: `scalars` has said so
            self._file.close()

    def _flush(self) -> None:
        if isinstance(self._file, io.BytesIO):
            write_bytes(self._path, self._file.getvalue())
        else:
            self._file.flush()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
