"""`vit-jax summary`: the layer table of a model."""

import json
import re
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_fields, count, to_fields


def run(arguments: Sequence[str]) -> int:
    """`summary MODEL [--img-size N] [--field NAME=VALUE] [--depth N] [--json]`."""
    options = _parser().parse_args(arguments)
    fields = to_fields(options.field)
    if options.img_size is not None:
        fields["img_size"] = _size(options.img_size)
    jax_setup.set_up_jax()
    from rich.console import Console

    from vit_jax.inspect.summary import print_summary, summarize
    from vit_jax.weights.load import model_shapes

    model = model_shapes(options.source, name=options.model, fields=fields)
    summary = summarize(model, batch_size=options.batch_size, depth=options.depth)
    if options.json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no width of its own
            console.width = 120
        print_summary(summary, console)
    return 0


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError(f"--img-size: wanted N or HxW in pixels, got {text!r}")
    height, width = match.groups()
    return int(height) if width is None else (int(height), int(width))


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax summary",
        description="The layer table of a model: shapes, parameters, multiply-accumulates, "
        "activations. Nothing runs.",
    )
    parser.add_argument(
        "source",
        metavar="MODEL",
        help="a registered name, a work directory, a checkpoint in it, or weights",
    )
    parser.add_argument("--model", metavar="NAME", help="what the weights are of")
    parser.add_argument("--img-size", metavar="N|HxW", help="pixels (default: the model's own)")
    add_fields(parser)
    parser.add_argument(
        "--batch-size", type=count, default=1, metavar="N", help="images (default 1)"
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="levels below the model (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="the rows and totals as JSON")
    return parser
