"""Golden files: what a PyTorch model answered, stored, so that no PyTorch is needed to compare.

`NAME.json` says what was run and `NAME.npz` holds what came out; weights and images follow from
names (`golden_weights`). `golden_writer` writes them.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.parity.golden_weights import digest, make_input, rebuild
from vit_jax.parity.sampled import Sampled, corner
from vit_jax.parity.values import Expected, OptimizerSpec, Reference, Whole
from vit_jax.storage import read_json
from vit_jax.weights.npz import read_npz

# Of the JSON, with the types of their values.
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "source": str,
    "param_seed": int,
    "input": dict,
    "labels": (list, type(None)),
    "params_sha256": str,
    "non_trainable": list,
    "computed": dict,
    "param_scale": dict,
    "state_dict": list,
    "outputs": dict,
    "activations": dict,
    "noise_f32_vs_f64": dict,
}
OPTIMIZERS = {"AdamW": "adamw", "Adam": "adam", "SGD": "sgd", "RMSprop": "rmsprop"}
# Of the trajectory, written only where they are used.
OPTIMIZER_EXTRAS = ("nesterov", "dampening", "clip_norm", "clip_value", "groups")
# The loss of an output that is no (B, classes): no labels, and this in place of "cross entropy".
DIRECTION_LOSS = (
    "mean of output times direction, numpy's default_rng(0).standard_normal of its shape, eval mode"
)


def read_golden(path: str | os.PathLike, images: np.ndarray | None = None) -> Reference:
    """The reference that a golden file is.

    Args:
      path: NAME.json, NAME.npz or NAME; the other file stands beside it.
      images: (B, H, W, C), or tokens as they are, when it is wanted that they are the file's own.

    Returns:
      A reference of which most arrays are known in part, see `Sampled`. Stages are named as in the
      file: seed 000's are variables of its script (`naive`, `conv`, `tokens`), and axes are in the
      file's order, batch first. The noise of a gradient is the largest of any; that of the image's
      gradient and of trained parameters is not stored, and 0.

    Raises:
      ValueError: a file is missing, damaged, of another kind or contradicts itself; other images.
    """
    golden = _read(path)
    try:
        reference = _reference(golden)
    except ValueError as error:
        raise ValueError(f"{str(golden.path)!r}: {error}") from error
    # Of values that are there but of another form than every golden file's.
    except (LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{str(golden.path)!r} is not a golden file as vit-jax writes it: "
            f"{type(error).__name__} {error}"
        ) from error
    if images is not None:
        given = np.asarray(images)
        given = given.transpose(0, 3, 1, 2) if given.ndim == 4 else given
        if not np.array_equal(given, np.asarray(reference.images)):
            raise ValueError(
                f"{str(golden.path)!r} answers for images of its own: leave yours out, or pass "
                "its own (`Reference.images`, channels last)"
            )
    return reference


def golden_model(path: str | os.PathLike) -> tuple[str | None, dict[str, Any]]:
    """The registered name and the fields of the model that a golden file states; or (None, {}).

    Raises:
      ValueError: as `read_golden`.
    """
    golden = _read(path)
    model = golden.spec.get("model")
    if model is None:
        return None, {}
    if not isinstance(model, dict) or not (
        isinstance(model.get("name"), str) and isinstance(model.get("fields"), dict)
    ):
        raise ValueError(
            f'{str(golden.path)!r}: wanted "model" as an object with a name and fields, got {model}'
        )
    # JSON has no tuples.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in model["fields"].items()}
    return model["name"], fields


def golden_paths(path: str | os.PathLike) -> tuple[Path, Path]:
    """The JSON and the npz file of NAME.json, NAME.npz or NAME (which may hold dots)."""
    path = Path(path)
    if not path.name:
        raise ValueError(f"a golden file is a .json and an .npz, got {str(path)!r}")
    stem = path.stem if path.suffix in (".json", ".npz") else path.name
    return path.with_name(f"{stem}.json"), path.with_name(f"{stem}.npz")


def check_no_other_file(json_path: Path, npz_path: Path) -> None:
    """Refuses to write a golden file over files that are none.

    Raises:
      ValueError: one of the two is there, and they are no golden file.
    """
    there = [path for path in (json_path, npz_path) if path.exists()]
    if there:
        with contextlib.suppress(OSError, TypeError, ValueError):
            if "npz_arrays" in read_json(json_path):
                return
        raise ValueError(f"{str(there[0])!r} is there, and no golden file: give another name")


@dataclasses.dataclass(frozen=True)
class _Golden:
    path: Path
    spec: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A stored array, in float64."""
        if name not in self.arrays:
            raise ValueError(f"the array {name} is missing beside it")
        array = self.arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"wanted {name} as floats {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
        return array.astype(np.float64)

    def scalar(self, name: str) -> float:
        return float(self.array(name, ()))

    def whole(self, name: str, shape: tuple[int, ...]) -> Whole:
        """An array that is stored of both runs, with their distance."""
        exact, rounded = (self.array(f"{name}_{kind}", shape) for kind in ("f64", "f32"))
        return Whole(exact, float(np.max(np.abs(exact - rounded), initial=0.0)))


