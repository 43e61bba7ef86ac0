"""`vit-jax COMMAND ...`: a module a command, each with `run(arguments) -> exit status`.

JAX and all that needs it are imported inside the commands: `--help` and a mistake in a config
answer without them.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from vit_jax.cli.errors import make_streams_safe, status_of
from vit_jax.cli.parsing import Parser

COMMANDS = {
    "train": "train a model, or go on with a run",
    "finetune": "a classifier of a folder of images, in one command",
    "plan": "compile a run for a TPU slice, without one",
    "prepare": "download and prepare a data set, once",
    "data": "check a folder of images: classes, damaged files, copies across splits",
    "predict": "what a trained model sees in image files",
    "evaluate": "a trained model's accuracy, confusion and calibration on a data set",
    "probe": "how well a model's features tell classes apart, by neighbours or a linear layer",
    "embed": "features of image files, their nearest neighbours and the most alike pairs",
    "export": "a model as a file that runs without this package",
    "convert": "weights of one form into those of another",
    "parity": "hold a model, number by number, to PyTorch",
    "models": "list models, their parameters and image sizes",
    "summary": "the layer table of a model: shapes, parameters, MACs, activations",
    "plot": "draw pictures of data, runs and models",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    A mistake of the user's ends in one line on standard error and status 2; a bug of ours in a
    traceback, a request to report it, and status 70.

    Args:
      arguments: the command line without the program's name; None: this process's.

    Returns:
      The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    make_streams_safe()
    try:
        if not arguments or arguments[0] not in COMMANDS:
            _parser().parse_args(arguments)  # --help, --version or a mistake: it does not return
        name, *rest = arguments
        status = importlib.import_module(f"vit_jax.cli.{name}").run(rest)
        sys.stdout.flush()
        return status
    except BaseException as error:
        return status_of(error)


def _parser() -> Parser:
    parser = Parser(
        prog="vit-jax",
        description="Vision Transformers and Tokens-to-Token ViTs in JAX.",
        epilog="`vit-jax COMMAND --help` tells more.",
    )
    version = importlib.metadata.version("vit-jax")
    parser.add_argument("--version", action="version", version=f"vit-jax {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser
