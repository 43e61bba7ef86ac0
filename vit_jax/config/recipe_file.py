"""A config as the Python file of a recipe, to be read and edited."""

import dataclasses
from typing import Any

from vit_jax.config.schema import TrainConfig

_LONG = 60  # characters that stand on one line


def recipe_file(config: TrainConfig, about: str) -> str:
    """The text of a recipe whose `get_config()` returns `config`: what is no default is written.

    Args:
      config: of a run.
      about: the docstring.
    """
    groups = sorted(_groups_of(config))
    imports = "".join(f"    {name},\n" for name in groups)
    docstring = about.strip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return (
        f'"""{docstring}\n"""\n\nfrom vit_jax.config import (\n{imports})\n\n\n'
        f"def get_config() -> TrainConfig:\n    return {_written(config, 1)}\n"
    )


def _groups_of(group: Any) -> set[str]:
    below = [value for _, value in _changed(group) if dataclasses.is_dataclass(value)]
    return {type(group).__name__}.union(*map(_groups_of, below))


def _changed(group: Any) -> list[tuple[str, Any]]:
    """The fields of a group that are not as they would be if they were left out."""
    return [
        (field.name, value)
        for field in dataclasses.fields(group)
        if (value := getattr(group, field.name)) != _default(field)
    ]


def _default(field: "dataclasses.Field[Any]") -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _written(value: Any, depth: int) -> str:
    """A value as Python code; a group, and what is long, an item a line."""
    if dataclasses.is_dataclass(value):
        items = [f"{name}={_written(each, depth + 1)}" for name, each in _changed(value)]
        start, end = f"{type(value).__name__}(", ")"
    elif isinstance(value, dict | tuple):
        if isinstance(value, dict):
            pairs = value.items()
            items = [f"{_written(k, 0)}: {_written(each, depth + 1)}" for k, each in pairs]
        else:
            items = [_written(each, depth + 1) for each in value]
        start, end = "{}" if isinstance(value, dict) else "()"
    else:
        text = repr(value)
        return f'"{text[1:-1]}"' if isinstance(value, str) and '"' not in text else text
    is_group = dataclasses.is_dataclass(value)
    if sum(map(len, items)) > _LONG or (is_group and len(items) > 1):
        indented = "".join(f"{'    ' * (depth + 1)}{item},\n" for item in items)
        return f"{start}\n{indented}{'    ' * depth}{end}"
    comma = "," if isinstance(value, tuple) and len(items) == 1 else ""
    return f"{start}{', '.join(items)}{comma}{end}"
