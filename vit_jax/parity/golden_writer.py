"""Writes golden files of a PyTorch module, with which it can be compared without PyTorch."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.inspect.stages import BEFORE, path_of, split_stage
from vit_jax.parity.golden import (
    DIRECTION_LOSS,
    OPTIMIZER_EXTRAS,
    OPTIMIZERS,
    check_no_other_file,
    golden_paths,
)
from vit_jax.parity.golden_weights import digest, make_input, make_param
from vit_jax.parity.sampled import corner, first8, norm
from vit_jax.parity.torch_run import Arrays, TorchRun, import_torch, run_torch, to_numpy
from vit_jax.parity.values import OptimizerSpec, rms
from vit_jax.weights.atomic import whole

if TYPE_CHECKING:
    import torch


def write_golden(
    make_module: Callable[[], "torch.nn.Module"],
    out: str | os.PathLike,
    *,
    image_shape: Sequence[int],
    batch: int = 2,
    num_classes: int | None = None,
    seed: int = 0,
    optimizer: OptimizerSpec | None = None,
    stages: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    source: str = "",
    model: tuple[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes NAME.json and NAME.npz: outputs, stages, gradients and training of a module.

    Two calls write the same bytes, with the same PyTorch and NumPy on the same machine.

    Args:
      make_module: builds the module. Its floating-point parameters and buffers are then filled with
        `golden_weights.make_param` by their names.
      out: NAME or NAME.json.
      image_shape: of one input in PyTorch's layout: (C, H, W), or of tokens (N, D).
      batch: number of inputs.
      num_classes: how many the module answers, when that is to be checked. An output that is no
        (B, classes) has no labels, and another loss: see `Reference.labels`.
      seed: of weights and inputs.
      optimizer: the steps of training; by default `OptimizerSpec()`.
      stages: names of the modules to store, `#1` for a second call. By default the module's
        children, and the elements of its lists to the second level, such as `blocks.0`.
      keep: names of parameters and buffers that are stored as the module has them, such as the
        variances of BatchNorm, which no random value may be.
      source: where the module comes from, in words.
      model: registered name and fields of the JAX model of the same design, for `golden_model`.

    Returns:
      The path of the JSON.

    Raises:
      ValueError: of `run_torch`; unknown names in `stages` or `keep`; another number of classes;
        an output that is not finite; files of that name that are no golden file.
    """
    torch = import_torch()
    json_path, npz_path = golden_paths(out)
    check_no_other_file(json_path, npz_path)
    optimizer = optimizer or OptimizerSpec()
    shape = (_at_least_one("batch", batch), *(_at_least_one("image_shape", n) for n in image_shape))
    module = make_module()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"wanted a torch.nn.Module to be built, got {type(module).__name__}")
    weights, tied, skipped = _fill(module.float(), seed, keep)
    images = make_input(shape, seed)
    run, narrow = (
        run_torch(module, images, dtype, optimizer=optimizer)
        for dtype in (torch.float64, torch.float32)
    )
    _check_output(run.output, num_classes)
    stored = _stages(module, run, batch, stages)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    arrays = _arrays(run, narrow, stored, list(trainable))
    arrays |= {f"computed/{name}": weights[name] for name in keep}
    spec = {
        "name": json_path.stem,
        "kind": "tiny",
        "source": source,
        "constructor": type(module).__name__,
        "kwargs": {},
        "notes": [f"{name} is no floating-point array: left as built" for name in skipped],
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        "mode": "eval",
        "param_seed": seed,
        "input": {"shape": list(shape), "seed": seed, "sha256": digest([images])},
        "num_classes": None if run.labels is None else run.output.shape[1],
        "labels": None if run.labels is None else run.labels.tolist(),
        "param_count_total": sum(array.size for array in weights.values()),
        "param_count_trainable": sum(weights[name].size for name in trainable),
        "params_sha256": digest(array for name, array in weights.items() if name not in keep),
        "non_trainable": [name for name in weights if name not in trainable],
        "computed": dict.fromkeys(keep, "as the module was built; stored"),
        "param_scale": {},
        "tied": tied,
        "state_dict": [[name, list(a.shape), "float32"] for name, a in weights.items()],
        "outputs": {"logits": {"shape": list(run.output.shape)}},
        "activations": {
            stage: {
                "shape": list(array.shape),
                "f32_max_abs": _rounded(_apart(run.stages[stage], narrow.stages[stage])),
            }
            for stage, array in stored.items()
        },
        "grad_names": list(trainable),
        "params_without_grad": list(run.untrained),
        "loss": DIRECTION_LOSS
        if run.labels is None
        else "cross entropy on output 'logits', mean over batch, label_smoothing 0, eval mode",
        "trajectory": _trajectory(optimizer),
        "noise_f32_vs_f64": _noise(arrays, run.gradients, narrow.gradients),
        "npz_arrays": [[name, list(a.shape), str(a.dtype)] for name, a in arrays.items()],
    }
    if model is not None:
        spec["model"] = {"name": model[0], "fields": dict(model[1])}
    try:
        text = _dump(spec)
    except TypeError as error:
        raise ValueError(f"model: its fields are no JSON: {error}") from error
    with whole(npz_path) as partial_npz, whole(json_path) as partial_json:
        with partial_npz.open("wb") as file:  # of a name, NumPy would change the suffix
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial_json.write_text(text, encoding="utf-8")
    return json_path


