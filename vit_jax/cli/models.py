"""`vit-jax models`: list models, their parameters and image sizes."""

from collections.abc import Sequence

from vit_jax.cli.parsing import Parser


def run(arguments: Sequence[str]) -> int:
    """`models [GLOB]`: a table of names, parameters and image sizes."""
    options = _parser().parse_args(arguments)
    import jax
    from flax import nnx

    from vit_jax.layers.variables import Frozen
    from vit_jax.models.registry import abstract_model, list_models

    names = list_models(options.glob)
    if not names:
        raise ValueError(f"no model matches {options.glob!r}; `vit-jax models` lists all")
    print(f"{'name':<36}{'parameters':>14}{'image size':>13}")
    for name in names:
        model = abstract_model(name)
        # Frozen tables count, as in PyTorch's totals.
        arrays = nnx.state(model, (nnx.Param, Frozen))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(arrays))
        size = " x ".join(map(str, model.img_size))
        print(f"{name:<36}{parameters:>14,}{size:>13}", flush=True)  # a large model takes a second
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax models", description="List models, their parameters and image sizes."
    )
    parser.add_argument(
        "glob", metavar="GLOB", nargs="?", default="*", help="such as 'vit_*' (default: all)"
    )
    return parser
