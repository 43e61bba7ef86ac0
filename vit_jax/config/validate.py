"""Checks of a `TrainConfig`, made once, before anything is built.

Every failure is one `ValueError` that names the field's path, what was wanted and what came.
"""

import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any

from vit_jax.config.schema import Limits, OptimizerConfig, OptionalStrs, TrainConfig

_LARGEST = 2**31 - 1  # of what has no limit of its own: steps and sizes are counted in 32 bits


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One field that can be set: its dotted path, annotation, default, help text and limits."""

    path: str
    annotation: Any
    default: Any  # dataclasses.MISSING where a recipe has to say
    help_text: str
    limits: Limits


def fields_of(kind: type = TrainConfig, prefix: str = "") -> Iterator[FieldInfo]:
    """Every field of the config, groups opened, in the order of the source."""
    for field in dataclasses.fields(kind):
        path = prefix + field.name
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, path + ".")
        else:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            about = field.metadata
            yield FieldInfo(path, field.type, default, about["help"], about["limits"])


def get_field(config: TrainConfig, path: str) -> Any:
    """The value at a dotted path such as `data.batch_size`."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def proposal(name: str, choices: Iterable[str]) -> str:
    """'; did you mean a or b' for the choices near `name`, or an empty string.

    Near is the same last part, one with these initials (lr, wd), or one that is spelt alike.
    """
    choices = list(choices)
    tails = {choice: choice.rsplit(".", 1)[-1] for choice in choices}
    tail = name.rsplit(".", 1)[-1]
    same_tail = [choice for choice in choices if tails[choice] == tail]
    initials = [
        choice for choice in choices if "".join(w[:1] for w in tails[choice].split("_")) == tail
    ]
    near = (
        same_tail
        or (initials if len(tail) > 1 else [])
        or difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    )
    return f"; did you mean {' or '.join(near)}" if near else ""


def wanted(info: FieldInfo) -> str:
    """What a field takes, in words: 'an integer >= 1', '"jit" or "pmap"'."""
    limits = info.limits
    if limits.choices:
        choices = " or ".join(f'"{choice}"' for choice in limits.choices)
        return f"{choices} or None" if plain_kind(info.annotation)[1] else choices
    bounds = [
        f"{sign} {bound}"
        for sign, bound in (
            (">=", limits.minimum),
            (">", limits.above),
            ("<=", limits.maximum),
            ("<", limits.below),
        )
        if bound is not None
    ]
    kinds, optional = plain_kind(info.annotation)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    if kinds is tuple:
        of_strings = info.annotation == OptionalStrs
        words[tuple] = "a tuple of strings" if of_strings else "a tuple of numbers"
    text = words.get(kinds, "a dict")
    text = " ".join([text, " and ".join(bounds)]) if bounds else text
    return f"{text}, or None" if optional else text


def validate(config: TrainConfig) -> None:
    """Refuse a config that cannot be run, before anything is built.

    What needs the model's design is checked by it as the run is made, what needs the data or
    the devices (batch size divisible by the mesh, enough classes) where those are known.

    Raises:
      ValueError: a field of a wrong type, out of range or not among its choices, or two fields
        that contradict each other.
    """
    _check_groups(config, TrainConfig, "config")
    for info in fields_of():
        value = get_field(config, info.path)
        if not _fits(value, info):
            raise ValueError(f"config.{info.path}: wanted {wanted(info)}, got {value!r}")
        is_counted = plain_kind(info.annotation)[0] is int and info.limits.maximum is None
        if is_counted and value is not None and value > _LARGEST:
            raise ValueError(f"config.{info.path}: wanted at most {_LARGEST:,}, got {value!r}")
    for path in ("model.kwargs", "distillation.teacher_kwargs"):
        for name, value in get_field(config, path).items():
            if not isinstance(name, str) or not _is_plain(value):
                raise ValueError(
                    f"config.{path}.{name}: wanted None, a bool, a number, a string or a tuple "
                    f"of those (it is written to config.json), got {value!r}"
                )
    _check_together(config)


def _check_groups(group: Any, kind: type, path: str) -> None:
    """Refuses a config, or a group in it, that is another object or has other fields."""
    if not isinstance(group, kind):
        raise ValueError(f"{path}: wanted a {kind.__name__}, got {group!r}")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if unknown := sorted(vars(group).keys() - fields.keys()):
        raise ValueError(f"{path}.{unknown[0]} is not a field{proposal(unknown[0], fields)}")
    for name, annotation in fields.items():
        if not hasattr(group, name):
            raise ValueError(f"{path}.{name} is missing")
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            _check_groups(getattr(group, name), annotation, f"{path}.{name}")