def _read(path: str | os.PathLike) -> _Golden:
    json_path, npz_path = golden_paths(path)
    for part in (json_path, npz_path):
        if not part.is_file():
            raise ValueError(f"a golden file is a .json and an .npz: there is no {str(part)!r}")
    try:
        spec = read_json(json_path)
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{str(json_path)!r} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{str(json_path)!r}: wanted a JSON object, got {type(spec).__name__}")
    wrong = [name for name, kinds in _KEYS.items() if not isinstance(spec.get(name, ...), kinds)]
    if wrong:
        raise ValueError(
            f"{str(json_path)!r} is not the golden file of a whole model: its {', '.join(wrong)} "
            "is missing or of another type"
        )
    return _Golden(json_path, spec, read_npz(npz_path))


def _reference(golden: _Golden) -> Reference:
    spec = golden.spec
    for entry in spec["state_dict"]:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[1], list)):
            raise ValueError(f"state_dict: wanted entries [name, shape, type], got {entry}")
    weights = rebuild(spec, golden.arrays)
    shapes = {name: tuple(shape) for name, shape, _ in spec["state_dict"]}
    images = _images(spec)
    output_shape = tuple(spec["outputs"]["logits"]["shape"])
    labels = _labels(spec, output_shape)
    stages: dict[str, Expected] = {
        stage: _stage(golden, stage, entry) for stage, entry in spec["activations"].items()
    }
    noise = spec["noise_f32_vs_f64"]
    stages[""] = Whole(golden.array("logits_f64", output_shape), float(noise["logits"]["max_abs"]))
    direction = np.random.default_rng(0).standard_normal(output_shape) if labels is None else None
    forward: dict[str, Any] = {
        "name": f"{spec['name']} ({spec['source']})" if spec["source"] else spec["name"],
        "weights": weights,
        "images": images,
        "labels": labels,
        "direction": direction,
        "stages": stages,
    }
    if "grad_names" not in spec:
        return Reference(**forward)
    _check_loss(spec["loss"], labels)
    optimizer = _optimizer(spec["trajectory"])
    trainable, untrained = spec["grad_names"], frozenset(spec["params_without_grad"])
    gradients = _by_parameter(golden, "grad", shapes, float(noise["grad"]["max_abs"]))
    return Reference(
        **forward,
        loss=golden.whole("loss", ()),
        gradients={name: gradients[name] for name in trainable if name not in untrained},
        image_gradient=Sampled(
            images.shape,
            "first8",
            golden.array("input_grad_first8", (8,)),
            golden.scalar("input_grad_l2"),
            None,
            0.0,
        ),
        losses=golden.whole("traj_loss", (optimizer.steps + 1,)),
        trained=_by_parameter(golden, "traj_param", shapes, 0.0),
        untrained=untrained,
        optimizer=optimizer,
    )


def _images(spec: Mapping[str, Any]) -> np.ndarray:
    """In PyTorch's layout."""
    source = spec["input"]
    images = make_input(tuple(source["shape"]), source["seed"])
    if digest([images]) != source["sha256"]:
        raise ValueError(
            "the input that follows from its shape and seed has another sha256 than stated: the "
            "file was changed, or NumPy's random stream was"
        )
    return images.astype(np.float64)


def _labels(spec: Mapping[str, Any], output_shape: tuple[int, ...]) -> np.ndarray | None:
    if spec["labels"] is None:
        return None
    labels = np.asarray(spec["labels"])
    batch = spec["input"]["shape"][0]
    if (
        len(output_shape) != 2
        or labels.shape != (batch,)
        or labels.dtype.kind not in "iu"
        or not ((labels >= 0) & (labels < output_shape[1])).all()
    ):
        raise ValueError(
            f"labels {spec['labels']} do not fit {batch} inputs and the output {list(output_shape)}"
        )
    return labels


def _check_loss(stated: str, labels: np.ndarray | None) -> None:
    wanted = "cross entropy" if labels is not None else DIRECTION_LOSS
    if not stated.startswith(wanted):
        raise ValueError(f"wanted the loss {wanted!r}, got {stated!r}")


def _stage(golden: _Golden, stage: str, entry: Mapping[str, Any]) -> Sampled:
    shape = tuple(entry["shape"])
    part_shape = corner(np.broadcast_to(0.0, shape)).shape
    mean, l2 = golden.array(f"act_stats/{stage}", (2,))
    return Sampled(
        shape,
        "corner",
        golden.array(f"act/{stage}", part_shape),
        float(l2),
        float(mean),
        float(entry["f32_max_abs"]),
    )


def _by_parameter(
    golden: _Golden, kind: str, shapes: Mapping[str, tuple[int, ...]], noise: float
) -> dict[str, Expected]:
    names = golden.spec["grad_names"]
    l2 = golden.array(f"{kind}_l2", (len(names),))
    first = golden.array(f"{kind}_first8", (len(names), 8))
    return {
        name: Sampled(shapes[name], "first8", first[i], float(l2[i]), None, noise)
        for i, name in enumerate(names)
    }


def _optimizer(stated: Mapping[str, Any]) -> OptimizerSpec:
    if stated["optimizer"] not in OPTIMIZERS:
        *names, last = OPTIMIZERS
        raise ValueError(
            f"wanted the optimizer {', '.join(names)} or {last}, got {stated['optimizer']!r}"
        )
    first, second = stated["betas"]
    rate = stated["lr"]
    return OptimizerSpec(
        name=OPTIMIZERS[stated["optimizer"]],
        steps=int(stated["steps"]),
        learning_rate=tuple(map(float, rate)) if isinstance(rate, list) else float(rate),
        weight_decay=float(stated["weight_decay"]),
        betas=(float(first), float(second)),
        eps=float(stated["eps"]),
        **{name: stated[name] for name in OPTIMIZER_EXTRAS if name in stated},
    )
