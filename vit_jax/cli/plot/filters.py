"""`vit-jax plot filters`: the filters of the first layer."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_model, add_out, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`plot filters CHECKPOINT --out FILE.png`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    from vit_jax.inspect.embeddings import first_filters
    from vit_jax.plots.filters import draw_filters

    model = load_given_model(options)
    draw_filters(first_filters(model), model.spec.name, pathlib.Path(options.out))
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot filters",
        description="Draws the principal components and the filters of the patches' projection; "
        "of a T2T-ViT, of the first soft split's.",
    )
    add_model(parser)
    add_out(parser)
    return parser
