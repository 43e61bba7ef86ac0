"""What a folder of Hugging Face or timm says of its model beside the arrays.

`config.json` and `preprocessor_config.json` of transformers, `config.json` of timm.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_jax.layers.checks import to_pair
from vit_jax.models.base import VisionModel
from vit_jax.models.dialect import Dialect
from vit_jax.models.registry import DESIGNS, design_of, model_fields, name_of_timm
from vit_jax.models.spec import Preprocessing, Target
from vit_jax.weights.dialects import DIALECTS
from vit_jax.weights.spec_json import (
    SPEC,
    StatedSpec,
    check_preprocessing,
    read_json,
    read_spec,
    read_stated,
)

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
_SIZES = {"embed_dim", "depth", "num_heads", "img_size", "patch_size", "mlp_ratio"}
_RESAMPLE = {name: number for number, name in _INTERPOLATIONS.items()}


def read_facts(folder: Path, notes: list[str]) -> tuple[StatedSpec, dict[str, Any]]:
    """What the folder says of its model, and single fields of it where it does not state all.

    A folder of ours holds the whole description too. What has been changed in it since, names of
    classes or the processor, is taken as changed.

    Args:
      notes: takes what could not be used, a line each.

    Raises:
      ValueError: a file that is damaged or says what no model here does.
    """
    path, processor = folder / "config.json", folder / "preprocessor_config.json"
    config = read_json(path) if path.is_file() else {}
    stated = config.get("pretrained_cfg")
    if not isinstance(stated, Mapping):  # timm's, which may stand at the top
        stated = config
    own = read_stated(path, lambda: read_spec(config[SPEC])) if SPEC in config else StatedSpec()
    known = _known_fields(folder, config)
    name, fields = own.name, None if own.fields is None else {**own.fields, **known}
    dialect = _stated_by_class(config)[0]
    if fields is None and dialect and known.keys() >= _SIZES & {*dialect.config.values()}:
        name, fields = _registered(dialect, known), known
    elif fields is None and (of_timm := name_of_timm(config.get("architecture"))):
        name, differing = of_timm
        found_fields = read_stated(path, lambda: _timm_fields(of_timm[0], config, stated))
        fields = {**differing, **found_fields}
    names = own.class_names
    labels = stated.get("label_names") or config.get("label_names") or config.get("id2label")
    if (listed := _as_list(labels)) and listed != labels_of(names, len(listed)):
        names = tuple(listed)
    preprocessing = own.preprocessing
    if preprocessing is None and "mean" in stated and "std" in stated:
        preprocessing = read_stated(
            path,
            lambda: check_preprocessing(
                stated["mean"],
                stated["std"],
                stated.get("crop_pct", 1.0),
                stated.get("interpolation", "bicubic"),
                stated.get("crop_mode", "center"),
            ),
        )
    notes += [
        f"{path.name}: its {key} is for another evaluation"
        for key in ("test_crop_pct", "test_input_size")
        if stated.get(key) is not None
    ]
    if not processor.is_file() and (folder / "processor_config.json").is_file():
        processor = folder / "processor_config.json"  # of a whole model
    if processor.is_file():
        written = read_json(processor)
        written = written.get("image_processor", written)
        if preprocessing is None or written != read_stated(path, lambda: _processor_again(own)):
            found = _read_processor(processor, written, notes)
            preprocessing = (found and _of_size(found, name, fields, notes)) or preprocessing
    facts = StatedSpec(name, fields, preprocessing, names, own.target or _target_of(config))
    return facts, known if fields is None else {}


def _of_size(
    found: Preprocessing, name: str | None, fields: Mapping[str, Any] | None, notes: list[str]
) -> Preprocessing:
    """The preprocessing, with its size only where the model takes one that is not its own."""
    size = (fields or {}).get("img_size")
    if name is None or size is None or found.size in (None, to_pair("img_size", size)):
        return dataclasses.replace(found, size=None)
    if not design_of(name).takes_any_size:
        notes.append(f"preprocessor_config.json: its size {found.size} is not the model's {size}")
        return dataclasses.replace(found, size=None)
    return found


# transformers' problem_type, by our kind of target.
PROBLEM_TYPES = {"multilabel": "multi_label_classification", "regression": "regression"}


def _target_of(config: Mapping[str, Any]) -> Target | None:
    """What a config.json says of the outputs, where they are no logits of classes."""
    stated = config.get("problem_type")
    return next((Target(kind) for kind, name in PROBLEM_TYPES.items() if name == stated), None)


def labels_of(class_names: tuple[str, ...] | None, num_classes: int) -> list[str]:
    """What id2label lists: names, and as transformers does LABEL_3 where a class has none."""
    names = class_names or ()
    return [*names, *(f"LABEL_{label}" for label in range(len(names), num_classes))]


def _processor_again(spec: StatedSpec) -> dict[str, object] | None:
    """What `processor_of` wrote for a description."""
    size = (spec.fields or {}).get("img_size")
    if spec.preprocessing is None or size is None:
        return None
    return processor_of(spec.preprocessing, spec.preprocessing.size or to_pair("img_size", size))


def processor_of(preprocessing: Preprocessing, size: tuple[int, int]) -> dict[str, object] | None:
    """The preprocessor_config.json of a model of images of (height, width).

    None where transformers has no such: it crops no rectangle from images that keep their aspect
    ratio.
    """
    resized = [math.floor(side / preprocessing.crop_fraction + 1e-9) for side in size]
    is_squashed = preprocessing.crop_mode.startswith("squash")
    if not is_squashed and size[0] != size[1]:
        return None
    return {
        # The former resizes both sides, the latter the shorter one; both then crop.
        "image_processor_type": "DeiTImageProcessor" if is_squashed else "BitImageProcessor",
        "do_resize": True,
        "size": {"height": resized[0], "width": resized[1]}
        if is_squashed
        else {"shortest_edge": resized[0]},
        "resample": _RESAMPLE[preprocessing.interpolation],
        "do_center_crop": resized != list(size) or not is_squashed,
        "crop_size": {"height": size[0], "width": size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _known_fields(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a design that transformers' config.json states, and those of its class."""
    dialect, stated = _stated_by_class(config)
    if dialect is None:
        return {}
    for key, value in dialect.settled.items():
        if stated.get(key, value) != value:
            raise ValueError(
                f"{str(folder)!r}: wanted {key} {value!r}, its config.json says {stated[key]!r}"
            )
    known = _fields_of(dialect, stated)
    for key, field in dialect.config.items():
        if key in stated and field != "mlp_ratio" and known[field] != _value(dialect, key, stated):
            twins = [other for other, same in dialect.config.items() if same == field]
            raise ValueError(
                f"{str(folder)!r}: wanted {' and '.join(twins)} alike, its config.json says "
                f"{[stated[twin] for twin in twins]}"
            )
    return known | dict(dialect.fields) if config.get("architectures") else known


