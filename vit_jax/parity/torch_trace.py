"""What a live PyTorch module answers, as a reference for a JAX model."""

import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vit_jax.inspect.stages import split_stage
from vit_jax.parity.dissect.program import Everywhere, Live
from vit_jax.parity.held import is_rounded, moved_by_a_digit
from vit_jax.parity.inputs import Inputs, as_inputs
from vit_jax.parity.torch_run import (
    Arrays,
    TorchRun,
    copy_module,
    import_torch,
    run_torch,
    to_numpy,
)
from vit_jax.parity.values import Averaged, Expected, OptimizerSpec, Reference, Whole
from vit_jax.weights.dialects import dialect_of, module_to_own, translate

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")
Losses = tuple[Callable[[Any], Any], Callable[[Any], Any]]
Names = Callable[[str], str] | Sequence[tuple[str, str]]


def trace_torch(
    module: "torch.nn.Module",
    images: Any,
    *,
    name: str | None = None,
    labels: np.ndarray | None = None,
    names: Names | None = None,
    grad: bool = True,
    optimizer: OptimizerSpec | None = None,
    loss: "Losses | None" = None,
    train: bool = False,
    float32_alone: bool = False,
) -> Reference:
    """Runs a PyTorch module in float64 and in float32, and keeps all it came to.

    Args:
      module: copied, never changed.
      images: floats (B, H, W, C), which the module is given as (B, C, H, W). An array of any other
        number of axes, such as tokens (B, N, D), is handed to it as it is, and so are whole
        numbers, such as ids (B, N). A tuple or a mapping: see `inputs.as_inputs`.
      name: what the report calls it; by default its class.
      labels: classes (B,), where the module answers (B, classes); by default
        `golden_weights.make_labels`.
      names: from the module's dotted names, of arrays and of stages, to those of the JAX model: a
        function, or pairs (pattern, replacement) for `re.sub`, applied in their order (to a stage
        with a dot at its end, which is then stripped). Two modules of one name are compared as two
        calls of that module, in their order. By default the state dicts of Hugging Face's
        and torchvision's ViT are put in timm's names, their q, k, v joined; all others keep theirs.
      grad: also differentiate: by default the cross entropy, see `Reference.labels`.
      optimizer: also train, with gradients alone.
      loss: functions of the output, of JAX's and of PyTorch's, in the place of that.
      train: in the modes that it is in, without dropout; by default all of it is in eval mode.
      float32_alone: take a module that runs in float32 alone. Its noise is then what it moves by
        where its arrays and images are moved by their last digit.

    Returns:
      Every value as PyTorch has it: the outputs of convolutions are (B, C, H, W), those of
      sequence-first modules (N, B, D).

    Raises:
      ValueError: PyTorch is not installed; anything but a module, its images and labels; a module
        that is random in eval mode, or cannot be differentiated where it should be; names that join
        two arrays; a module that runs in float32 and not in float64, unless `float32_alone`. What
        the module itself raises is let through.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"wanted a torch.nn.Module, got {type(module).__name__}")
    if optimizer is not None and not grad:
        raise ValueError("optimizer steps need gradients: wanted grad=True")
    is_several = isinstance(images, tuple | Mapping)
    given = as_inputs(images) if is_several else _as_torch_has_them(images)
    own_loss, torch_loss = loss or (None, None)
    if loss is not None and labels is not None:
        raise ValueError("labels: a loss of your own brings its own")
    weights = float_state_dict(module)
    rename, rename_path = _naming(names, weights)
    if train and not module.training:
        raise ValueError(
            'mode "train" compares the PyTorch module as it stands, and it is in eval mode: call '
            "its .train() first"
        )
    settings: dict[str, Any] = {"labels": labels, "grad": grad, "optimizer": optimizer}
    settings |= {"train": train, "loss": torch_loss}
    if optimizer is not None and optimizer.groups:
        settings["called"] = _new_names(rename, weights)
    refusal = ""
    try:
        run = run_torch(module, given, torch.float64, **settings)
    except ValueError:
        raise
    except Exception as error:
        run = run_torch(module, given, torch.float32, **settings)  # raises too, perhaps
        refusal = f"{type(error).__name__}: {error}".splitlines()[0]
        if not float32_alone:
            raise ValueError(
                f"the PyTorch module runs in float32 and not in float64 ({refusal}); "
                'precisions=("float32",) compares with it as it is'
            ) from error
    if refusal:
        narrow = _with_last_digits_moved(module, given, settings)
    else:
        narrow = run_torch(module, given, torch.float32, **settings)
    title = name or f"{type(module).__module__}.{type(module).__qualname__}"

    def moved(held: Collection[str]) -> tuple[Reference, list[str]]:
        copied, tables = _with_tables_moved(module, rename, held)
        other = run_torch(copied, given, torch.float64, jitter=True, **settings)
        held_inside = [
            f"a constant of {rename_path(path) or 'the model itself'}" for path in other.held
        ]
        return reference_of(other, other), [*tables, *held_inside]

    stage_names, later = _stage_names(run.stages, rename_path, names is not None)

    def by_path(found: Mapping[str, _Value]) -> dict[str, _Value]:
        renamed: dict[str, _Value] = {}
        for path, value in found.items():
            renamed.setdefault(rename_path(path) if path else "", value)
        return renamed

    def by_new_stage(arrays: Arrays) -> Arrays:
        return _renamed(arrays, stage_names)

    live = Live(module, given, settings, rename_path, rename, by_new_stage)

    def rounded(precision: str) -> Reference:
        copied, inputs = _rounded_to(precision, module, given)
        kept = {**settings, "optimizer": None}
        exact = run_torch(copied, inputs, torch.float32 if refusal else torch.float64, **kept)
        narrow = _run_in(precision, copied, inputs, kept)
        reference = reference_of(exact, narrow, Averaged)
        return dataclasses.replace(reference, images=inputs, optimizer=None, live=None, moved=None)

    def reference_of(run: TorchRun, narrow: TorchRun, kind: type[Whole] = Whole) -> Reference:
        def by_parameter(exact: Arrays, rounded: Arrays) -> dict[str, Expected]:
            return _with_noise(rename(exact), rename(rounded), kind)

        def by_stage(exact: Arrays, rounded: Arrays) -> dict[str, Expected]:
            return _renamed(_with_noise(exact, rounded, kind), stage_names)

        return Reference(
            name=title,
            weights=rename(weights),
            images=given,
            labels=run.labels,
            direction=run.direction,
            stages=by_stage(run.stages, narrow.stages),
            loss=_whole(run.loss, narrow.loss, kind),
            gradients=by_parameter(run.gradients, narrow.gradients),
            stage_gradients=by_stage(run.stage_gradients, narrow.stage_gradients),
            image_gradient=_whole(run.image_gradient, narrow.image_gradient, kind),
            losses=_whole(run.losses, narrow.losses, kind),
            trained=by_parameter(run.trained, narrow.trained),
            untrained=frozenset(rename(run.untrained)),
            optimizer=optimizer,
            outputs=_renamed(run.outputs, stage_names),
            later=later,
            input_gradients=_with_noise(run.input_gradients, narrow.input_gradients, kind),
            own_loss=own_loss,
            live=None if refusal else live,
            islands=by_path({path: frozenset(types) for path, types in run.islands.items()}),
            refusal=refusal or run.refusal,
            moved=moved,
            rounded=rounded,
            is_float32=bool(refusal),
            is_train=train,
            statistics=by_parameter(run.statistics, narrow.statistics),
            dropped=tuple(run.dropped),
            batch_norms=by_path(
                {
                    path: part.training
                    for path, part in module.named_modules()
                    if isinstance(part, _batch_norm()) and part.track_running_stats
                }
            ),
        )

    return reference_of(run, narrow)


def _batch_norm() -> Any:
    return import_torch().nn.modules.batchnorm._BatchNorm


def _with_last_digits_moved(
    module: "torch.nn.Module", images: np.ndarray | Inputs, settings: dict[str, Any]
) -> TorchRun:
    """A run in float32 with every array, and the images, moved by the last digit."""
    torch = import_torch()
    copied = copy_module(module, torch.float32, train=True)
    eps = torch.finfo(torch.float32).eps
    for array in (*copied.parameters(), *copied.buffers()):
        if array.is_floating_point():
            moved = moved_by_a_digit(to_numpy(array), eps)
            array.data.copy_(torch.from_numpy(moved))

    def moved_input(_: str, array: np.ndarray) -> np.ndarray:
        return moved_by_a_digit(array, eps) if array.dtype.kind == "f" else array

    images = images.map(moved_input) if isinstance(images, Inputs) else moved_input("", images)
    return run_torch(copied, images, torch.float32, **settings)


def _rounded_to(
    precision: str, module: "torch.nn.Module", images: np.ndarray | Inputs
) -> "tuple[torch.nn.Module, np.ndarray | Inputs]":
    """A copy with its parameters, and the inputs, rounded to a narrow type; buffers are kept.

    What both sides are given is then the same number in any type. A buffer may be a table that the
    other side computes: what PyTorch's own rounding of it does is noise.
    """
    torch = import_torch()
    dtype = getattr(torch, precision)
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)

    def rounded(_: str, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        return torch.from_numpy(array).to(dtype).double().numpy()

    return copied, images.map(rounded) if isinstance(images, Inputs) else rounded("", images)


def _run_in(
    precision: str, module: "torch.nn.Module", images: np.ndarray | Inputs, settings: dict[str, Any]
) -> TorchRun:
    """A run in a narrow type.

    Raises:
      ValueError: the module cannot run in it, or overflows.
    """
    try:
        run = run_torch(module, images, getattr(import_torch(), precision), **settings)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"the PyTorch module does not run in {precision} ({text})") from error
    if not np.isfinite(run.output).all():
        raise ValueError(f"the PyTorch module's own output is not finite in {precision}")
    return run


def _with_tables_moved(
    module: "torch.nn.Module", rename: Callable[[Arrays], Arrays], held: Collection[str]
) -> "tuple[torch.nn.Module, list[str]]":
    """A copy with the last digit of each rounded buffer moved, unless its new name is in `held`."""
    copied = copy_module(module, import_torch().float64, train=True)
    tables = {
        name: array
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point()
        and not name.endswith(("running_mean", "running_var"))
        and is_rounded(array := to_numpy(buffer))
        and np.array_equal(array, array.astype(np.float32))
    }
    tables = {
        name: array for name, array in tables.items() if not held & rename({name: array}).keys()
    }
    for name, array in tables.items():
        moved = moved_by_a_digit(array, float(np.finfo(np.float32).eps))
        copied.get_buffer(name).copy_(import_torch().from_numpy(moved))
    return copied, list(tables)


def rerun(reference: Reference, changes: Sequence[Everywhere]) -> Reference:
    """The reference with changes in its code; its noise is that of the right one."""
    live: Live = reference.live
    run = live.run(changes)

    def whole(arrays: Arrays, like: Mapping[str, Expected]) -> dict[str, Expected]:
        return {
            name: Whole(array, like[name].noise if name in like else 0.0)
            for name, array in arrays.items()
        }

    def lone(array: np.ndarray | None, like: Expected | None) -> Whole | None:
        return None if array is None or like is None else Whole(array, like.noise)

    def by_stage(arrays: Arrays, like: Mapping[str, Expected]) -> dict[str, Expected]:
        return whole(live.rename_stages(arrays), like)

    # A value that no gradient comes back to any more has one of zero.
    stopped = {
        name: Whole(np.zeros(value.shape), value.noise)
        for name, value in reference.stage_gradients.items()
    }

    return dataclasses.replace(
        reference,
        stages=by_stage(run.stages, reference.stages),
        loss=lone(run.loss, reference.loss),
        gradients=whole(live.rename_arrays(run.gradients), reference.gradients),
        stage_gradients=stopped | by_stage(run.stage_gradients, reference.stage_gradients),
        image_gradient=lone(run.image_gradient, reference.image_gradient),
        input_gradients=whole(run.input_gradients, reference.input_gradients),
        statistics=whole(live.rename_arrays(run.statistics), reference.statistics),
        untrained=frozenset(live.rename_arrays(run.untrained)),
    )


def with_linear_layout(reference: Reference, own: Callable[[], Arrays]) -> Reference:
    """The weights of transformers' Conv1D, (in, out), as a Linear's, where the model has them so.

    Args:
      own: gives the model's arrays by PyTorch's names.
    """
    live: Live | None = reference.live
    theirs = {} if live is None else _conv1d_weights(live.module)
    if live is None or not theirs:
        return reference
    own_arrays = own()
    turned = {
        name
        for name, array in live.rename_arrays(theirs).items()
        if name in own_arrays
        and np.array_equal(own_arrays[name], array.T)
        and not np.array_equal(own_arrays[name], array)
    }

    def turn(arrays: Arrays) -> Arrays:
        return {name: a.T if name in turned else a for name, a in arrays.items()}

    def turn_values(values: Mapping[str, Expected]) -> dict[str, Expected]:
        return {
            name: dataclasses.replace(value, array=value.array.T)
            if name in turned and isinstance(value, Whole)
            else value
            for name, value in values.items()
        }

    def turn_reference(reference: Reference) -> Reference:
        return dataclasses.replace(
            reference,
            weights=turn(dict(reference.weights)),
            gradients=turn_values(reference.gradients),
            trained=turn_values(reference.trained),
        )

    def moved(held: Collection[str]) -> tuple[Reference, list[str]]:
        assert reference.moved is not None
        other, names = reference.moved(held)
        return turn_reference(other), names

    def rounded(precision: str) -> Reference:
        assert reference.rounded is not None
        return turn_reference(reference.rounded(precision))

    return dataclasses.replace(
        turn_reference(reference),
        moved=None if reference.moved is None else moved,
        rounded=None if reference.rounded is None else rounded,
        live=dataclasses.replace(live, rename_arrays=lambda a: turn(live.rename_arrays(a))),
    )


def _conv1d_weights(module: "torch.nn.Module") -> Arrays:
    return {
        f"{path}.weight": to_numpy(module.get_parameter(f"{path}.weight"))
        for path, part in module.named_modules()
        if type(part).__name__ == "Conv1D" and hasattr(part, "nf")
    }


def float_state_dict(module: "torch.nn.Module") -> Arrays:
    """The floating-point entries of its state dict, frozen buffers included."""
    entries = module.state_dict().items()
    return {name: to_numpy(entry) for name, entry in entries if entry.is_floating_point()}


def _as_torch_has_them(images: Any) -> np.ndarray:
    given = np.asarray(images)
    if given.dtype.kind not in "fiu" or given.ndim < 2 or given.size == 0:
        raise ValueError(
            "wanted images (B, H, W, C), tokens (B, N, D) or ids (B, N), floats or whole numbers, "
            f"got {given.dtype} {list(given.shape)}"
        )
    if given.ndim == 4:
        given = given.transpose(0, 3, 1, 2)
    return np.array(given, np.float64 if given.dtype.kind == "f" else np.int64, order="C")


def _whole(
    exact: np.ndarray | None, rounded: np.ndarray | None, kind: type[Whole] = Whole
) -> Whole | None:
    if exact is None:
        return None
    exact = exact.astype(np.float64)
    if rounded is None:
        return kind(exact, 0.0)
    noise = kind.size(rounded - exact)
    # Infinite noise, of what overflows in float32 alone, would excuse everything.
    return kind(exact, noise if np.isfinite(noise) else 0.0)


def _with_noise(exact: Arrays, rounded: Arrays, kind: type[Whole] = Whole) -> dict[str, Expected]:
    pairs = {name: _whole(array, rounded.get(name), kind) for name, array in exact.items()}
    return {name: whole for name, whole in pairs.items() if whole is not None}


def _naming(
    names: Names | None, weights: Arrays
) -> tuple[Callable[[Arrays], Arrays], Callable[[str], str]]:
    """How arrays by name, and how the path of a module, are put in the JAX model's names."""
    if names is None:
        dialect = dialect_of(weights)
        if dialect is None:
            return dict, str
        return functools.partial(translate, dialect), functools.partial(module_to_own, dialect)
    rename = names if callable(names) else _substitution(names)

    def rename_arrays(arrays: Arrays) -> Arrays:
        sources: dict[str, str] = {}
        for old in arrays:
            new = rename(old)
            if new in sources:
                raise ValueError(f"by `names` both {sources[new]} and {old} are {new!r}")
            sources[new] = old
        return {new: arrays[old] for new, old in sources.items()}

    return rename_arrays, lambda path: rename(f"{path}.").removesuffix(".")


