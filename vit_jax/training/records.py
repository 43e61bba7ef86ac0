"""`metrics.jsonl`: one row a line. What a kill leaves is repaired, what is lost is said."""

import collections
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.storage import is_remote, read_bytes, write_bytes

Row = dict[str, Any]
_FIGURES = {"epoch", "loss"}  # of each row, beside its step and split


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a metrics.jsonl, without a last line that a kill left half written.

    Raises:
      ValueError: another line is not a row.
    """
    if not path.exists():
        return []
    *lines, rest = read_bytes(path).decode(errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if _is_row(row):
            rows.append(row)
        else:
            if number == len(lines) and not rest:
                break  # its newline was written, its middle was not: a full disk does that
            raise ValueError(f"{path}, line {number}, is not a row of metrics: {line[:200]!r}")
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not row.keys() >= _FIGURES | {"step", "split"}:
        return False
    figures = [value for name, value in row.items() if name != "split"]
    numbers = all(type(value) in (int, float) for value in figures)
    return numbers and type(row["step"]) is int and isinstance(row["split"], str)


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
        self._size = -1  # of the file, as it was left

    def cut_back(self, step: int, counts: Mapping[str, int] | None = None) -> list[str]:
        """Forgets the rows after `step`: the run goes on from there and writes them again.

        Args:
          step: of a checkpoint.
          counts: how many rows of each split there were when it was saved; None: not known.

        Returns:
          What `faults` says of the rows; of one that stood twice, one is kept.
        """
        remarks = self.faults(step, counts)
        unique = {(row["split"], row["step"]): row for row in self._up_to(step)}
        self.rows = sorted(unique.values(), key=lambda row: row["step"])
        if self._write:
            self._write_all()
        return remarks

    def faults(self, step: int, counts: Mapping[str, int] | None) -> list[str]:
        """What is not as it was left: rows that are lost, and rows that stand twice, a line each.

        Args:
          step, counts: see `cut_back`.
        """
        if not self._write:  # a process that has not all rows
            return []
        remarks = []
        places = collections.Counter((row["split"], row["step"]) for row in self._up_to(step))
        if twice := places.total() - len(places):
            remarks.append(f"{self.path} holds {twice} rows twice")
        found = collections.Counter(split for split, _ in places)
        lost = {split: n - found[split] for split, n in (counts or {}).items() if n > found[split]}
        if lost:
            each = ", ".join(f"{n} of {(counts or {})[split]} {split}" for split, n in lost.items())
            remarks.append(f"{self.path} has lost rows up to step {step}: {each}")
        return remarks

    def _up_to(self, step: int) -> list[Row]:
        return [row for row in self.rows if row["step"] <= step]

    def counts(self) -> collections.Counter[str]:
        """How many rows there are of each split."""
        return collections.Counter(row["split"] for row in self.rows)

    def append(self, row: Row) -> bool:
        """Adds a row. It is in the file when this returns, so before any later checkpoint.

        Returns:
          Whether the file was as it was left. If not, all rows are written anew.

        Raises:
          OSError: it cannot be written.
        """
        self.rows.append(row)
        if not self._write:
            return True
        if is_remote(self.path):  # where nothing can be added to a file
            self._write_all()
            return True
        with self.path.open("ab") as file:
            as_left = file.tell() == self._size
            if as_left:
                self._size += file.write(_line(row).encode())
                file.flush()
                os.fsync(file.fileno())
        if not as_left:
            self._write_all()
        return as_left

    def _write_all(self) -> None:
        data = "".join(map(_line, self.rows)).encode()
        write_bytes(self.path, data)
        self._size = len(data)

    def count(self, split: str, after: int) -> int:
        """How many rows of a split there are after the step `after`."""
        return sum(row["split"] == split and row["step"] > after for row in self.rows)

    def find(self, split: str, step: int | None = None) -> Row | None:
        """The last row of a split, or that at `step`; None if there is none."""
        for row in reversed(self.rows):
            if row["split"] == split and step in (None, row["step"]):
                return row
        return None
