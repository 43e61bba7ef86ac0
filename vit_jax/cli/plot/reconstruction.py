"""`vit-jax plot reconstruction`: what an MAE makes of images of which it sees a quarter."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_model, add_out, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`plot reconstruction CHECKPOINT_OR_WEIGHTS IMAGE... --out FILE.png`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    from vit_jax.inference.reconstruct import reconstruct
    from vit_jax.plots.reconstruction import draw_reconstructions

    found = reconstruct(load_given_model(options), options.images, seed=options.seed)
    names = [pathlib.Path(path).name for path in options.images]
    draw_reconstructions(found.images, found.masked, found.predicted, names, options.out)
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot reconstruction",
        description="Draws images, the patches of them that a pretrained MAE is shown, and the "
        "image that it makes of these.",
    )
    add_model(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the patches that are hidden"
    )
    add_out(parser)
    return parser
