"""`vit-jax plot soft-splits`: the overlapping windows of a T2T-ViT."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_fields, add_out, to_fields


def run(arguments: Sequence[str]) -> int:
    """`plot soft-splits IMAGE --model t2t_vit_7|CHECKPOINT --out FILE.png`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    from vit_jax.inference.seen_images import seen_images
    from vit_jax.models.registry import list_models
    from vit_jax.plots.soft_splits import draw_soft_splits
    from vit_jax.weights.load import model_shapes

    fields = to_fields(options.field)
    model = model_shapes(options.model, fields=fields)
    if not model.soft_splits(*model.img_size):
        raise ValueError(
            f"{options.model}: a {type(model).__name__} has no soft splits (`vit-jax plot patches` "
            f"draws its patches); models that have them: {', '.join(list_models('t2t*'))}"
        )
    (image,) = seen_images([options.image], model)
    draw_soft_splits(
        image,
        model.soft_splits(image.shape[0], image.shape[1]),
        model.config.token_dim,
        f"the soft splits of {options.model}",
        pathlib.Path(options.out),
    )
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot soft-splits",
        description="Draws the overlapping windows of a T2T-ViT's three soft splits on an image.",
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--model",
        default="t2t_vit_14",
        metavar="NAME|CHECKPOINT",
        help="a registered T2T-ViT, or a checkpoint of one (default: t2t_vit_14)",
    )
    add_fields(parser)
    add_out(parser)
    return parser
