"""The description of a model as JSON: what every file of weights carries beside its arrays."""

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vit_jax import storage
from vit_jax.layers.checks import to_pair
from vit_jax.models.spec import CROP_MODES, SPEC_VERSION, ModelSpec, Preprocessing, Target

SPEC = "vit_jax"  # where a file holds the description of its model
SPEC_FILE = f"{SPEC}.json"  # inside of a PyTorch file or an Orbax folder
MAX_SPEC_BYTES = 2**26
_TARGET = "target"  # only where the outputs are no logits of classes
_KEY = "spec_version"  # also of config.json and of a checkpoint's info

_MAX_PIXELS = 2**26

_Read = TypeVar("_Read")


def spec_to_dict(spec: ModelSpec) -> dict[str, Any]:
    """The description as plain values for JSON."""
    preprocessing = spec.preprocessing
    return {
        _KEY: spec.version,
        "name": spec.name,
        "fields": dict(spec.fields),
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "class_names": None if spec.class_names is None else list(spec.class_names),
        "source": spec.source,
        **({} if spec.target is None else {_TARGET: dataclasses.asdict(spec.target)}),
    }


def spec_beside(path: Path) -> Path:
    """Where the description of a file lies that has no place for it."""
    return path.with_name(f"{path.name}.json")


def text_beside(spec: ModelSpec, path: Path) -> str:
    """What `spec_beside(path)` holds: the description, and which file it is of."""
    return json.dumps({"file": _identity(path), SPEC: spec_to_dict(spec)})


def read_beside(path: Path, notes: list[str]) -> "StatedSpec":
    """The description beside a file; `notes` takes that it is of another one.

    Raises:
      ValueError: it is damaged.
    """
    beside = spec_beside(path)
    if not beside.is_file():
        return StatedSpec()
    values = read_json(beside)
    if SPEC not in values:
        return StatedSpec()  # of somebody else
    if values.get("file") != _identity(path):
        notes.append(f"{beside.name} describes another file than {path.name}")
        return StatedSpec()
    return read_stated(beside, lambda: read_spec(values[SPEC]))


def _identity(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


@dataclasses.dataclass(frozen=True)
class StatedSpec:
    """What a file says of its model; None where it does not say.

    Attributes:
      name, fields: of the registry, and of the design.
      preprocessing: how images are prepared.
      class_names: in the order of the logits.
      target: what the outputs are.
    """

    name: str | None = None
    fields: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    target: Target | None = None


def read_spec(values: Any) -> StatedSpec:
    """What `spec_to_dict` wrote, after a round trip through JSON.

    Raises:
      ValueError: it is of a later version, or not such a description.
    """
    version = check_spec_version(values)
    name, fields, names = (values.get(key) for key in ("name", "fields", "class_names"))
    # Up to 0.1.0 files did not name their model.
    if version and not (isinstance(name, str) and isinstance(fields, Mapping)):
        raise ValueError(f"wanted a name and the fields of a model, got {name!r} and {fields!r}")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(label, str) for label in names)
    ):
        raise ValueError("wanted class_names as a list of strings, or none")
    return StatedSpec(
        name,
        {str(field): _as_tuple(value) for field, value in fields.items()} if fields else None,
        read_preprocessing(values.get("preprocessing")),
        None if names is None else tuple(names),
        _read_target(values.get(_TARGET)),
    )


def _read_target(values: Any) -> Target | None:
    if values is None:
        return None
    if not isinstance(values, Mapping) or not values.keys() <= {"kind", "mean", "std"}:
        raise ValueError(f"wanted {_TARGET} with kind, mean and std, got {values!r}")
    mean, std = (tuple(map(float, values.get(name, ()))) for name in ("mean", "std"))
    if not all(map(math.isfinite, mean + std)) or not all(each > 0 for each in std):
        raise ValueError(f"wanted finite numbers and a positive std, got {mean} and {std}")
    return Target(str(values.get("kind")), mean, std)


def check_spec_version(values: Any) -> int:
    """The version of the description in a JSON object; 0 is that of files up to 0.1.0.

    Raises:
      ValueError: no object, or a later version than this package reads.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"wanted a JSON object, got {type(values).__name__}")
    version = values.get(_KEY)
    if type(version) is not int or version < 0:
        raise ValueError(f"wanted {_KEY} as a whole number, got {version!r}")
    if version > SPEC_VERSION:
        raise ValueError(
            f"it was written by a later version of vit_jax ({_KEY} {version}; this one reads up "
            f"to {SPEC_VERSION}): upgrade vit_jax"
        )
    return version


def read_preprocessing(values: Mapping[str, Any] | None) -> Preprocessing | None:
    """The preprocessing of a description, or raises ValueError where it is none."""
    if values is None:
        return None
    known = {field.name for field in dataclasses.fields(Preprocessing)}
    required = known - {"crop_mode", "size", "resized_from"}  # which version 0 does not have
    if not required <= set(values) <= known:
        raise ValueError(f"wanted {sorted(known)}, got {sorted(values)}")
    return check_preprocessing(**values)


def check_preprocessing(
    mean: Any,
    std: Any,
    crop_fraction: Any,
    interpolation: Any,
    crop_mode: Any = "center",
    size: Any = None,
    resized_from: Any = None,
) -> Preprocessing:
    """Returns the preprocessing that a file states, or raises ValueError where it is none."""
    mean, std = (tuple(float(value) for value in values) for values in (mean, std))
    finite = all(math.isfinite(value) for value in mean + std)
    if len(mean) != len(std) or not finite or not all(value > 0 for value in std):
        raise ValueError(f"wanted a mean and a positive std for each channel, got {mean} and {std}")
    if interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"wanted bicubic or bilinear interpolation, got {interpolation!r}")
    if crop_mode not in CROP_MODES:
        raise ValueError(f"wanted a crop_mode of {', '.join(CROP_MODES)}, got {crop_mode!r}")
    fraction = float(crop_fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"wanted a crop fraction above 0 and at most 1, got {fraction}")
    size, resized_from = (
        None if side is None else to_pair(name, side)
        for name, side in (("size", size), ("resized_from", resized_from))
    )
    for height, width in filter(None, (size, resized_from)):
        if height * width > _MAX_PIXELS:
            raise ValueError(
                f"wanted images of at most {_MAX_PIXELS:,} pixels, got {height}x{width}"
            )
    return Preprocessing(mean, std, fraction, interpolation, crop_mode, size, resized_from)


def read_stated(path: Path, read: Callable[[], _Read]) -> _Read:
    """What `read` makes of a file's words; whatever goes wrong is one ValueError, with the path."""
    try:
        return read()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{str(path)!r}: its description cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or raises ValueError."""
    try:
        content = storage.read_json(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r}: wanted an object, got {type(content).__name__}")
    return content


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
