"""What the command lines have in common."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vit_jax.config.overrides import CommandLine, literal, parse_command_line

if TYPE_CHECKING:
    from vit_jax.models.base import VisionModel


class Parser(argparse.ArgumentParser):
    """A mistake is one line and status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option `--out FILE.png` of what draws."""
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture to write")


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The option `--field NAME=VALUE`, any number of times: a list of (name, value)."""
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constructor field of the model; may be given again",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """A trained model's source, and the options `--model`, `--field` and `--ema`."""
    parser.add_argument(
        "source",
        metavar="CHECKPOINT_OR_WEIGHTS",
        help="a work directory, a checkpoint in it, a .safetensors, .pth or .npz file, a Hugging "
        "Face or Orbax folder, or hf:OWNER/NAME",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the registered model (default: the run's, or the only one that the weights fit)",
    )
    add_fields(parser)
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="of a run the averaged weights, or the raw ones (default: raw)",
    )


def add_data(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options that name data, all but the split; returns their group."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--source", dest="data_source", choices=("tfds", "folder", "digits"), help="the kind of set"
    )
    data.add_argument("--name", help="tfds: of the set; folder: a folder below --data-dir")
    data.add_argument("--data-dir", metavar="DIR", help="where prepared sets or the folder are")
    data.add_argument(
        "--batch-size", type=int, metavar="N", help="images at a time (default: the run's, or 256)"
    )
    return data


def load_given_model(options: argparse.Namespace) -> "VisionModel[Any]":
    """The model that the options of `add_model` name; tells on standard error what it is.

    Raises:
      ValueError: see `vit_jax.from_pretrained`.
    """
    from vit_jax.weights.load import load_with_notes

    model, notes = load_with_notes(
        options.source, name=options.model, fields=to_fields(options.field), ema=options.ema
    )
    print("; ".join([f"{model.spec.name} from {model.spec.source}", *notes]), file=sys.stderr)
    return model


def to_fields(texts: list[str]) -> dict[str, Any]:
    """The values of `--field`, each as `vit_jax.config.overrides.literal` reads it.

    Raises:
      ValueError: one is not NAME=VALUE.
    """
    return dict(_field(text) for text in texts)


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--field: wanted NAME=VALUE, got {text!r}")
    return name, literal(value)


def read_recipe(
    arguments: Sequence[str], options: Sequence[str] = (), switches: Sequence[str] = ()
) -> CommandLine:
    """Reads `--config RECIPE [--config.FIELD=VALUE ...]`, and tells its notes on standard error.

    Args:
      arguments: of the command line.
      options: names of further ones, each with a value.
      switches: names of further ones without.

    Raises:
      ValueError: any mistake of the user's, in one line.
    """
    line = parse_command_line(arguments, _model_fields, options, switches)
    print_notes(line.notes)
    return line


def _model_fields(name: str) -> Mapping[str, Any]:
    from vit_jax.models.registry import model_fields

    return model_fields(name)


def print_notes(notes: Iterable[str]) -> None:
    """Remarks for the user, each a line of standard error."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` without what a terminal would obey, or could not print."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
