"""What a live PyTorch module answers, as a reference for a JAX model."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vit_jax.inspect.stages import split_stage
from vit_jax.parity.torch_run import Arrays, import_torch, run_torch, to_numpy
from vit_jax.parity.values import Expected, OptimizerSpec, Reference, Whole
from vit_jax.weights.dialects import dialect_of, module_to_own, translate

if TYPE_CHECKING:
    import torch

_Value = TypeVar("_Value")
Names = Callable[[str], str] | Sequence[tuple[str, str]]


def trace_torch(
    module: "torch.nn.Module",
    images: np.ndarray,
    *,
    name: str | None = None,
    labels: np.ndarray | None = None,
    names: Names | None = None,
    grad: bool = True,
    optimizer: OptimizerSpec | None = None,
) -> Reference:
    """Runs a PyTorch module in eval mode, in float64 and in float32, and keeps all it came to.

    Args:
      module: copied, never changed.
      images: floats (B, H, W, C), which the module is given as (B, C, H, W). An array of any other
        number of axes, such as tokens (B, N, D), is handed to it as it is, and so are whole
        numbers, such as ids (B, N).
      name: what the report calls it; by default its class.
      labels: classes (B,), where the module answers (B, classes); by default
        `golden_weights.make_labels`.
      names: from the module's dotted names, of arrays and of stages, to those of the JAX model: a
        function, or pairs (pattern, replacement) for `re.sub`, applied in their order (to a stage
        with a dot at its end, which is then stripped). By default the state dicts of Hugging Face's
        and torchvision's ViT are put in timm's names, their q, k, v joined; all others keep theirs.
      grad: also differentiate: by default the cross entropy, see `Reference.labels`.
      optimizer: also train, with gradients alone.

    Returns:
      Every value as PyTorch has it: the outputs of convolutions are (B, C, H, W), those of
      sequence-first modules (N, B, D).

    Raises:
      ValueError: PyTorch is not installed; anything but a module, its images and labels; a module
        that is random in eval mode, or cannot be differentiated where it should be; names that join
        two arrays. What the module itself raises is let through.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"wanted a torch.nn.Module, got {type(module).__name__}")
    if optimizer is not None and not grad:
        raise ValueError("optimizer steps need gradients: wanted grad=True")
    given = _as_torch_has_them(images)
    weights = float_state_dict(module)
    rename, rename_path = _naming(names, weights)
    settings: dict[str, Any] = {"labels": labels, "grad": grad, "optimizer": optimizer}
    run = run_torch(module, given, torch.float64, **settings)
    narrow = run_torch(module, given, torch.float32, **settings)

    def by_parameter(exact: Arrays, rounded: Arrays) -> dict[str, Expected]:
        return _with_noise(rename(exact), rename(rounded))

    def by_stage(exact: Arrays, rounded: Arrays) -> dict[str, Expected]:
        return _first_named(_with_noise(exact, rounded), rename_path)

    return Reference(
        name=name or f"{type(module).__module__}.{type(module).__qualname__}",
        weights=rename(weights),
        images=given,
        labels=run.labels,
        direction=run.direction,
        stages=by_stage(run.stages, narrow.stages),
        loss=_whole(run.loss, narrow.loss),
        gradients=by_parameter(run.gradients, narrow.gradients),
        stage_gradients=by_stage(run.stage_gradients, narrow.stage_gradients),
        image_gradient=_whole(run.image_gradient, narrow.image_gradient),
        losses=_whole(run.losses, narrow.losses),
        trained=by_parameter(run.trained, narrow.trained),
        untrained=frozenset(rename(run.untrained)),
        optimizer=optimizer,
        outputs=_first_named(run.outputs, rename_path),
    )


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


def _whole(exact: np.ndarray | None, rounded: np.ndarray | None) -> Whole | None:
    if exact is None:
        return None
    exact = exact.astype(np.float64)
    if rounded is None:
        return Whole(exact, 0.0)
    noise = float(np.max(np.abs(rounded - exact), initial=0.0))
    # Infinite noise, of what overflows in float32 alone, would excuse everything.
    return Whole(exact, noise if np.isfinite(noise) else 0.0)


def _with_noise(exact: Arrays, rounded: Arrays) -> dict[str, Expected]:
    pairs = {name: _whole(array, rounded.get(name)) for name, array in exact.items()}
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


def _first_named(
    stages: Mapping[str, _Value], rename_path: Callable[[str], str]
) -> dict[str, _Value]:
    """The stages under their new names; of two with one name the first."""
    renamed: dict[str, _Value] = {}
    for stage, value in stages.items():
        parts = split_stage(stage)
        new = rename_path(parts.path) if parts.path else ""
        if parts.path and not new:
            continue  # a wrapper; the model itself is the root alone
        renamed.setdefault(f"{parts.before}{new}{parts.call}{parts.part}", value)
    return renamed
