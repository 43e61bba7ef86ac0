"""A config as plain data: `config.json`, and the differences that forbid a resume."""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from vit_jax.config.schema import RESUMABLE_FIELDS, TrainConfig
from vit_jax.config.validate import proposal, validate
from vit_jax.storage import read_json

# Of config.json. 0 is that of 0.1.0, which differs in stating none. Up to 1 images that vary in
# size were cut otherwise in evaluation, and EXIF orientation was not applied; up to 2 training
# resized them otherwise, and images of one size got other random resized crops.
CONFIG_VERSION = 3
_VERSION = "spec_version"
_OWN = "own"  # beside the fields: what the run was given in Python, see `training.own`
# Fields of earlier versions, which every run had empty.
_RETIRED = ("unbuilt",)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The config as nested dicts of plain values."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The config that `to_dict` wrote, also after a round trip through JSON.

    A field that is left out takes its default, so that an older config.json stays readable.

    Raises:
      ValueError: an unknown field, a missing one that has no default, or a refusal of `validate`.
    """
    known = {name: value for name, value in values.items() if value or name not in _RETIRED}
    config = _build(TrainConfig, known, "config")
    validate(config)
    return config


def to_json(config: TrainConfig, own: Mapping[str, str] | None = None) -> str:
    """A work directory's config.json.

    Args:
      config: of the run.
      own: what it was given in Python, by name; None: nothing.
    """
    values = {_VERSION: CONFIG_VERSION, **to_dict(config), **({_OWN: dict(own)} if own else {})}
    return json.dumps(values, indent=2) + "\n"


def load_config(path: str | pathlib.Path) -> TrainConfig:
    """Reads a work directory's config.json.

    Raises:
      ValueError: the file holds no JSON object, or not that of a config; it is of a later version.
      OSError: the file cannot be read.
    """
    try:
        return from_dict(read_config(path))
    except ValueError as error:  # JSONDecodeError is one.
        raise ValueError(f"{path} is not the config of a run: {error}") from error


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """The values in a work directory's config.json, as plain data.

    Raises:
      ValueError: the file holds no JSON object, or is of a later version.
      OSError: the file cannot be read.
    """
    return _read(path)[0]


def config_version(path: str | pathlib.Path) -> int:
    """The version of a work directory's config.json; raises as `read_config`."""
    return _read(path)[1]


def config_own(path: str | pathlib.Path) -> dict[str, str]:
    """What the run of a config.json was given in Python, by name; raises as `read_config`."""
    return _read(path)[2]


def _read(path: str | pathlib.Path) -> tuple[dict[str, Any], int, dict[str, str]]:
    file = pathlib.Path(path) if isinstance(path, str) else path
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"wanted a JSON object, got {type(values).__name__}")
    version = values.pop(_VERSION, 0)
    if type(version) is not int or not 0 <= version <= CONFIG_VERSION:
        raise ValueError(
            f"wanted {_VERSION} as a whole number up to {CONFIG_VERSION}, got {version!r}: if a "
            "later version of vit_jax wrote it, upgrade vit_jax"
        )
    own = values.pop(_OWN, {})
    if not isinstance(own, dict) or not all(isinstance(text, str) for text in own.values()):
        raise ValueError(f"wanted {_OWN} as a group of strings, got {own!r}")
    return values, version, own


def diff(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted path: (old value, new value)} of the fields that differ.

    A field of `model.kwargs` that only one of the two sets stands with "unset" for the other.
    """
    before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
    paths = [*before, *(path for path in after if path not in before)]
    pairs = {path: (before.get(path, "unset"), after.get(path, "unset")) for path in paths}
    # None and "" both mean that there is none.
    return {
        path: (old, new)
        for path, (old, new) in pairs.items()
        if old != new and not (old in (None, "") and new in (None, ""))
    }


def check_resumable(
    old: TrainConfig,
    new: TrainConfig,
    old_own: Mapping[str, str] | None = None,
    own: Mapping[str, str] | None = None,
    may_differ: Collection[str] = (),
) -> None:
    """Refuse to go on with the run of config `old` under config `new` if numbers could change.

    Fields that cannot change them (`RESUMABLE_FIELDS`) may differ, and those of `may_differ`.
    `old_own` and `own` are what the two were given in Python.

    Fields of the length may differ too where `extends` says so.

    Raises:
      ValueError: naming each other field that differs, its old and its new value.
    """
    free = RESUMABLE_FIELDS | (_OF_LENGTH if extends(old, new) else set())
    changes = [
        f"{path} (was {before!r}, now {after!r})"
        for path, (before, after) in diff(old, new).items()
        if not {path, path.split(".")[0]} & {*free, *may_differ}
    ]
    before, after = old_own or {}, own or {}
    changes += [
        f"{name}= (was {before.get(name)}, now {after.get(name)})"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    if changes:
        raise ValueError(
            "the work directory holds a run of another config, which differs in "
            f"{', '.join(changes)}: repeat the command that started it, or give another --workdir"
            f"{_of_more_epochs(old, new)}"
        )


_OF_LENGTH = {"num_epochs", "optimizer.restarts"}


def extends(old: TrainConfig, new: TrainConfig) -> bool:
    """Whether `new` has more epochs than `old` and the same learning rates up to the end of `old`.

    So it is with a constant schedule and with one in steps; of others, where `optimizer.restarts`
    names that end as the epoch at which the schedule begins anew.
    """
    if new.num_epochs <= old.num_epochs:
        return False
    before, after = (tuple(config.optimizer.restarts or ()) for config in (old, new))
    is_open = old.optimizer.schedule in ("constant", "step") and after == before
    return is_open or after == (*before, old.num_epochs)


def _of_more_epochs(old: TrainConfig, new: TrainConfig) -> str:
    """How a run gets more epochs, for who asks for it as it is not had."""
    if new.num_epochs <= old.num_epochs or extends(old, new):
        return ""
    restarts = ",".join(f"{epoch:g}" for epoch in (*(old.optimizer.restarts or ()), old.num_epochs))
    return (
        f'; its "{old.optimizer.schedule}" schedule ends with its {old.num_epochs} epochs: more of '
        f"them need --config.optimizer.restarts=({restarts},), which begins it anew; or start a "
        "new run from this one, with --config.init_from=RUN:best and another --workdir"
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _build(kind: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: wanted a group of fields, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ValueError(f"{path}.{name} is not a field{proposal(name, fields)}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            value, kind_of_field = values[name], field.type
            arguments[name] = (
                _build(kind_of_field, value, f"{path}.{name}")
                if isinstance(kind_of_field, type) and dataclasses.is_dataclass(kind_of_field)
                else _tuples(value)
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path}.{name} is missing")
    return kind(**arguments)


def _tuples(value: Any) -> Any:
    """JSON has lists only; a config holds tuples only."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return value
