"""`vit-jax prepare`: download and prepare a data set, once."""

from collections.abc import Sequence

from vit_jax.cli.parsing import Parser, printable


def run(arguments: Sequence[str]) -> int:
    """`prepare NAME [--data-dir DIR] [--archive PATH]`."""
    options = _parser().parse_args(arguments)
    from vit_jax.data.prepare import prepare
    from vit_jax.watching import busy

    with busy(f"preparing {printable(options.name)}"):
        prepared = prepare(options.name, options.data_dir, options.archive)
    print(f"prepared {prepared}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="vit-jax prepare", description="Download and prepare a data set, once.")
    parser.add_argument("name", metavar="NAME", help="a TFDS name, such as cifar100")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="where sets are kept (default: TFDS's own directory)"
    )
    parser.add_argument(
        "--archive",
        metavar="PATH",
        help="a local copy of the official archive of cifar10, cifar100, imagenette128 or "
        "imagenette224, or the directory with the IDX files of fashion_mnist",
    )
    return parser
