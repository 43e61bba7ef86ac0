"""`vit-jax convert`: weights of one form into those of another."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from vit_jax.cli.parsing import Parser, add_fields, printable, to_fields


def run(arguments: Sequence[str]) -> int:
    """`convert SRC DST [--model NAME] ...`: weights of one form into those of another."""
    options = _parser().parse_args(arguments)
    from rich.console import Console

    from vit_jax.watching import busy
    from vit_jax.weights.convert import convert, print_report
    from vit_jax.weights.state_dict import MisfitError

    head: Any = options.head
    if head is not None and head != "drop":
        if not re.fullmatch(r"\d+(,\d+)*", head):
            raise ValueError(f'--head: wanted "drop" or class indices such as 0,5,7, got {head!r}')
        head = [int(index) for index in head.split(",")]
    try:
        with busy(f"converting {printable(options.source)}"):
            model, report = convert(
                options.source,
                options.target,
                options.model,
                fields=to_fields(options.field),
                to=options.to,
                ema=options.ema,
                resize=options.resize,
                old_grid=_old_grid(options.old_grid),
                head=head,
                in_chans=options.in_chans,
                rename=[_rule(text) for text in options.rename],
            )
    except MisfitError as error:
        if options.list:
            print("\n".join(error.problems), file=sys.stderr)
        raise
    print_report(model, report, Console())
    print(f"wrote {options.target}")
    return 0


def _old_grid(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d+,\d+", text):
        raise ValueError(f"--old-grid: wanted ROWS,COLUMNS such as 14,28, got {text!r}")
    return tuple(map(int, text.split(",")))


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, new = text.rpartition("=")
    if not pattern or not equals:
        raise ValueError(f"--rename: wanted REGEX=NEW, such as '^encoder\\.=', got {text!r}")
    return pattern, new


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax convert", description="Weights of one form into those of another."
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a .safetensors, .pth or .npz file, a Hugging Face or Orbax folder, hf:OWNER/NAME, or "
        "a work directory (whose run's fields the model has, unless --field says others)",
    )
    parser.add_argument("target", metavar="DST", help="a .safetensors or .pth file, or see --to")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the registered model (default: the source's, or the only one that the weights fit)",
    )
    add_fields(parser)
    parser.add_argument(
        "--to",
        default="own",
        choices=("own", "timm", "hf", "google", "orbax"),
        help="whose names: those of the design's source or timm's, which are mostly the same (DST "
        ".safetensors or .pth), Hugging Face's (a folder), Google's (.npz), or an Orbax folder "
        "(default: own)",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="of a training checkpoint the averaged weights, or the raw ones (default: raw first)",
    )
    parser.add_argument(
        "--resize",
        metavar="METHOD",
        help="resize positions, and patches of another size: source, the design's own way, or a "
        "method by name",
    )
    parser.add_argument(
        "--old-grid",
        metavar="ROWS,COLUMNS",
        help="with --resize: of the patches in SRC, where they are not square and it says no size",
    )
    parser.add_argument("--head", metavar="WHAT", help='"drop" the head, or keep the classes 0,5,7')
    parser.add_argument(
        "--in-chans", action="store_true", help="adapt the patches to the model's channels"
    )
    parser.add_argument(
        "--rename",
        metavar="REGEX=NEW",
        action="append",
        default=[],
        help="change names in SRC first, as Python's re.sub: '^encoder\\.='; may be given again",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="where SRC does not fit the model, list every array that does not",
    )
    return parser
