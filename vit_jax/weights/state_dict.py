"""The map between a model's arrays and the state dict of its PyTorch source.

One rule: the attribute path is the key, joined by dots. A `kernel` is a `weight` whose axes go from
(*spatial, in, out) to (out, in, *spatial); `scale` and `embedding` are a `weight` as they are. What
does not follow from it stands in the model class's `torch_names`, a short table of substitutions.
The layers of a `ScannedLayers` are named as if they stood in a list. An array that stands in
several places (tied layers) has the name of the first; the names of the others are its aliases.

Both directions come from the same list of entries, so they cannot disagree.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.layers.stack import ScannedLayers
from vit_jax.layers.variables import Frozen


class MisfitError(ValueError):
    """Arrays that are not those of a model.

    Attributes:
      problems: a line for each array that is missing, unexpected or of another shape or type.
    """

    def __init__(self, problems: Sequence[str], message: str | None = None):
        every = "the state dict does not fit the model:\n  " + "\n  ".join(problems)
        super().__init__(message or every)
        self.problems = tuple(problems)


_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array of a PyTorch state dict: a variable, or one layer of a stacked variable."""

    name: str
    variable: nnx.Variable
    layer: int | None
    is_kernel: bool
    path: tuple[Any, ...]

    def _own_shape(self) -> tuple[int, ...]:
        shape = tuple(self.variable.shape)
        return shape if self.layer is None else shape[1:]

    def torch_shape(self) -> tuple[int, ...]:
        shape = self._own_shape()
        return (shape[-1], shape[-2], *shape[:-2]) if self.is_kernel else shape

    def read(self, arrays: dict[int, np.ndarray]) -> np.ndarray:
        """The array in PyTorch layout; `arrays` caches the host copies of stacked variables."""
        array = arrays.setdefault(id(self.variable), np.asarray(self.variable[...]))
        array = array if self.layer is None else array[self.layer]
        if self.is_kernel:
            array = np.moveaxis(array, (-1, -2), (0, 1))
        return np.array(array, order="C")  # a copy: JAX's own buffers must not be written to

    def to_own_layout(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, (0, 1), (-1, -2)) if self.is_kernel else array


def _torch_name(model: nnx.Module, parents: Sequence[str], leaf: str) -> str:
    name = ".".join((*parents, _LEAVES.get(leaf, leaf)))
    for pattern, replacement in getattr(type(model), "torch_names", ()):
        name = re.sub(pattern, replacement, name)
    return name


def torch_path(model: nnx.Module, path: Sequence[str]) -> str:
    """The path of the module in PyTorch that is at `path` in the model; () is the model itself."""
    # A module that PyTorch's source does not have is named as it stands.
    return _torch_name(model, path, "").rstrip(".") or ".".join(path)


def _entries(model: nnx.Module) -> list[_Entry]:
    stacks = {
        path: module.depth
        for path, module in nnx.iter_modules(model)
        if isinstance(module, ScannedLayers)
    }
    entries = []
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, Frozen))):
        *parents, leaf = map(str, path)
        stack = next((p for p in stacks if path[: len(p)] == p), None)
        for layer in range(stacks[stack]) if stack is not None else (None,):
            if stack is not None:  # in place of the attribute `layer` of ScannedLayers
                parents[len(stack)] = str(layer)
            name = _torch_name(model, parents, leaf)
            entries.append(_Entry(name, variable, layer, leaf == "kernel", path))
    return entries


def _aliases(model: nnx.Module) -> dict[str, str]:
    """The further names of arrays that stand in several places, and the first name of each."""
    names: dict[int, list[str]] = {}

    def visit(node: nnx.Module, path: tuple[str, ...]) -> None:
        for key, child in nnx.iter_children(node):
            if isinstance(child, nnx.Param | Frozen):
                names.setdefault(id(child), []).append(_torch_name(model, path, str(key)))
            elif isinstance(child, nnx.Module):
                visit(child, (*path, str(key)))

    visit(model, ())
    return {alias: first for first, *others in names.values() for alias in others}


