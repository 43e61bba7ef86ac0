"""Labels in a CSV file beside the images: classes, several labels an image, or numbers."""

import collections
import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "val", "valid"), "validation"
)
_KINDS = {"labels": "multilabel"} | dict.fromkeys(("value", "values", "target"), "regression")
_LABEL_COLUMNS = ("label", *_KINDS)
_SEPARATOR = ";"
_NAMED = 3  # bad rows that an error names
_LARGEST = float(np.finfo(np.float32).max)  # number: others would be read as infinite


class Row(NamedTuple):
    """A row of a label file: its line, the file from the folder, its labels, its split or ""."""

    line: int
    file: str
    labels: tuple[str, ...]
    split: str


class LabelFile(NamedTuple):
    """The rows of a label file, none of them bad; its path, and the name of its label column."""

    path: Path
    column: str
    rows: tuple[Row, ...]


def read_label_file(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> LabelFile:
    """Reads a label file.

    Its first line names the columns: `file`, a path from the folder; `label` (also labels, value,
    values, target), several of them divided by semicolons; and maybe `split`, which is train,
    validation or test.

    Args:
      path: of the file, UTF-8.
      root: the folder of the images.

    Raises:
      ValueError: no such file or columns, a quote that does not end; or bad rows, named by their
        lines: another number of columns, a file that is not there, not in the folder or was named
        before, an unknown split.
    """
    path, root = Path(path).expanduser(), Path(root).expanduser()
    lines = _lines(path)
    columns = _columns(path, lines[0][1] if lines else [])
    bad: list[str] = []
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, cells in lines[1:]:
        row = _row(line, [cell.strip() for cell in cells], columns)
        if isinstance(row, str):
            bad.append(f"line {line}: {row}")
        elif row.file in seen:
            bad.append(f"line {line}: {row.file} was in line {seen[row.file]} already")
        elif not os.path.isfile(root / row.file):
            bad.append(f"line {line}: there is no {root / row.file}")
        else:
            seen[row.file] = line
            rows.append(row)
    if bad:
        raise bad_rows(path, bad)
    if not rows:
        raise ValueError(f"the label file {path} has no rows below its header")
    column = lines[0][1][columns[1]].strip().lower()
    return LabelFile(path, column, tuple(rows))


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of each line that has any, with its number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Strict: a quote that nobody closed would take the lines that follow into its cell.
            reader = csv.reader(file, strict=True, skipinitialspace=True)
            try:
                return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
            except csv.Error as error:
                raise ValueError(
                    f"the label file {path}, line {reader.line_num}: no line of a CSV file: {error}"
                ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"the label file {path} cannot be read: {reason}") from error


def bad_rows(path: Path, bad: Sequence[str]) -> ValueError:
    """The error for rows that cannot be used, each as `line N: REASON`."""
    more = f"; and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    return ValueError(f"the label file {path}: {'; '.join(bad[:_NAMED])}{more}")


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int, int | None, int]:
    """The places of file, label and split, and the number of columns."""
    names = [name.strip().lower() for name in header]
    labels = [name for name in _LABEL_COLUMNS if name in names]
    unknown = set(names) - {"file", "split", *labels[:1]}
    if "file" not in names or not labels or unknown or len(set(names)) < len(names):
        raise ValueError(
            f"the label file {path}, line 1: wanted the header file,label or file,label,split, got "
            f"{','.join(header) or 'nothing'}"
        )
    split = names.index("split") if "split" in names else None
    return names.index("file"), names.index(labels[0]), split, len(names)


def _row(line: int, cells: list[str], columns: tuple[int, int, int | None, int]) -> Row | str:
    file, label, split, count = columns
    if len(cells) != count:
        return f"wanted {count} columns, got {len(cells)}"
    if not cells[file]:
        return "names no file"
    path = os.path.normpath(cells[file])
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        return f"wanted a path from the folder, got {cells[file]}"
    labels = tuple(part.strip() for part in cells[label].split(_SEPARATOR)) if cells[label] else ()
    if "" in labels:
        return f"an empty label in {cells[label]!r}"
    if len(set(labels)) < len(labels) and not all(map(_is_number, labels)):
        return f"a label twice in {cells[label]!r}"
    if split is not None and cells[split].lower() not in _SPLITS:
        return f"wanted the split train, validation or test, got {cells[split]!r}"
    return Row(line, path, labels, "" if split is None else _SPLITS[cells[split].lower()])


def _is_number(text: str, most: float = _LARGEST) -> bool:
    try:
        return abs(float(text)) <= most
    except ValueError:
        return False


def _is_meant_as_number(text: str) -> bool:
    """Also one that is missing (nan) or too large, which `encode` then refuses."""
    return _is_number(text, math.inf) or text.lower() == "nan"


def kind_of_labels(file: LabelFile) -> str:
    """What the labels are, for those who do not say it: as the column's name says, or they look.

    A column `labels` is "multilabel", and `value`, `values` or `target` "regression". In a column
    `label`, numbers with a decimal point are "regression", rows of several labels or of none
    "multilabel", and all else is "classification".
    """
    if file.column in _KINDS:
        return _KINDS[file.column]
    labels = [label for row in file.rows for label in row.labels]
    several = any(len(row.labels) != 1 for row in file.rows)
    is_numbers = all(map(_is_meant_as_number, labels)) and labels
    if is_numbers and not all(label.lstrip("+-").isdecimal() for label in labels):
        return "regression"
    return "multilabel" if several else "classification"


def encode(file: LabelFile, kind: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels as arrays, and the names of the classes, sorted.

    Returns:
      "classification": (N,) int64; "multilabel": (N, labels) float32 of 0 and 1; "regression":
      (N,) or (N, numbers) float32, without names.

    Raises:
      ValueError: rows that are not of this kind, named by their lines; or no label at all.
    """
    if kind == "regression":
        return _numbers(file), ()
    names = tuple(sorted({label for row in file.rows for label in row.labels}))
    if not names:
        raise ValueError(f"the label file {file.path}: no row has a label")
    place = {name: index for index, name in enumerate(names)}
    if kind == "multilabel":
        found = np.zeros((len(file.rows), len(names)), np.float32)
        for number, row in enumerate(file.rows):
            found[number, [place[label] for label in row.labels]] = 1
        return found, names
    if bad := [
        f"line {row.line}: wanted one class, got {_SEPARATOR.join(row.labels) or 'nothing'}"
        for row in file.rows
        if len(row.labels) != 1
    ]:
        raise bad_rows(file.path, bad)
    return np.array([place[row.labels[0]] for row in file.rows], np.int64), names


def _numbers(file: LabelFile) -> np.ndarray:
    width = collections.Counter(len(row.labels) for row in file.rows).most_common(1)[0][0]
    wanted = "a number" if width <= 1 else f"{width} numbers"
    if bad := [
        f"line {row.line}: wanted {wanted}, got {_SEPARATOR.join(row.labels) or 'nothing'}"
        for row in file.rows
        if len(row.labels) != max(width, 1) or not all(map(_is_number, row.labels))
    ]:
        raise bad_rows(file.path, bad)
    found = np.array([[float(label) for label in row.labels] for row in file.rows], np.float32)
    return found[:, 0] if width == 1 else found
