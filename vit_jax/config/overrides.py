"""A recipe and the overrides of its fields, as the command line gives them: --config.FIELD=VALUE.

A value is read by the type of its field. Fields of a model (`model.kwargs`) take a value as Python
writes it; the model's design checks it as the run is made.
"""

import ast
import copy
import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vit_jax.config.recipes import find_recipe, load_recipe, recipe_name, recipe_names
from vit_jax.config.schema import OptionalStrs, TrainConfig
from vit_jax.config.validate import (
    FieldInfo,
    check_kwargs_names,
    fields_of,
    plain_kind,
    proposal,
    validate,
    wanted,
)

# Fields that hold the fields of a model's constructor.
_DICTS = ("model.kwargs", "distillation.teacher_kwargs")
# With another model.name a recipe's model.kwargs no longer apply, except these, which describe the
# data and not the design.
_KWARGS_OF_DATA = ("img_size", "in_chans", "num_classes")
# What `ast.literal_eval` raises: unhashable keys are a TypeError, deep nesting the last two.
_UNREADABLE = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe with the overrides of its fields.

    Attributes:
      config: of the run.
      name: its file's, and its argument after an underscore.
      notes: remarks for the user.
    """

    config: TrainConfig
    name: str
    notes: tuple[str, ...] = ()


def read_recipe(
    recipe: str | None,
    arguments: Sequence[str],
    model_fields: Callable[[str], Iterable[str]],
    options: Sequence[str] = (),
) -> Recipe:
    """Loads a recipe and overrides its fields.

    Args:
      recipe: a path, or the name of one that comes along; None where none was given.
      arguments: `--config.FIELD=VALUE`, `--config.FIELD VALUE`, `--config.SWITCH` or
        `--noconfig.SWITCH` each.
      model_fields: gives the names of the fields of a registered model, and raises ValueError for
        an unknown name. It is called last: other mistakes are reported without loading any model
        code.
      options: further options of the command, to be proposed for what is none.

    Raises:
      ValueError: any mistake of the user's, in one line.
    """
    changes = _changes(arguments, options)
    if recipe is None:
        raise ValueError(f"wanted --config RECIPE; recipes: {', '.join(recipe_names())}")
    path = find_recipe(recipe)
    config, notes = _changed(load_recipe(path), changes, model_fields)
    return Recipe(config, recipe_name(path), notes)


def override(
    config: TrainConfig,
    arguments: Sequence[str],
    model_fields: Callable[[str], Iterable[str]],
    options: Sequence[str] = (),
) -> tuple[TrainConfig, tuple[str, ...]]:
    """A config with the fields that the command line gives, and remarks; see `read_recipe`.

    Raises:
      ValueError: any mistake of the user's, in one line.
    """
    return _changed(config, _changes(arguments, options), model_fields)


def _changes(arguments: Sequence[str], options: Sequence[str]) -> dict[str, str]:
    changes: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        path, value = _next(waiting, options)
        changes[path] = value
    return changes


def _changed(
    recipe: TrainConfig,
    changes: Mapping[str, str],
    model_fields: Callable[[str], Iterable[str]],
) -> tuple[TrainConfig, tuple[str, ...]]:
    validate(recipe)  # before it is changed: what is wrong here is the recipe's
    config = _with_overrides(recipe, changes)
    validate(config)
    return config, _fit_to_model(config, recipe, changes, model_fields(config.model.name))


def fields_help() -> str:
    """Each field of a run with its meaning and default, for `--help`."""
    lines = ["fields (--config.FIELD=VALUE; None where a field may be None; tuples as (1,2)):"]
    for info in fields_of():
        lines.append(f"  --config.{info.path}")
        default = "the recipe's" if info.default is dataclasses.MISSING else repr(info.default)
        about = f"{info.help_text} [{wanted(info)}; default {default}]"
        lines += textwrap.wrap(about, 92, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def literal(text: str) -> Any:
    """A value as Python writes it, true and false in any case, else a string (such as "none")."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return _tuples(ast.literal_eval(text))
    except _UNREADABLE:
        return text