def torch_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of `state_dict`; the model may be abstract."""
    return {entry.name: entry.torch_shape() for entry in _entries(model)}


def trained_names(model: nnx.Module) -> list[str]:
    """Returns the names in `state_dict` that are parameters, not frozen tables."""
    return [entry.name for entry in _entries(model) if isinstance(entry.variable, nnx.Param)]


def names_by_path(model: nnx.Module) -> dict[tuple[Any, ...], list[str]]:
    """Returns the names in `state_dict` of each array of `nnx.state`: several of a stacked one.

    The model may be abstract.
    """
    names: dict[tuple[Any, ...], list[str]] = {}
    for entry in _entries(model):
        names.setdefault(entry.path, []).append(entry.name)
    return names


def state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns copies of the model's arrays, named and laid out as in its PyTorch source.

    Parameters and frozen tables, each array once, with the dtype the model keeps it in. Gradients
    are named the same way: `state_dict(nnx.merge(graphdef, gradients, rest))`.
    """
    arrays: dict[int, np.ndarray] = {}
    if any(
        isinstance(entry.variable.get_value(), jax.ShapeDtypeStruct) for entry in _entries(model)
    ):
        raise ValueError("the model is abstract (nnx.eval_shape): it has no arrays yet")
    return {entry.name: entry.read(arrays) for entry in _entries(model)}


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, which may want a gradient
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # unknown to NumPy; exact in float32
            value = value.float()
    return np.asarray(value)


def _is_real(dtype: np.dtype) -> bool:
    return dtype == np.bool_ or any(jnp.issubdtype(dtype, k) for k in (jnp.integer, jnp.floating))


def _place(array: np.ndarray, old: Any) -> jax.Array:
    """The array in the type of the old one and, where that lies on devices, as it lies there."""
    new = jnp.asarray(array, old.dtype)
    return jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new


def load_state_dict(model: nnx.Module, mapping: Mapping[str, Any]) -> None:
    """Loads a PyTorch state dict into the model, in place and strictly.

    Args:
      model: it keeps its dtypes and shardings: values are cast to `param_dtype`. It may be
        abstract, of `nnx.eval_shape`.
      mapping: name to array (numpy, JAX or torch) in PyTorch layout. Tied arrays may stand there
        under any of their further names too, with equal values.

    Raises:
      MisfitError: names every missing, unexpected, misshapen and not numeric entry, and those that
        differ where the model has one array; the model is unchanged.
    """
    entries, aliases = _entries(model), _aliases(model)
    known = {entry.name for entry in entries} | aliases.keys()
    problems = [f"missing: {entry.name}" for entry in entries if entry.name not in mapping]
    problems += [f"unexpected: {name}" for name in mapping if name not in known]
    loaded: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.name not in mapping:
            continue
        array = loaded[entry.name] = _to_numpy(mapping[entry.name])
        if array.shape != entry.torch_shape():
            problems.append(
                f"misshapen: {entry.name} wanted {entry.torch_shape()}, got {array.shape}"
            )
        elif not _is_real(array.dtype):
            problems.append(f"not numeric: {entry.name} wanted real numbers, got {array.dtype}")
    problems += [
        f"not tied: {alias} differs from {first}, and the model has one array for both"
        for alias, first in aliases.items()
        if alias in mapping
        and first in loaded
        and not np.array_equal(_to_numpy(mapping[alias]), loaded[first])
    ]
    if problems:
        raise MisfitError(problems)

    layers: dict[int, list[np.ndarray]] = {}
    placed: list[tuple[nnx.Variable, jax.Array]] = []
    for entry in entries:
        array = entry.to_own_layout(loaded[entry.name])
        if entry.layer is not None:  # the entries of one stacked variable come in order
            stacked = layers.setdefault(id(entry.variable), [])
            stacked.append(array)
            if len(stacked) < entry.variable.shape[0]:
                continue
            array = np.stack(stacked)
        placed.append((entry.variable, _place(array, entry.variable.get_value())))
    for variable, array in placed:
        variable.set_value(array)
