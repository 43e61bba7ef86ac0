"""`metrics.jsonl`: one row a line, and what a killed run leaves of it is repaired."""

import json
import os
import pathlib
from typing import Any

Row = dict[str, Any]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a metrics.jsonl, without a last line that a kill left half written.

    Raises:
      ValueError: another line is not a row.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
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

    Attributes:
      rows: all rows so far.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.rows = read_rows(path)

    def cut_back(self, step: int) -> None:
        """Forgets the rows after `step`: the run goes on from there and writes them again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: Row) -> None:
        """Adds a row. It is on the disk when this returns, so before any later checkpoint.

        Raises:
          OSError: it cannot be written.
        """
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def find(self, split: str, step: int | None = None) -> Row | None:
        """The last row of a split, or that at `step`; None if there is none."""
        for row in reversed(self.rows):
            if row["split"] == split and step in (None, row["step"]):
                return row
        return None
