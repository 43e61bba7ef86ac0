"""`vit-jax data check`: what is in a folder of images, before anything is trained."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_jax.cli.parsing import Parser, printable

if TYPE_CHECKING:
    from vit_jax.data.folder_check import CheckedFolder
    from vit_jax.data.sources import ImageSource

_LISTED = 20  # lines of one kind of problem; more are counted


def run(arguments: Sequence[str]) -> int:
    """`data check FOLDER`; 1 if images are damaged, or equal in several splits or classes."""
    options = _parser().parse_args(arguments)
    checked = check(options.folder)
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
    lines = [f"{options.folder}{cut}:", *class_table(checked.parts), *_sizes(checked)]
    if checked.left_out:
        lines.append(f"left out: {'; '.join(checked.left_out)}")
    copies = sum(len(paths) - 1 for paths in checked.duplicates)
    lines.append(f"copies of other images: {copies:,}")
    for line in (*lines, *(problems or ["no image is damaged, or in several splits or classes"])):
        print(printable(line))
    return 1 if problems else 0


def check(folder: str) -> "CheckedFolder":
    """Decodes all images of a folder, and says so before it.

    Raises:
      ValueError: see `vit_jax.data.folder.open_folder`.
    """
    from vit_jax.data.folder_check import check_folder

    print(f"reading the images of {printable(folder)}", file=sys.stderr, flush=True)
    return check_folder(folder)


def class_table(parts: "dict[str, ImageSource]") -> list[str]:
    """The number of images of each class in each split."""
    from vit_jax.data.folder import labelled_paths

    names = next(iter(parts.values())).class_names
    counts = [[0] * len(names) for _ in parts]
    for column, part in zip(counts, parts.values(), strict=True):
        for _, label in labelled_paths(part):
            column[label] += 1
    rows = [
        ("class", *parts),
        *((name, *(f"{n:,}" for n in row)) for name, *row in zip(names, *counts, strict=True)),
        (f"{len(names):,} classes", *(f"{sum(column):,}" for column in counts)),
    ]
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
    return parser