def check_kwargs_names(name: str, kwargs: Iterable[str], fields: Iterable[str]) -> None:
    """Refuses `model.kwargs` that are no fields of model `name`; what they hold the design checks.

    Raises:
      ValueError: an unknown field; near names are proposed.
    """
    fields = list(fields)
    for field in kwargs:
        if field not in fields:
            raise ValueError(
                f"config.model.kwargs.{field}: {name} has no such field"
                f"{proposal(field, fields)}; it takes: {', '.join(sorted(fields))}"
            )


def plain_kind(annotation: Any) -> tuple[Any, bool]:
    """The plain type (int, float, bool, str, tuple, dict) behind an annotation; is None allowed?"""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    optional = isinstance(annotation, UnionType)
    if optional:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return typing.get_origin(annotation) or annotation, optional


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, info: FieldInfo) -> bool:
    kind, optional = plain_kind(info.annotation)
    if value is None:
        return optional
    if info.annotation == OptionalStrs:
        return (
            isinstance(value, tuple)
            and bool(value)
            and all(isinstance(item, str) and item for item in value)
        )
    if kind is tuple:
        return (
            isinstance(value, tuple)
            and bool(value)
            and all(_is_number(item) and _in_range(item, info.limits) for item in value)
        )
    if kind is float:
        return _is_number(value) and _in_range(value, info.limits)
    if kind is int:
        return isinstance(value, int) and _is_number(value) and _in_range(value, info.limits)
    if info.limits.choices:
        return value in info.limits.choices
    return isinstance(value, kind)


