"""`vit-jax plot augment`: a sheet of what augmentation makes of images."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_out, read_recipe


def run(arguments: Sequence[str]) -> int:
    """`plot augment --out FILE.png [--image FILE ...] [--config RECIPE [--config.FIELD=VALUE]]`."""
    options, rest = _parser().parse_known_args(arguments)
    config = read_recipe(rest).config if rest else None
    jax_setup.set_up_jax()
    from vit_jax.cli.plot.augmented import plot_operations, plot_recipe

    out = pathlib.Path(options.out)
    if config is None:
        plot_operations(options.image, out)
    else:
        plot_recipe(config, options.image, out)
    print(f"wrote {out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot augment",
        description="Draws each operation and method of augmentation; with a recipe, what its "
        "training sees of its own images.",
        allow_abbrev=False,
        usage="%(prog)s --out FILE.png [--image FILE ...] "
        "[--config RECIPE [--config.FIELD=VALUE ...]]",
        epilog="--config and --config.FIELD=VALUE are those of `vit-jax train`.",
    )
    add_out(parser)
    parser.add_argument(
        "--image",
        nargs="+",
        default=[],
        metavar="FILE",
        help="images to show (default: the recipe's data; without a recipe, a made-up picture)",
    )
    return parser
