"""`vit-jax plot attention`: what a model attends to, over the image."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_model, add_out, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`plot attention CHECKPOINT_OR_WEIGHTS IMAGE... [--method WHAT] [--heads] --out FILE.png`."""
    options = _parser().parse_args(arguments)
    method = options.method or ("last" if options.heads else "rollout")
    jax_setup.set_up_jax()
    import jax.numpy as jnp

    from vit_jax.inference.preprocess import preparation
    from vit_jax.inference.seen_images import guesses, seen_images
    from vit_jax.inspect.heat_maps import heat_maps
    from vit_jax.plots.attention import draw_attention

    model = load_given_model(options)
    seen = seen_images(options.image, model)
    images = preparation(model)(jnp.asarray(seen))
    maps = heat_maps(model, images, method, heads=options.heads)
    told = guesses(model, images)
    names = [
        "\n".join((pathlib.Path(path).name, guess))
        for path, guess in zip(options.image, told, strict=True)
    ]
    draw_attention(seen, names, maps, f"attention of {model.spec.name}", pathlib.Path(options.out))
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot attention",
        description="Draws heat maps of what the class token attends to over the images.",
    )
    add_model(parser)
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument(
        "--method",
        metavar="WHAT",
        help="rollout over all blocks; last, or the number of a block from 0; tokens: the layers "
        "that make a T2T-ViT's tokens, of a performer the attention that it implies (default: "
        "rollout; with --heads last)",
    )
    parser.add_argument("--heads", action="store_true", help="each head of the block by itself")
    add_out(parser)
    return parser
