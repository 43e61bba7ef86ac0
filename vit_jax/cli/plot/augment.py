"""`vit-jax plot augment`: a sheet of what augmentation makes of images."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import RecipeParser, add_out


def run(arguments: Sequence[str]) -> int:
    """`plot augment --out FILE.png [--image FILE ...] [--config RECIPE [--config.FIELD=VALUE]]`."""
    options, recipe = _parser().read(arguments)
    jax_setup.set_up_jax()
    from vit_jax.cli.plot.augmentation_sheet import plot_operations, plot_recipe

    out = pathlib.Path(options.out)
    if recipe is None:
        plot_operations(options.image, out)
    else:
        plot_recipe(recipe.config, options.image, out)
    print(f"wrote {out}")
    return 0


def _parser() -> RecipeParser:
    parser = RecipeParser(
        "vit-jax plot augment",
        "Draws each operation and method of augmentation; with a recipe, what its training sees\n"
        "of its own images.",
        needs_recipe=False,
        usage="%(prog)s --out FILE.png [--image FILE ...] "
        "[--config RECIPE [--config.FIELD=VALUE ...]]",
        notes="--config and --config.FIELD=VALUE are those of `vit-jax train`.",
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