def _stated_by_class(config: Mapping[str, Any]) -> tuple[Dialect | None, dict[str, Any]]:
    """The dialect of transformers' class in a config.json, and what that says of its image model.

    Of several dialects of the class the first that the stated fields are those of.
    """
    kin = [d for d in DIALECTS if d.model_type and d.model_type == config.get("model_type")]
    classes = config.get("architectures") or ()
    named = [d for d in kin if d.architecture in classes] or (kin[-1:] if classes else kin)
    found: list[tuple[Dialect, dict[str, Any]]] = []
    for dialect in named:
        inside = config.get(dialect.section, {}) if dialect.section else config
        stated = {**dialect.defaults, **(inside if isinstance(inside, Mapping) else {})}
        known = _fields_of(dialect, stated)
        found.append((dialect, stated))
        if all(known.get(field, value) == value for field, value in dialect.fields.items()):
            return dialect, stated
    return found[0] if found else (None, {})


def _value(dialect: Dialect, key: str, stated: Mapping[str, Any]) -> Any:
    value = stated[key]
    value = tuple(value) if isinstance(value, list) else value
    names = dialect.values.get(key, {})
    return names.get(value, value) if isinstance(value, str | bool | int | float) else value


def _fields_of(dialect: Dialect, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that keys of a config.json are."""
    known = {f: _value(dialect, key, stated) for key, f in dialect.config.items() if key in stated}
    width, hidden = stated.get("hidden_size"), stated.get("intermediate_size")
    if "intermediate_size" in dialect.config:
        known.pop("mlp_ratio", None)
        if isinstance(width, int) and isinstance(hidden, int) and width > 0:
            ratio = hidden / width
            # Rounded down, it would come to one unit less.
            known["mlp_ratio"] = (
                math.nextafter(ratio, math.inf) if width * ratio < hidden else ratio
            )
    return known


def config_of(model: VisionModel[Any], dialect: Dialect) -> dict[str, Any]:
    """The config.json of a model in a dialect of transformers, but for the names of its classes."""
    fields = model.config
    stated = {key: getattr(fields, field) for key, field in dialect.config.items()}
    for key, names in dialect.values.items():
        theirs = {own: value for value, own in names.items()}
        stated[key] = theirs.get(stated[key], stated[key])
    if "intermediate_size" in stated:
        stated["intermediate_size"] = int(fields.embed_dim * stated["intermediate_size"])
    elif "mlp_ratio" in stated and stated["mlp_ratio"] == int(stated["mlp_ratio"]):
        kind = type(dialect.defaults.get("mlp_ratio", 4))  # transformers takes no other
        stated["mlp_ratio"] = kind(stated["mlp_ratio"])
    stated |= dialect.settled
    return {
        "model_type": dialect.model_type,
        "architectures": [dialect.architecture],
        **({dialect.section: stated} if dialect.section else stated),
    }


def _timm_fields(name: str, config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that timm's config.json states of a registered name; `stated`: its pretrained_cfg.

    Raises:
      ValueError: an argument of timm's model that the design here does not have.
    """
    own, fields = model_fields(name), dict(config.get("model_args") or {})
    if unknown := [field for field in fields if field not in own]:
        raise ValueError(f"model_args states {unknown[0]!r}, and {name} here has no such field")
    size = stated.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        fields = {"in_chans": size[0], "img_size": tuple(size[1:]), **fields}
    if "global_pool" in own and isinstance(config.get("global_pool"), str):
        fields = {"global_pool": config["global_pool"], **fields}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return {**design_of(name).timm_fields, **fields}


def _registered(dialect: Dialect, known: Mapping[str, Any]) -> str:
    """The registered name of the sizes in a design's fields; the design's where there is none."""
    design = next(d for d in DESIGNS if dialect in d.dialects)
    free = {field for field in known if design.config_class.is_free(field)} - {*design.named_by}
    compared = known.keys() - free - {"norm_eps", "global_pool", "projection_dim"}
    kinds = {other.model_type for other in design.dialects if other.model_type}
    for name in design.variants:
        fields = model_fields(name)
        is_kin = len(kinds) == 1 or name.startswith(dialect.model_type.partition("_")[0])
        if is_kin and all(fields[field] == known[field] for field in compared):
            return name
    return design.design


def _as_list(labels: Any) -> list[str]:
    """Of timm's list, or of Hugging Face's object from "0", "1", ... ; empty for anything else."""
    if isinstance(labels, Mapping):
        labels = [labels.get(str(label)) for label in range(len(labels))]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        return []
    return labels


def _read_processor(
    path: Path, fields: Mapping[str, Any], notes: list[str]
) -> Preprocessing | None:
    if not fields.get("do_normalize", True):
        fields = {**fields, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    wanted = ("image_mean", "image_std", "resample")
    if missing := [key for key in wanted if key not in fields]:
        # Their processors have different defaults: what is not stated is not known.
        notes.append(f"{path.name}: it states no {', '.join(missing)}")
        return None
    found = read_stated(path, lambda: _processor_states(fields))
    if "max_num_patches" not in fields or fields.get("size") is not None:
        return found
    notes.append(
        f"{path.name}: images keep their aspect there, as up to {fields['max_num_patches']} "
        "patches; here they are brought to one size"
    )
    return dataclasses.replace(found, crop_mode="squash")


def _processor_states(fields: Mapping[str, Any]) -> Preprocessing:
    for step in ("do_resize", "do_rescale"):
        if not fields.get(step, True):
            raise ValueError(f"{step} is false: images are always resized and rescaled here")
    # (x * factor - mean) / std, in terms of x / 255.
    factor = 255 * fields.get("rescale_factor", 1 / 255)
    mean, std = ([value / factor for value in fields[key]] for key in ("image_mean", "image_std"))
    size, crop = fields.get("size"), fields.get("crop_size")
    resized, is_squashed = _resized(size)
    cropped = _resized(crop)[0] if fields.get("do_center_crop", False) and crop else None
    shown = cropped or resized
    fraction = 1.0
    if shown and resized:
        fraction = min(part / whole for part, whole in zip(shown, resized, strict=True))
        if resized != tuple(math.floor(part / fraction + 1e-9) for part in shown):
            raise ValueError(f"crop_size {crop} is of another aspect than size {size}")
    crop_mode = "squash" if is_squashed else "center"
    # Where both sizes are known, so is whether the offset of the crop is half a pixel.
    if size is not None and not (is_squashed and _is_even_offset(shown, resized)):
        crop_mode += "_floor"
    kernel = _INTERPOLATIONS.get(fields["resample"], "unknown")
    return check_preprocessing(mean, std, fraction, kernel, crop_mode, size=shown)


def _is_even_offset(shown: tuple[int, int] | None, resized: tuple[int, int] | None) -> bool:
    pairs = zip(resized or (), shown or (), strict=True)
    return all(round((whole - part) / 2) == (whole - part) // 2 for whole, part in pairs)


def _resized(size: Any) -> tuple[tuple[int, int] | None, bool]:
    """(height, width) that images are resized to, and whether without their aspect ratio.

    An integer is the older form of (side, side).
    """
    if size is None:
        return None, False
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return to_pair("size", size["shortest_edge"]), False
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return to_pair("size", (size["height"], size["width"])), True
    return to_pair("size", size), True
