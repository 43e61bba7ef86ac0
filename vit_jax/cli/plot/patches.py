"""`vit-jax plot patches`: images beside their patches."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_fields, add_out, to_fields


def run(arguments: Sequence[str]) -> int:
    """`plot patches IMAGE... --model NAME|CHECKPOINT --out FILE.png`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    from vit_jax.inference.seen_images import seen_images
    from vit_jax.plots.patches import draw_patches
    from vit_jax.weights.load import model_shapes

    model = model_shapes(options.model, fields=to_fields(options.field))
    if model.soft_splits(*model.img_size):
        raise ValueError(
            f"{options.model}: a {type(model).__name__} has overlapping windows and no patches: "
            "`vit-jax plot soft-splits` draws them"
        )
    rows, columns = model.token_grid(*model.img_size)
    patch_size = (model.img_size[0] // rows, model.img_size[1] // columns)
    names = [pathlib.Path(path).name for path in options.image]
    draw_patches(seen_images(options.image, model), names, patch_size, pathlib.Path(options.out))
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot patches",
        description="Draws images, as a model sees them, beside their patches.",
    )
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|CHECKPOINT",
        help="a registered model, a work directory, a checkpoint in it, or weights",
    )
    add_fields(parser)
    add_out(parser)
    return parser
