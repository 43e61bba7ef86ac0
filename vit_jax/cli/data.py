"""`vit-jax data check`: what is in a folder of images, before anything is trained."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_jax.cli.parsing import Parser, printable
from vit_jax.config.schema import TARGET_OF_LOSS

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from vit_jax.data.folder_check import CheckedFolder
    from vit_jax.data.sources import ImageSource

_LISTED = 20  # lines of one kind of problem; more are counted


def run(arguments: Sequence[str]) -> int:
    """`data check FOLDER`; 1 if images are damaged, or equal in several splits or classes."""
    options = _parser().parse_args(arguments)
    checked = check(options.folder, options.labels, asked_kind(options))
    damaged = [f"{relative(file.path, options.folder)}: {file.damage}" for file in checked.damaged]
    problems = [
        *_listed("damaged", damaged),
        *_listed(
            "equal in several splits: what is trained on is held out too",
            _equal(checked.across_splits(), options.folder),
        ),
        *_listed(
            "equal in several classes: one label is wrong",
            _equal(checked.across_classes(), options.folder),
        ),
    ]
    cut = ", as training cuts the folder" if checked.is_cut else ""
    lines = [f"{options.folder}{cut}:", *label_table(checked.parts), *_sizes(checked)]
    if checked.left_out:
        lines.append(f"left out: {'; '.join(checked.left_out)}")
    copies = sum(len(paths) - 1 for paths in checked.duplicates)
    lines.append(f"copies of other images: {copies:,}")
    for line in (*lines, *(problems or ["no image is damaged, or in several splits or classes"])):
        print(printable(line))
    return 1 if problems else 0


def check(folder: str, labels: str | None, kind: str) -> "CheckedFolder":
    """Decodes all images of a folder, and says so before it.

    Args:
      folder: of the images.
      labels: a label file; None: folders are classes.
      kind: of its labels, see `asked_kind`.

    Raises:
      ValueError: see `vit_jax.data.folder.open_folder`.
    """
    from vit_jax.data.folder_check import check_folder
    from vit_jax.watching import watched

    print(f"reading the images of {printable(folder)}", file=sys.stderr, flush=True)
    return check_folder(folder, labels, kind, watched)


def asked_kind(options: "argparse.Namespace") -> str:
    """What the labels are: as `--objective` says, else as those of `--labels` look.

    Raises:
      ValueError: `--objective` of folders, which are classes; or see `read_label_file`.
    """
    from vit_jax.data.labels import kind_of_labels, read_label_file

    if options.labels is None:
        if options.objective not in (None, "classification"):
            raise ValueError(
                f"--objective {options.objective}: wanted --labels FILE.csv with it, for folders "
                "are classes"
            )
        return "classification"
    return options.objective or kind_of_labels(read_label_file(options.labels, options.folder))


def add_labels(parser: Parser) -> None:
    """The options `--labels` and `--objective`."""
    parser.add_argument(
        "--labels",
        metavar="FILE.csv",
        help="labels of the images, which then need no class folders: a CSV file with the header "
        "file,label and maybe a column split; several labels are divided by semicolons",
    )
    parser.add_argument(
        "--objective",
        choices=tuple(dict.fromkeys(TARGET_OF_LOSS.values())),
        help="what the labels of --labels are: one class an image, any number of them, or numbers "
        "(default: as they look)",
    )


def label_table(parts: "dict[str, ImageSource]") -> list[str]:
    """What the labels are in each split: images of each class or label, or where numbers lie."""
    import numpy as np

    from vit_jax.data.folder import labels_of

    names = next(iter(parts.values())).class_names
    labels = [labels_of(part) for part in parts.values()]
    if not names:
        return _columns(("", *parts), _number_rows(labels))
    of_labels = labels[0].ndim == 2
    counts = [
        (column > 0).sum(axis=0) if of_labels else np.bincount(column, minlength=len(names))
        for column in labels
    ]
    what, plural = ("label", "labels") if of_labels else ("class", "classes")
    rows = [
        *((name, *(f"{n:,}" for n in row)) for name, *row in zip(names, *counts, strict=True)),
        (f"{len(names):,} {what if len(names) == 1 else plural}", *(f"{len(x):,}" for x in labels)),
    ]
    return _columns((what, *parts), rows)


def _number_rows(labels: "list[np.ndarray]") -> list[tuple[str, ...]]:
    def told(name: str, numbers: "np.ndarray") -> str:
        if not len(numbers):
            return "-"
        found = getattr(numbers.reshape(len(numbers), -1), name)(axis=0)
        return ", ".join(f"{x:.4g}" for x in found)

    facts = {"least": "min", "mean": "mean", "most": "max", "deviation": "std"}
    rows = [(fact, *(told(name, each) for each in labels)) for fact, name in facts.items()]
    return [*rows, ("images", *(f"{len(each):,}" for each in labels))]


def _columns(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{name:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    ]


def relative(path: str, folder: str) -> str:
    """The path of an image from its folder."""
    return os.path.relpath(path, os.path.expanduser(folder))


def _sizes(checked: "CheckedFolder") -> list[str]:
    sizes = sorted((h * w, w, h) for h, w in (f.size for f in checked.files if f.size))
    if not sizes:
        return []
    texts = [f"{w}x{h}" for _, w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1])]
    return ["pixels: {} the smallest, {} the median, {} the largest".format(*texts)]


def _equal(groups: list[list[str]], folder: str) -> list[str]:
    return [" = ".join(relative(path, folder) for path in paths) for paths in groups]


def _listed(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  and {len(lines) - _LISTED:,} more"] if len(lines) > _LISTED else []
    return [f"{title}: {len(lines):,}", *(f"  {line}" for line in lines[:_LISTED]), *more]


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax data",
        description="Reads every image of a folder and tells its classes, their sizes, damaged\n"
        "files, and images that are equal byte by byte in several splits (validation inside\n"
        "training) or classes. Status 1 if there are any of these.",
    )
    parser.add_argument("what", choices=("check",), metavar="check")
    parser.add_argument(
        "folder", metavar="FOLDER", help="FOLDER/CLASS/*.jpg, or FOLDER/{train,val,test}/CLASS"
    )
    add_labels(parser)
    return parser
