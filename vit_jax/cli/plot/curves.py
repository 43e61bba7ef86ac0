"""`vit-jax plot curves`: loss and top-1 of one run or several."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.cli.parsing import Parser, add_out


def run(arguments: Sequence[str]) -> int:
    """`plot curves RUN [RUN ...] --out FILE.png`."""
    options = _parser().parse_args(arguments)
    from vit_jax.plots.runs import draw_runs

    draw_runs(read_runs(options.run), pathlib.Path(options.out))
    print(f"wrote {options.out}")
    return 0


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The rows of work directories by their names, which are as long as they must be to differ.

    Raises:
      ValueError: a directory holds no metrics, or one is given twice.
    """
    from vit_jax.training.records import read_rows
    from vit_jax.training.workdir import METRICS_FILE

    paths = [pathlib.Path(workdir) for workdir in workdirs]
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        twice = next(path for path in paths if resolved.count(path.resolve()) > 1)
        raise ValueError(f"{str(twice)!r} is given more than once")
    rows = []
    for path in paths:
        if not (path / METRICS_FILE).is_file():
            raise ValueError(f"{str(path)!r} is no work directory: it holds no {METRICS_FILE}")
        rows.append(read_rows(path / METRICS_FILE))
        if not rows[-1]:
            raise ValueError(f"{str(path)!r} has no rows of metrics yet")
    longest = max(len(path.parts) for path in resolved)
    names = next(
        candidate
        for parts in range(1, longest + 1)
        if len(set(candidate := [str(pathlib.Path(*path.parts[-parts:])) for path in resolved]))
        == len(resolved)
    )
    return dict(zip(names, rows, strict=True))


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot curves",
        description="Draws loss and top-1 of runs, finished or not, against epochs.",
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="work directories")
    add_out(parser)
    return parser
