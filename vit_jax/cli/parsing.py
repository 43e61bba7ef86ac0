"""What the command lines have in common."""

import argparse
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vit_jax.config.overrides import Recipe, fields_help, literal, read_recipe
from vit_jax.config.recipes import recipe_names

if TYPE_CHECKING:
    from vit_jax.models.base import VisionModel


class Answered(SystemExit):
    """The end of a command that was asked for `--help` or `--version`."""


def count(text: str) -> int:
    """The type of options that are a number of things."""
    if not text.isdecimal() or not 1 <= (number := int(text[:20])) < 2**31:
        raise argparse.ArgumentTypeError(f"wanted a number of at least 1, got {text[:80]!r}")
    return number


class Parser(argparse.ArgumentParser):
    """A mistake is a ValueError, which `main` tells in one line; an empty value is one."""

    def parse_known_args(self, *arguments: Any, **settings: Any) -> Any:
        options, rest = super().parse_known_args(*arguments, **settings)
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(str(argparse.ArgumentError(action, "wanted a value, got nothing")))
        return options, rest

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered(status)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class RecipeParser(Parser):
    """A parser of a command that takes a recipe: `--config RECIPE [--config.FIELD=VALUE ...]`.

    Args:
      prog, description: as of `argparse`.
      needs_recipe: whether the recipe must be given.
      notes: lines before the fields in `--help`.
      **settings: further ones of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        needs_recipe: bool = True,
        notes: str = "",
        **settings: Any,
    ):
        settings.setdefault("usage", "%(prog)s --config RECIPE [...] [--config.FIELD=VALUE ...]")
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n\n".join(filter(None, [notes, fields_help() if needs_recipe else ""])),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )
        self.needs_recipe = needs_recipe
        self.add_argument(
            "--config",
            metavar="RECIPE",
            help="a file with get_config(), or the name of a recipe that comes along; :ARGUMENT at "
            f"its end goes to get_config (imagenet_t2t_vit:14): {', '.join(recipe_names())}",
        )

    def read(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, Recipe | None]:
        """The options, and the recipe with its overrides; tells its notes on standard error.

        Raises:
          ValueError: a mistake in the recipe or in an override, in one line.
        """
        options, rest = self.parse_known_args(arguments)
        if options.config is None and not rest and not self.needs_recipe:
            return options, None
        known = [name for action in self._actions for name in action.option_strings]
        recipe = read_recipe(options.config, rest, fields_of_model, known)
        print_notes(recipe.notes)
        return options, recipe

    def read_both(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, Recipe]:
        """As `read`, of a command that needs a recipe."""
        options, recipe = self.read(arguments)
        assert recipe is not None
        return options, recipe


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option `--out FILE.png` of what draws."""
    parser.add_argument(
        "--out", required=True, metavar="FILE.png", help="the picture: .png, .jpg, .pdf or .svg"
    )


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The option `--field NAME=VALUE`, any number of times: a list of (name, value)."""
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constructor field of the model; may be given again",
    )


def add_images(parser: Parser) -> None:
    """The image files of a command, for `given_images`."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files, folders of them (at any depth), or patterns such as 'a/**/*.jpg'",
    )
    parser.add_argument(
        "--batch-size", type=count, default=32, metavar="N", help="images at a time (default: 32)"
    )


def given_images(options: argparse.Namespace) -> list[str]:
    """The files that the arguments of `add_images` name.

    Raises:
      ValueError: there are none.
    """
    from vit_jax.inference.images import find_images

    paths = find_images(options.images)
    if not paths:
        raise ValueError(
            f"no image in {', '.join(options.images)}: wanted files, folders, patterns"
        )
    # Pillow warns of files that are odd; those that cannot be read we name ourselves.
    warnings.filterwarnings("ignore", module="PIL")
    return paths


def add_model(parser: argparse.ArgumentParser) -> None:
    """A trained model's source, and the options `--model`, `--field` and `--ema`."""
    parser.add_argument(
        "source",
        metavar="CHECKPOINT_OR_WEIGHTS",
        help="a work directory, a checkpoint in it, RUN:best for that of its best validation, a "
        ".safetensors, .pth or .npz file, a Hugging Face or Orbax folder, or hf:OWNER/NAME",
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


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The option `--matmul-precision`, for `jax_setup.set_matmul_precision`."""
    parser.add_argument(
        "--matmul-precision",
        choices=("default", "high", "highest"),
        help="how many digits of float32 operands a GPU or TPU multiplies with; highest: all, as a "
        "CPU does (default: as JAX is set; see docs/precision.md)",
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
        "--batch-size",
        type=count,
        metavar="N",
        help="images at a time (default: the run's, or 256)",
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


def fields_of_model(name: str) -> Mapping[str, Any]:
    """The constructor fields of a registered model; imports JAX."""
    from vit_jax.models.registry import model_fields

    return model_fields(name)


def print_notes(notes: Iterable[str]) -> None:
    """Remarks for the user, each a line of standard error."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` without what a terminal would obey, or could not print."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