def _at_least_one(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}: wanted whole numbers of at least 1, got {number!r}")
    return number


def _fill(
    module: "torch.nn.Module", seed: int, keep: Collection[str]
) -> tuple[Arrays, dict[str, str], list[str]]:
    """Gives the module its weights: float32 by name, tied names and their firsts, those skipped."""
    torch = import_torch()
    firsts: dict[tuple[Any, ...], str] = {}
    weights: Arrays = {}
    tied: dict[str, str] = {}
    skipped: list[str] = []
    for name, entry in module.state_dict().items():
        if not entry.is_floating_point():
            skipped.append(name)
            continue
        place = (entry.data_ptr(), tuple(entry.shape), entry.stride())
        first = firsts.setdefault(place, name) if entry.numel() else name
        if first != name:
            tied[name] = first
        elif name in keep:
            weights[name] = to_numpy(entry).astype(np.float32)
        else:
            weights[name] = make_param(name, entry.shape, seed)
    _check_known("keep", keep, weights)
    filled = {name: weights[tied.get(name, name)] for name in (*weights, *tied)}
    module.load_state_dict(
        {name: torch.from_numpy(array) for name, array in filled.items()}, strict=False
    )
    return weights, tied, skipped


def _check_known(field: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"{field}: the module has no {', '.join(unknown)}; it has {', '.join(known)}"
        )


def _check_output(output: np.ndarray, num_classes: int | None) -> None:
    if not np.isfinite(output).all():
        raise ValueError(
            "with weights drawn by their names the module answers no finite number: name those "
            "that cannot be drawn, such as the running_var of BatchNorm, in `keep`"
        )
    if num_classes is not None and output.shape[1:] != (num_classes,):
        raise ValueError(f"num_classes: the module answers {list(output.shape)}, not {num_classes}")


def _stages(
    module: "torch.nn.Module", run: TorchRun, batch: int, wanted: Sequence[str] | None
) -> Arrays:
    """The stages to store, in the order in which the module came to them, batch first."""
    values = {}
    for stage, array in run.stages.items():
        part = split_stage(stage).part
        if stage and not part and not stage.startswith(BEFORE) and array.ndim >= 2:
            if array.shape[0] != batch and array.ndim == 3 and array.shape[1] == batch:
                array = array.swapaxes(0, 1)  # of a sequence-first module
            if array.shape[0] == batch:
                values[stage] = array
    if wanted is not None:
        _check_known("stages", wanted, values)
        return {stage: array for stage, array in values.items() if stage in wanted}
    chosen = _chosen_paths(module)
    return {stage: a for stage, a in values.items() if path_of(stage) in chosen}


def _chosen_paths(module: "torch.nn.Module") -> set[str]:
    """Children of the module, and elements of lists that are at most two levels below it."""
    nn = import_torch().nn
    modules = dict(module.named_modules())
    chosen = set()
    for path, part in modules.items():
        parent, _, leaf = path.rpartition(".")
        listed = isinstance(modules[parent], (nn.ModuleList, nn.Sequential))
        near = parent == "" or (listed and parent.count(".") <= 1)
        if leaf and near and not isinstance(part, nn.Identity):
            chosen.add(path)
    return chosen