def _in_range(value: int | float, limits: Limits) -> bool:
    return (
        (limits.minimum is None or value >= limits.minimum)
        and (limits.above is None or value > limits.above)
        and (limits.maximum is None or value <= limits.maximum)
        and (limits.below is None or value < limits.below)
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _check_unused(config: TrainConfig, why: str, *paths: str) -> None:
    """Refuses fields that tell of what the run has not."""
    defaults = {info.path: info.default for info in fields_of()}
    for path in paths:
        value = get_field(config, path)
        if value and value != defaults[path]:
            raise ValueError(f"config.{path}: wanted {defaults[path]!r} {why}, got {value!r}")


def _check_together(config: TrainConfig) -> None:
    data, optimizer, mesh = config.data, config.optimizer, config.mesh
    if (data.source == "tfds") != bool(data.name):
        raise ValueError(
            'config.data.name: wanted the TFDS name of a set with data.source="tfds", and an empty '
            f'string with the other sources, got {data.name!r} with data.source="{data.source}"'
        )
    if data.source == "folder" and data.data_dir is None:
        raise ValueError(
            'config.data.data_dir: wanted the directory of images for data.source="folder", '
            "got None"
        )
    if data.source != "folder":
        why = 'but with data.source="folder"'
        _check_unused(config, why, "data.exclude", "data.labels_file")
    if not data.train_split:
        raise ValueError("config.data.train_split: wanted the name of a split, got ''")
    if (data.mean is None) != (data.std is None) or (
        data.mean is not None and data.std is not None and len(data.mean) != len(data.std)
    ):
        raise ValueError(
            "config.data.mean and config.data.std: wanted both None or both of one length, got "
            f"{data.mean!r} and {data.std!r}"
        )
    for name in ("crop_scale", "crop_ratio"):
        limits = getattr(data, name)
        if len(limits) != 2 or limits[0] > limits[1]:
            raise ValueError(
                f"config.data.{name}: wanted two numbers, the smallest and the largest, got "
                f"{limits!r}"
            )
    if data.color_jitter and data.rand_augment:
        raise ValueError(
            "config.data.color_jitter: wanted 0 with rand_augment, which changes colours itself, "
            f"got {data.color_jitter} with rand_augment={data.rand_augment!r}"
        )
    _check_optimizer(optimizer, config.num_epochs)
    _check_loss(config)
    if config.ema.warmup and not config.ema.decay:
        raise ValueError(
            "config.ema.warmup: wanted false while config.ema.decay is 0 and nothing is averaged, "
            "got True"
        )
    if not config.init_from:
        _check_unused(config, "without init_from", "init_weights", "init_head", "init_resize")
    if config.distillation.kind == "none":
        _check_unused(config, 'with distillation.kind="none"', "distillation.teacher")
    elif not config.distillation.teacher:
        raise ValueError(
            "config.distillation.teacher: wanted the teacher's weights with distillation.kind="
            f'"{config.distillation.kind}": a weights file, a checkpoint or a work directory'
        )
    if mesh.data != -1 and mesh.data < 1:
        raise ValueError(
            "config.mesh.data: wanted a number of devices >= 1, or -1 for all that fsdp leaves, "
            f"got {mesh.data}"
        )
    if config.parallel == "pmap" and mesh.fsdp != 1:
        raise ValueError(
            'config.mesh.fsdp: wanted 1 with parallel="pmap", where every device holds all '
            f'parameters, got {mesh.fsdp}; shard parameters with parallel="jit"'
        )
    if config.parallel == "pmap":
        _check_unused(config, 'with parallel="pmap"', "training.steps_per_dispatch")
    if config.training.reduce_dtype != "auto" and mesh.fsdp != 1:
        raise ValueError(
            'config.training.reduce_dtype: wanted "auto" with mesh.fsdp other than 1, where the '
            f"compiler places all exchanges, got {config.training.reduce_dtype!r} with "
            f"mesh.fsdp={mesh.fsdp}"
        )


def _check_loss(config: TrainConfig) -> None:
    loss, target = config.loss, config.loss.target
    why = f'with loss.kind="{loss.kind}"'
    if target != "classification":
        _check_unused(
            config,
            why,
            "data.sampling",
            "loss.label_smoothing",
            "mix.mixup_alpha",
            "mix.cutmix_alpha",
            "distillation.kind",
        )
    if target != "regression":
        _check_unused(config, why, "loss.target_mean", "loss.target_std")
    if target == "regression" or loss.kind == "reconstruction":
        _check_unused(config, why, "loss.class_weights", "loss.balanced")
    if config.distillation.kind != "none":
        _check_unused(config, "with a teacher", "loss.class_weights", "loss.balanced")
    if len(loss.target_mean or ()) != len(loss.target_std or ()):
        raise ValueError(
            "config.loss.target_mean and config.loss.target_std: wanted both None or both of one "
            f"length, got {loss.target_mean!r} and {loss.target_std!r}"
        )
    if loss.class_weights and loss.balanced:
        raise ValueError(
            "config.loss.balanced: wanted false with class_weights, which it would choose, got True"
        )
    if not config.data.validation_split and config.data.source != "own":
        _check_unused(config, "without a validation split", "evaluation.patience")


def _check_optimizer(optimizer: OptimizerConfig, num_epochs: int) -> None:
    if optimizer.warmup_epochs > num_epochs:
        raise ValueError(
            "config.optimizer.warmup_epochs: wanted at most num_epochs "
            f"({num_epochs}), got {optimizer.warmup_epochs}"
        )
    if optimizer.cooldown_epochs and optimizer.schedule not in ("cosine", "linear"):
        raise ValueError(
            'config.optimizer.cooldown_epochs: wanted 0 but with schedule="cosine" or "linear", '
            f'got {optimizer.cooldown_epochs} with schedule="{optimizer.schedule}"'
        )
    left = num_epochs - optimizer.warmup_epochs
    if optimizer.cooldown_epochs and optimizer.cooldown_epochs >= left:
        raise ValueError(
            "config.optimizer.cooldown_epochs: wanted fewer than num_epochs less warmup_epochs "
            f"({left}), got {optimizer.cooldown_epochs}"
        )
    for name in ("warmup_learning_rate", "min_learning_rate"):
        if getattr(optimizer, name) > optimizer.learning_rate:
            raise ValueError(
                f"config.optimizer.{name}: wanted at most learning_rate "
                f"({optimizer.learning_rate}), got {getattr(optimizer, name)}"
            )
    _check_restarts(optimizer, num_epochs)
    if optimizer.nesterov and (optimizer.name != "sgd" or not optimizer.momentum):
        raise ValueError(
            'config.optimizer.nesterov: wanted false but with name="sgd" and a momentum above 0, '
            f'got True with name="{optimizer.name}" and momentum={optimizer.momentum}'
        )


def _check_restarts(optimizer: OptimizerConfig, num_epochs: int) -> None:
    ends = (*(optimizer.restarts or ()), num_epochs)
    rises = all(after > before for before, after in itertools.pairwise((0, *ends)))
    if not rises or not all(float(end).is_integer() for end in ends):
        raise ValueError(
            "config.optimizer.restarts: wanted whole epochs that rise and are below num_epochs "
            f"({num_epochs}), got {optimizer.restarts!r}"
        )
    if optimizer.restarts and optimizer.schedule == "step":
        raise ValueError(
            'config.optimizer.restarts: wanted None with schedule="step", got '
            f"{optimizer.restarts!r}"
        )
    shortest = min(after - before for before, after in itertools.pairwise((0, *ends)))
    for name in ("warmup_epochs", "cooldown_epochs"):
        if optimizer.restarts and getattr(optimizer, name) >= shortest:
            raise ValueError(
                f"config.optimizer.{name}: wanted less than the {shortest:g} epochs between two "
                f"restarts, got {getattr(optimizer, name)}"
            )
