"""Groups of parameters: which are trained, which decay, and with what part of the learning rate."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax.config import OptimizerConfig
from vit_jax.layers.stack import ScannedLayers
from vit_jax.models.base import VisionModel
from vit_jax.weights.state_dict import names_by_path

Path = tuple[Any, ...]
BACKBONE = "backbone"  # in place of a pattern: all but the last linear layer


@dataclasses.dataclass(frozen=True)
class ParameterGroups:
    """What an optimizer has to know of a model's parameters.

    Attributes:
      trained: an NNX filter of the variables that are trained.
      factors: by path, what the learning rate is multiplied with; for an array that stacks layers
        one number for each of them; 1 where there is no entry.
      stacked: paths of arrays that stack layers along their first axis.
    """

    trained: Any = nnx.Param
    factors: Mapping[Path, np.ndarray] = dataclasses.field(default_factory=dict)
    stacked: frozenset[Path] = frozenset()


def parameter_groups(config: OptimizerConfig, model: VisionModel) -> ParameterGroups:
    """The groups that a config asks for.

    Args:
      config: `frozen`, `layer_decay` and `backbone_factor` of it.
      model: may be abstract.

    Raises:
      ValueError: a pattern of `frozen` names no parameter, a part of stacked layers or all there
        is; or the model has no head to tell from its backbone.
    """
    trainable = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    names = {path: found for path, found in names_by_path(model).items() if path in trainable}
    _check_head(config, model, names)
    frozen = _frozen(config.frozen or (), model, names)
    return ParameterGroups(
        trained=nnx.All(nnx.Param, lambda path, _: path not in frozen) if frozen else nnx.Param,
        factors=_factors(config, model, names),
        stacked=_stacked(model, names),
    )


def is_matrix(path: Path) -> bool:
    """Whether the parameter at this path decays under `decay_mask="matrices"`.

    Those are the weights of linear and convolution layers, which NNX calls `kernel`, and the bare
    patch matrix of `vit_encoder`, `weight`. The name tells and not the rank: tokens and position
    embeddings have three axes, and where layers are stacked for a scan even a bias has two.
    """
    return path[-1] in ("kernel", "weight")


def by_path(value_of: Callable[[Path], Any], params: Any) -> Any:
    """A tree as `params` (an `nnx.State`, or dicts) with `value_of(path)` for each array."""

    def at(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        # Within an nnx.Variable there is one more step, to its value.
        del leaf
        return value_of(tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)))

    return jax.tree_util.tree_map_with_path(at, params)


def layer_ids(model: VisionModel) -> dict[Path, np.ndarray]:
    """The layer of each parameter, by its path: an integer, or one for each layer stacked in it.

    0 is what stands before the layers (the class's `stem`: patches, tokens, positions), i the i-th
    layer from 1 on, and one more than their number all that comes after: the last norm and the
    head. That is BEiT's rule (2106.08254 and its release, `optim_factory.py`). timm's counts a
    ViT's last norm to its last layer.
    """
    params = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    layers, layer_of = model.layers, {path: model.layer_of(path) for path in params}
    inside = {path: layer for path, layer in layer_of.items() if layer is not None}
    if isinstance(layers, ScannedLayers):
        depth = layers.depth
        found = {path: np.arange(1, depth + 1) for path in inside}
    else:  # layers that share their weights count once
        numbers = sorted(set(inside.values()))
        depth = len(numbers)
        found = {path: np.asarray(numbers.index(layer) + 1) for path, layer in inside.items()}
    for path in params:
        if path not in found:
            found[path] = np.asarray(0 if path[0] in type(model).stem else depth + 1)
    return found


def _check_head(
    config: OptimizerConfig, model: VisionModel, names: Mapping[Path, list[str]]
) -> None:
    wants = [f"frozen={BACKBONE!r}"] if BACKBONE in (config.frozen or ()) else []
    wants += ["backbone_factor"] if config.backbone_factor != 1 else []
    if wants and not any(model.is_of_head(name) for found in names.values() for name in found):
        raise ValueError(
            f"config.optimizer: {' and '.join(wants)} tells a backbone from a head, and the model "
            "has no head: set config.model.kwargs.num_classes"
        )


def _factors(
    config: OptimizerConfig, model: VisionModel, names: Mapping[Path, list[str]]
) -> dict[Path, np.ndarray]:
    factors = {path: np.ones(()) for path in names}
    if config.layer_decay != 1:
        ids = layer_ids(model)
        last = max(int(np.max(of_path)) for of_path in ids.values())
        factors = {path: config.layer_decay ** (last - ids[path]) for path in names}
    if config.backbone_factor != 1:
        for path, found in names.items():
            if not model.is_of_head(found[0]):
                factors[path] = factors[path] * config.backbone_factor
    return {path: factor for path, factor in factors.items() if np.any(factor != 1)}


def _stacked(model: VisionModel, paths: Iterable[Path]) -> frozenset[Path]:
    stack = tuple(model.layers_name.split("."))
    if not isinstance(model.layers, ScannedLayers):
        return frozenset()
    return frozenset(path for path in paths if path[: len(stack)] == stack)


def _matches(name: str, pattern: str, model: VisionModel) -> bool:
    if pattern == BACKBONE:
        return not model.is_of_head(name)
    return name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _frozen(
    patterns: tuple[str, ...], model: VisionModel, names: Mapping[Path, list[str]]
) -> frozenset[Path]:
    everything = [name for found in names.values() for name in found]
    for pattern in patterns:
        if not any(_matches(name, pattern, model) for name in everything):
            raise ValueError(
                f"config.optimizer.frozen: {pattern!r} names no parameter; wanted {BACKBONE!r}, "
                f"or names, beginnings or globs of: {_summary(everything)}"
            )
    frozen = set()
    for path, found in names.items():
        hit = [any(_matches(name, pattern, model) for pattern in patterns) for name in found]
        if all(hit):
            frozen.add(path)
        elif any(hit):
            raise ValueError(
                f"config.optimizer.frozen: {patterns!r} takes {found[hit.index(True)]!r} and not "
                f"{found[hit.index(False)]!r}, which are one array with scan_layers=True: name "
                "all layers or none, or set config.model.kwargs.scan_layers=False"
            )
    if len(frozen) == len(names):
        raise ValueError(
            f"config.optimizer.frozen: {patterns!r} takes all parameters, and none is left to train"
        )
    return frozenset(frozen)


def _summary(names: list[str]) -> str:
    """The names, those of all layers as one."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