def _arrays(run: TorchRun, narrow: TorchRun, stored: Arrays, trainable: Sequence[str]) -> Arrays:
    """What came out, as the .npz has it."""

    def by_parameter(kind: str, named: Mapping[str, np.ndarray]) -> Arrays:
        values = [named.get(name, np.zeros(1)) for name in trainable]
        return {
            f"{kind}_l2": np.array([norm(value) for value in values]),
            f"{kind}_first8": np.array([first8(value) for value in values]).reshape(-1, 8),
        }

    def of_both(name: str, exact: np.ndarray | None, rounded: np.ndarray | None) -> Arrays:
        assert exact is not None and rounded is not None, name  # noqa: PT018
        return {f"{name}_f64": exact, f"{name}_f32": rounded}

    arrays = of_both("logits", run.output, narrow.output)
    if run.labels is not None:
        arrays["labels"] = run.labels.astype(np.int64)
    for stage, array in stored.items():
        arrays[f"act/{stage}"] = np.ascontiguousarray(corner(array))
        arrays[f"act_stats/{stage}"] = np.array([array.mean(), norm(array)])
    arrays |= of_both("loss", run.loss, narrow.loss)
    arrays |= by_parameter("grad", run.gradients)
    # None where the output does not depend on the input.
    input_gradient = np.zeros(1) if run.image_gradient is None else run.image_gradient
    arrays["input_grad_l2"] = np.asarray(norm(input_gradient))
    arrays["input_grad_first8"] = first8(input_gradient)
    arrays |= of_both("traj_loss", run.losses, narrow.losses)
    return arrays | by_parameter("traj_param", run.trained)


def _trajectory(optimizer: OptimizerSpec) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in OPTIMIZERS.items()}
    defaults = OptimizerSpec()
    extras = {
        name: value
        for name in OPTIMIZER_EXTRAS
        if (value := getattr(optimizer, name)) != getattr(defaults, name)
    }
    rate = optimizer.learning_rate
    return {
        "optimizer": names[optimizer.name],
        "lr": list(rate) if isinstance(rate, tuple) else rate,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "decay_on": "every trainable parameter with a gradient"
        + (", but as its group says" if optimizer.groups else ""),
        "steps": optimizer.steps,
        "traj_loss": f"{optimizer.steps + 1} values: loss before each of {optimizer.steps} "
        "updates, then after the last",
        **extras,
    }


def _apart(exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(np.max(np.abs(exact - rounded), initial=0.0))


def _rounded(number: float) -> float:
    """To three digits: noise has no more."""
    return float(f"{number:.3g}")


def _noise(arrays: Arrays, exact: Arrays, rounded: Arrays) -> dict[str, Any]:
    """Distances between the float32 and the float64 run, given their gradients."""

    def apart(name: str) -> float:
        return _rounded(_apart(arrays[f"{name}_f64"], arrays[f"{name}_f32"]))

    total = np.sqrt(sum(norm(gradient) ** 2 for gradient in exact.values()))
    # A gradient that is exactly zero, of a bias of keys, is all rounding: it has no relative error.
    relative = {
        name: norm(gradient - rounded[name]) / norm(gradient)
        for name, gradient in exact.items()
        if norm(gradient) > 1e-9 * total
    }
    worst = max(relative, key=relative.__getitem__, default="")
    largest = max((_apart(g, rounded[name]) for name, g in exact.items()), default=0.0)
    return {
        "logits": {"max_abs": apart("logits"), "ref_rms": _rounded(rms(arrays["logits_f64"]))},
        "loss": {"max_abs": apart("loss")},
        "grad": {
            "max_abs": _rounded(largest),
            "max_rel_l2": _rounded(relative.get(worst, 0.0)),
            "worst_param": worst,
            "global_l2": _rounded(float(total)),
        },
        "traj_loss": {"max_abs": apart("traj_loss")},
    }


def _dump(value: Any, indent: str = "") -> str:
    """JSON with what fits on a line on one line."""
    line = json.dumps(value, allow_nan=False)
    if len(indent) + len(line) <= 100 or not isinstance(value, (dict, list)):
        return line if indent else f"{line}\n"
    inner = f"{indent}  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_dump(part, inner)}" for key, part in value.items()]
    else:
        parts = [_dump(part, inner) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = f",\n{inner}".join(parts)
    text = f"{opening}\n{inner}{body}\n{indent}{closing}"
    return text if indent else f"{text}\n"
