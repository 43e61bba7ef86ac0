"""`vit-jax plot curves`: loss and top-1 of one run or several."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli.parsing import Parser, add_out


def run(arguments: Sequence[str]) -> int:
    """`plot curves RUN [RUN ...] --out FILE.png`."""
    options = _parser().parse_args(arguments)
    from vit_jax.plots.runs import draw_runs, read_runs

    draw_runs(read_runs(options.run), pathlib.Path(options.out))
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot curves",
        description="Draws loss and top-1 of runs, finished or not, against epochs.",
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="work directories")
    add_out(parser)
    return parser
