"""`vit-jax convert`: weights of one form into those of another."""

import argparse
import re
from collections.abc import Sequence
from typing import Any

from vit_jax.cli.parsing import Parser, add_fields, to_fields


def run(arguments: Sequence[str]) -> int:
    """`convert SRC DST [--model NAME] ...`: weights of one form into those of another."""
    options = _parser().parse_args(arguments)
    from rich.console import Console

    from vit_jax.weights.convert import convert, print_report

    head: Any = options.head
    if head is not None and head != "drop":
        if not re.fullmatch(r"\d+(,\d+)*", head):
            raise ValueError(f'--head: wanted "drop" or class indices such as 0,5,7, got {head!r}')
        head = [int(index) for index in head.split(",")]
    model, report = convert(
        options.source,
        options.target,
        options.model,
        fields=to_fields(options.field),
        to=options.to,
        ema=options.ema,
        resize=options.resize,
        head=head,
        in_chans=options.in_chans,
    )
    print_report(model, report, Console())
    print(f"wrote {options.target}")
    return 0


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
        default="timm",
        choices=("timm", "hf", "google", "orbax"),
        help="whose names: the model's own (DST .safetensors or .pth), Hugging Face's (a folder), "
        "Google's (.npz), or an Orbax folder (default: timm, the model's own)",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="of a training checkpoint the averaged weights, or the raw ones (default: raw first)",
    )
    parser.add_argument(
        "--resize",
        metavar="METHOD",
        help='resize position embeddings: "source" for the design\'s own way, or a method by name',
    )
    parser.add_argument("--head", metavar="WHAT", help='"drop" the head, or keep the classes 0,5,7')
    parser.add_argument(
        "--in-chans", action="store_true", help="adapt the patches to the model's channels"
    )
    return parser