def _next(waiting: list[str], options: Sequence[str]) -> tuple[str, str]:
    """Takes the next override, and the argument after it where that is its value: path and value.

    A path has no `config.` before it.
    """
    argument = waiting.pop(0)
    match = re.fullmatch(r"--?([A-Za-z][^=]*)(?:=(.*))?", argument, re.DOTALL)
    if match is None:
        raise ValueError(f"unexpected argument {argument!r}: wanted --config.FIELD=VALUE")
    name, value = match[1], match[2]
    is_off, path = name.startswith("no"), name.removeprefix("no").removeprefix("config.")
    if not name.startswith(("config.", "noconfig.")):
        raise ValueError(f"--{name}: no such option{proposal(f'--{name}', options)}")
    info = _field(path)
    may_be_bool = info is None or plain_kind(info.annotation)[0] is bool
    if is_off:
        if not may_be_bool or value is not None:
            raise ValueError(f"--{name}: wanted --config.{path}=VALUE")
        return path, "false"
    has_next = bool(waiting) and not waiting[0].startswith("--")
    if may_be_bool and value is None and not (info is None and has_next):
        return path, "true"
    if value is None:
        if not has_next:
            raise ValueError(f"--{name}: wanted a value: --{name}=VALUE")
        value = waiting.pop(0)
    return path, value


def _field(path: str) -> FieldInfo | None:
    """The field at a path; None for a field of a model.

    Raises:
      ValueError: no such field (near ones are proposed), or a group of fields.
    """
    fields = {info.path: info for info in fields_of()}
    if path in fields and path not in _DICTS:
        return fields[path]
    groups = {known.rsplit(".", 1)[0] for known in fields if "." in known} | set(_DICTS)
    if path in groups:
        raise ValueError(
            f"--config.{path}: a group of fields, wanted one of them: --config.{path}.FIELD=VALUE"
        )
    group, _, name = path.rpartition(".")
    if group in _DICTS and name.isidentifier():
        return None
    raise ValueError(f"--config.{path}: no such field{proposal(path, fields)}")


def _with_overrides(recipe: TrainConfig, overrides: Mapping[str, str]) -> TrainConfig:
    config = copy.deepcopy(recipe)
    for path, text in overrides.items():
        *groups, name = path.split(".")
        target: Any = config
        for group in groups:
            target = getattr(target, group)
        info = _field(path)
        if info is None:
            target[name] = literal(text)
        else:
            setattr(target, name, _value(text, info))
    return config


def _value(text: str, info: FieldInfo) -> Any:
    kind, optional = plain_kind(info.annotation)
    if optional and text.lower() == "none":
        return None
    try:
        if kind is bool:
            return _BOOLS[text.lower()]
        if info.annotation == OptionalStrs and text[:1] not in ("(", "["):
            return tuple(part.strip() for part in text.split(","))
        if kind is tuple:
            return _tuples(ast.literal_eval(text))
        return int(text, 0) if kind is int and text[:2].lower() in ("0x", "0o") else kind(text)
    except (KeyError, *_UNREADABLE):
        raise ValueError(f"config.{info.path}: wanted {wanted(info)}, got {text!r}") from None


def _fit_to_model(
    config: TrainConfig,
    recipe: TrainConfig,
    overrides: Mapping[str, str],
    fields: Iterable[str],
) -> tuple[str, ...]:
    """Drops a recipe's `model.kwargs` for another model, and checks their names; returns notes."""
    notes: tuple[str, ...] = ()
    if config.model.name != recipe.model.name:
        dropped = [
            name
            for name in recipe.model.kwargs
            if f"model.kwargs.{name}" not in overrides
            and not (name in _KWARGS_OF_DATA and name in fields)
        ]
        for name in dropped:
            del config.model.kwargs[name]
        if dropped:
            notes = (
                f"model.name is no longer {recipe.model.name}: the recipe's model.kwargs "
                f"{', '.join(dropped)} are dropped",
            )
    check_kwargs_names(config.model.name, config.model.kwargs, fields)
    return notes


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
