"""The command line of training: a recipe, a work directory, and overrides of single fields.

`ml_collections.config_flags` parses the overrides. Two things it cannot do are added here: it
knows no way back to None for an optional field (each optional type gets a parser of its own), and
it cannot add a key to a dict (while flags are read, `model.kwargs` and the teacher's are dicts that
take any key, and the names are checked against the constructor afterwards).
"""

import ast
import copy
import dataclasses
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from vit_jax.config import schema
from vit_jax.config.recipes import find_recipe, load_recipe, recipe_names
from vit_jax.config.schema import TrainConfig
from vit_jax.config.validate import check_model_kwargs, fields_of, proposal, validate, wanted

# Fields that hold the fields of a model's constructor.
_DICTS = ("model.kwargs", "distillation.teacher_kwargs")
# With another model.name a recipe's model.kwargs no longer apply, except these, which tell of the
# data and not of the design.
_KWARGS_OF_DATA = ("img_size", "in_chans", "num_classes")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a training command asks for.

    Attributes:
      config: the recipe, with the overrides.
      options: the command's own options, None where one is not given.
      recipe_path: the recipe's file.
      notes: remarks for the user.
    """

    config: TrainConfig
    options: Mapping[str, str | None]
    recipe_path: pathlib.Path
    notes: tuple[str, ...] = ()


def parse_command_line(
    arguments: Sequence[str],
    model_fields: Callable[[str], Mapping[str, Any]],
    options: Sequence[str] = (),
) -> CommandLine:
    """Read `--config RECIPE [--OPTION VALUE ...] [--config.FIELD=VALUE ...]`.

    Args:
      arguments: the command line without the program's name.
      model_fields: gives the constructor's fields of a registered model with their defaults, and
        raises ValueError for an unknown name. It is called last: other mistakes are reported
        without loading any model code.
      options: names of the command's own options, each of which takes a string.

    Raises:
      ValueError: any mistake of the user's, in one line.
    """
    values = flags.FlagValues()
    for option in options:
        flags.DEFINE_string(option, None, "", flag_values=values)
    try:
        arguments = ["train", *values.read_flags_from_files(list(arguments), force_gnu=False)]
    except flags.Error as error:  # of --flagfile, absl's own
        raise ValueError(str(error)) from None
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    parser = _RecipeParser(arguments)
    values["config"].parser = parser
    for optional, kind in _OPTIONAL_PARSERS.items():
        config_flags.register_flag_parser_for_type(optional, kind)
    try:
        _, *rest = values(arguments)
    except flags.IllegalFlagValueError as error:
        # absl words the ValueErrors of a parser anew; those of ours say more.
        raise parser.error or _illegal_value(error) from None
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: wanted --config.FIELD=VALUE")
    if values["config"].value is None:
        raise ValueError(f"wanted --config RECIPE; recipes: {', '.join(recipe_names())}")

    config: TrainConfig = values["config"].value
    given = _tuples_of(config.model.kwargs)
    recipe = parser.recipe
    kept, notes = recipe.model.kwargs, ()
    teacher = _tuples_of(config.distillation.teacher_kwargs)
    config.distillation.teacher_kwargs = recipe.distillation.teacher_kwargs | teacher
    config.model.kwargs = kept | given
    validate(config)
    fields = model_fields(config.model.name)
    if config.model.name != recipe.model.name:
        kept = {name: kept[name] for name in kept if name in _KWARGS_OF_DATA and name in fields}
        dropped = [name for name in recipe.model.kwargs if name not in kept and name not in given]
        if dropped:
            notes = (
                f"model.name is no longer {recipe.model.name}: the recipe's model.kwargs "
                f"{', '.join(dropped)} are dropped",
            )
        config.model.kwargs = kept | given
    check_model_kwargs(config.model.name, config.model.kwargs, fields)
    given_options = {option: values[option].value for option in options}
    return CommandLine(config, given_options, parser.path, notes)


def help_text(program: str) -> str:
    """What `--help` prints: usage, and each field with its meaning and default."""
    lines = [
        f"usage: {program} --config RECIPE [--workdir DIR] [--config.FIELD=VALUE ...]",
        "",
        "Train a Vision Transformer. The same command on the same work directory resumes.",
        "",
        "  --config RECIPE   a file with get_config(), or the name of a recipe that comes along:",
        *textwrap.wrap(
            ", ".join(recipe_names()), 92, initial_indent=" " * 20, subsequent_indent=" " * 20
        ),
        "  --workdir DIR     checkpoints, metrics and plots go here (default: runs/RECIPE)",
        "",
        "On many hosts each runs this command, with one work directory that all see. JAX finds the",
        "hosts of a Cloud TPU, of SLURM, Open MPI up to 4 and Kubernetes by itself; else:",
        "",
        "  --coordinator_address HOST:PORT   of process 0, a free port",
        "  --num_processes N                 how many there are; 1: this one is alone",
        "  --process_id I                    which one this is, from 0",
        "",
        "Fields (--config.FIELD=VALUE; None where a field may be None; tuples as (1,2)):",
    ]
    for info in fields_of():
        lines.append(f"  --config.{info.path}")
        default = "the recipe's" if info.default is dataclasses.MISSING else repr(info.default)
        about = f"{info.help_text} [{wanted(info)}; default {default}]"
        lines += textwrap.wrap(about, 92, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


class _AnyKey(dict[str, Any]):
    """A dict that has every key as far as config_flags sees.

    It takes the type of a dict's value for the type of the flag, and parses flags of type
    `object` as Python literals, or as strings where they are none.
    """

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> object:
        return object()


class _RecipeParser(flags.ArgumentParser):
    """Loads the recipe and looks at the names of all overrides before any is applied.

    In the place of config_flags' own, which hides a recipe that fails until it is used.
    """

    path: pathlib.Path
    recipe: TrainConfig

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.error: ValueError | None = None

    def parse(self, argument: str) -> TrainConfig:
        try:
            self.path = find_recipe(argument)
            self.recipe = load_recipe(self.path)
            # Before flags are applied, so that what is wrong is the recipe's and is said to be.
            validate(self.recipe)
            _check_override_names(self.arguments)
        except ValueError as error:
            self.error = error
            raise
        config = copy.deepcopy(self.recipe)
        config.model.kwargs = _AnyKey()
        config.distillation.teacher_kwargs = _AnyKey()
        return config


class _NoneOr(flags.ArgumentParser):
    """Parses "None", in any case, to None, and all else as `kind` does."""

    def __init__(self, kind: flags.ArgumentParser) -> None:
        self.kind = kind

    def parse(self, argument: Any) -> Any:
        if isinstance(argument, str) and argument.lower() == "none":
            return None
        return self.kind.parse(argument)

    def flag_type(self) -> str:
        return f"{self.kind.flag_type()} or None"


class _NumbersParser(flags.ArgumentParser):
    """Parses "(0.5,0.5,0.5)" to a tuple."""

    def parse(self, argument: Any) -> Any:
        try:
            value = ast.literal_eval(argument) if isinstance(argument, str) else argument
        except SyntaxError as error:
            raise ValueError("not a tuple") from error
        return _tuples(value)

    def flag_type(self) -> str:
        return "tuple"


class _StringsParser(flags.ArgumentParser):
    """Parses "head,blocks.0" or "('head','blocks.0')" to a tuple."""

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return _tuples(argument)
        if argument[:1] not in ("(", "["):
            return tuple(part.strip() for part in argument.split(","))
        try:
            return _tuples(ast.literal_eval(argument))
        except SyntaxError as error:
            raise ValueError("not a tuple") from error

    def flag_type(self) -> str:
        return "tuple"


_OPTIONAL_PARSERS: dict[Any, flags.ArgumentParser] = {
    schema.OptionalInt: _NoneOr(flags.IntegerParser()),
    schema.OptionalFloat: _NoneOr(flags.FloatParser()),
    schema.OptionalStr: _NoneOr(flags.ArgumentParser()),
    schema.OptionalFloats: _NoneOr(_NumbersParser()),
    schema.OptionalStrs: _NoneOr(_StringsParser()),
}


def _check_override_names(arguments: Sequence[str]) -> None:
    """Refuse overrides of what is no field; config_flags would stop with a bare KeyError."""
    paths = [info.path for info in fields_of()]
    groups = {path.rsplit(".", 1)[0] for path in paths if "." in path} | set(_DICTS)
    keys = "|".join(map(re.escape, _DICTS))
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not match:
            continue
        path = match[1]
        if path in groups:
            raise ValueError(
                f"--config.{path}: a group of fields, wanted one of them: "
                f"--config.{path}.FIELD=VALUE"
            )
        if path not in paths and not re.fullmatch(rf"(?:{keys})\.[A-Za-z_]\w*", path):
            raise ValueError(f"--config.{path}: no such field{proposal(path, paths)}")


def _illegal_value(error: flags.IllegalFlagValueError) -> ValueError:
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    info = next((i for i in fields_of() if match and i.path == match[1]), None)
    if match is None or info is None:
        return ValueError(str(error))
    return ValueError(f"config.{info.path}: wanted {wanted(info)}, got {match[2]!r}")


def _tuples_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in values.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
