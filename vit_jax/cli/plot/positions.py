"""`vit-jax plot positions`: how alike the position embeddings are."""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import jax_setup
from vit_jax.cli.parsing import Parser, add_model, add_out, load_given_model


def run(arguments: Sequence[str]) -> int:
    """`plot positions CHECKPOINT --out FILE.png`."""
    options = _parser().parse_args(arguments)
    jax_setup.set_up_jax()
    from vit_jax.inspect.embeddings import position_similarity
    from vit_jax.plots.positions import draw_positions

    model = load_given_model(options)
    rows, columns = model.token_grid(*model.img_size)
    draw_positions(
        position_similarity(model),
        f"{model.spec.name}: similarity of the positions of {rows} x {columns} patches",
        pathlib.Path(options.out),
    )
    print(f"wrote {options.out}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax plot positions",
        description="Draws for each patch the cosine of its position embedding with all others'.",
    )
    add_model(parser)
    add_out(parser)
    return parser