def _new_names(rename: Callable[[Arrays], Arrays], weights: Arrays) -> dict[str, str]:
    """By the module's own name that of the array it becomes, or becomes a part of."""
    own = list(weights)
    numbered = {name: np.full(weights[name].shape, i) for i, name in enumerate(own)}
    return {own[i]: new for new, array in rename(numbered).items() for i in np.unique(array)}


def _substitution(pairs: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    try:
        rules = [(re.compile(pattern), replacement) for pattern, replacement in pairs]
        for pattern, replacement in rules:
            pattern.sub(replacement, "")
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"`names` are a function or pairs (regular expression, replacement): {error}"
        ) from error

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = pattern.sub(replacement, name)
        return name

    return rename


def _stage_names(
    stages: Iterable[str], rename_path: Callable[[str], str], pairs: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """The new names of stages, in their order; and of later ones of one name, what they were.

    Args:
      pairs: of several with one name each is compared, as a further call of that module; False
        keeps the first.
    """
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    later: dict[str, str] = {}
    for stage in stages:
        parts = split_stage(stage)
        path = rename_path(parts.path) if parts.path else ""
        if parts.path and not path:
            continue  # a wrapper; the model itself is the root alone
        new = f"{parts.before}{path}{parts.call}{parts.part}"
        if new in taken:
            if not pairs:
                continue
            numbers = itertools.count(1)
            free = (f"{parts.before}{path}#{number}{parts.part}" for number in numbers)
            new = next(name for name in free if name not in taken)
            later[new] = stage
        taken[new] = stage
        names[stage] = new
    return names, later


def _renamed(stages: Mapping[str, _Value], names: Mapping[str, str]) -> dict[str, _Value]:
    return {names[stage]: value for stage, value in stages.items() if stage in names}
