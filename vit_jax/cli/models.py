"""`vit-jax models`: list models, their parameters and image sizes."""

import fnmatch
from collections.abc import Sequence

from vit_jax.cli.parsing import Parser


def run(arguments: Sequence[str]) -> int:
    """`models [GLOB]`: a table of names, parameters and image sizes."""
    options = _parser().parse_args(arguments)
    if options.pretrained:
        return _print_published(options.glob)
    from flax import nnx

    from vit_jax.layers.variables import Frozen
    from vit_jax.models.description import num_parameters
    from vit_jax.models.registry import abstract_model, list_models

    names = list_models(options.glob)
    if not names:
        raise ValueError(f"no model matches {options.glob!r}; `vit-jax models` lists all")
    print(f"{'name':<36}{'parameters':>14}{'image size':>13}")
    for name in names:
        model = abstract_model(name)
        parameters = num_parameters(model, (nnx.Param, Frozen))  # as in PyTorch's totals
        size = " x ".join(map(str, model.img_size))
        print(f"{name:<36}{parameters:>14,}{size:>13}", flush=True)  # a large model takes a second
    return 0


def _print_published(glob: str) -> int:
    """A table of repositories of the hub, their licences, and whether access is asked for."""
    from vit_jax.models.pretrained import PUBLISHED

    entries = [entry for entry in PUBLISHED if fnmatch.fnmatch(entry.name, glob)]
    if not entries:
        raise ValueError(f"no published weights of {glob!r} are known; --pretrained lists all")
    print(f"{'name':<36}{'repository':<52}{'licence':<16}access")
    for entry in entries:
        access = "not confirmed"
        if entry.is_gated is not None:
            access = "on request" if entry.is_gated else "free"
        print(
            f"{entry.name:<36}{entry.repository:<52}{entry.licence or 'not confirmed':<16}{access}"
        )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax models", description="List models, their parameters and image sizes."
    )
    parser.add_argument(
        "glob", metavar="GLOB", nargs="?", default="*", help="such as 'vit_*' (default: all)"
    )
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="list the published weights that are known: repository, licence, access",
    )
    return parser
