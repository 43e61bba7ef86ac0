"""`metrics.jsonl`: one row a line, and what a killed run leaves of it is repaired."""

import json
import os
import pathlib
from typing import Any

from vit_jax.storage import is_remote, write_bytes

Row = dict[str, Any]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a metrics.jsonl, without a last line that a kill left half written.

    Raises:
      ValueError: another line is not a row.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().decode(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "split": str(row["split"]), **row})
        except (ValueError, KeyError, TypeError):
            if number == len(lines) and not rest:
                break  # its newline was written, its middle was not: a full disk does that
            raise ValueError(f"{path}, line {number}, is not a row of metrics: {line!r}") from None
    return rows


class Records:
    """The rows of a run, in memory and in the file.

    Args:
      path: of the file.
      rows: what it holds.
      write: whether rows are written to it; of many processes one does.

    Attributes:
      rows: all rows so far.
    """

    def __init__(self, path: pathlib.Path, rows: list[Row], write: bool) -> None:
        self.path = path
        self.rows = rows
        self._write = write

    def cut_back(self, step: int) -> None:
        """Forgets the rows after `step`: the run goes on from there and writes them again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        if self._write:
            self._write_all()

    def append(self, row: Row) -> None:
        """Adds a row. It is in the file when this returns, so before any later checkpoint.

        Raises:
          OSError: it cannot be written.
        """
        self.rows.append(row)
        if not self._write:
            return
        if is_remote(self.path):  # where nothing can be added to a file
            self._write_all()
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def _write_all(self) -> None:
        write_bytes(self.path, "".join(map(_line, self.rows)).encode())

    def find(self, split: str, step: int | None = None) -> Row | None:
        """The last row of a split, or that at `step`; None if there is none."""
        for row in reversed(self.rows):
            if row["split"] == split and step in (None, row["step"]):
                return row
        return None
