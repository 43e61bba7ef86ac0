"""`vit-jax plot WHAT ...`: pictures; a module each, as the commands have."""

import importlib
from collections.abc import Sequence

from vit_jax.cli.parsing import Parser

KINDS = {
    "augment": "a sheet of what augmentation makes of images",
    "curves": "loss and top-1 of one run or several",
    "patches": "images beside their patches",
    "soft-splits": "the overlapping windows of a T2T-ViT",
    "attention": "what a model attends to, over the image",
    "positions": "how alike the position embeddings are",
    "reconstruction": "what a pretrained MAE makes of images that are mostly hidden",
    "filters": "the filters of the first layer",
}


def run(arguments: Sequence[str]) -> int:
    """`plot WHAT ...`."""
    if not arguments or arguments[0] not in KINDS:
        _parser().parse_args(arguments)  # --help or a mistake: it does not return
    kind, *rest = arguments
    return importlib.import_module(f"vit_jax.cli.plot.{kind.replace('-', '_')}").run(rest)


def _parser() -> Parser:
    parser = Parser(prog="vit-jax plot", description="Draws pictures: .png, .jpg, .pdf or .svg.")
    kinds = parser.add_subparsers(metavar="WHAT", required=True)
    for kind, text in KINDS.items():
        kinds.add_parser(kind, help=text, add_help=False)
    return parser
