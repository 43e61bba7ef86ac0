"""Which arrays of a model make which entry of a state dict, and under which names.

See `vit_jax.weights.state_dict`, whose rule this is.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from vit_jax.layers.stack import ScannedLayers
from vit_jax.layers.variables import Frozen
from vit_jax.weights.torch_layout import (
    JOINED,
    LEAVES,
    STATISTICS,
    Layout,
    is_attention,
    layout_of,
)

# A model's state that is no part of its weights.
_TRANSIENT = (nnx.Cache, nnx.Intermediate, nnx.Perturbation, nnx.RngState, nnx.OptState)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One array of the model, or one layer of a stacked one, at one of its places.

    Attributes:
      name: what its path gives.
      holder, key: the module and the attribute.
      path: in `nnx.state`.
      module: the path of the holder, in names, and the holder's owner.
    """

    name: str
    holder: Any
    key: Any
    variable: Any
    layer: int | None
    layout: Layout
    path: tuple[Any, ...]
    module: tuple[str, ...]
    owner: Any

    @property
    def place(self) -> tuple[int, Any, int | None]:
        """Equal for all places of one array."""
        if isinstance(self.variable, nnx.Variable):
            return id(self.variable), None, self.layer
        return id(self.holder), self.key, self.layer

    @property
    def value(self) -> Any:
        is_variable = isinstance(self.variable, nnx.Variable)
        return self.variable.get_value() if is_variable else self.variable

    @property
    def is_trained(self) -> bool:
        return isinstance(self.variable, nnx.Param)

    @property
    def is_required(self) -> bool:
        """Whether a state dict has to have it: not a constant, which PyTorch may compute."""
        return isinstance(self.variable, nnx.Param | Frozen | nnx.BatchStat)

    @property
    def is_index(self) -> bool:
        """Whole numbers that the model has computed itself."""
        kind = self.value.dtype
        whole = kind == jnp.bool_ or jnp.issubdtype(kind, jnp.integer)
        return whole and not self.is_trained and not isinstance(self.value, jax.ShapeDtypeStruct)

    def set(self, value: jax.Array) -> None:
        if isinstance(self.variable, nnx.Variable):
            self.variable.set_value(value)
        else:
            setattr(self.holder, self.key, value)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a PyTorch state dict: a slot, or several on top of each other.

    Attributes:
      singles: the names under which each slot may stand alone in place of `name`.
    """

    name: str
    slots: tuple[Slot, ...]
    singles: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[Any, ...]:
        return tuple(slot.place for slot in self.slots)

    @property
    def torch_shape(self) -> tuple[int, ...]:
        shapes = [slot.layout.torch_shape for slot in self.slots]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[1:] else shapes[0]

    @property
    def is_required(self) -> bool:
        return any(slot.is_required for slot in self.slots)

    def read(self, arrays: dict[Any, np.ndarray]) -> np.ndarray:
        """The array in PyTorch layout; `arrays` caches the host copies of stacked variables."""
        parts = []
        for slot in self.slots:
            array = arrays.setdefault(slot.place[:2], np.asarray(slot.value))
            parts.append(slot.layout.to_torch(array if slot.layer is None else array[slot.layer]))
        # A copy: JAX's own buffers must not be written to.
        return np.concatenate(parts) if parts[1:] else np.array(parts[0], order="C")

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """The parts in PyTorch layout of an array of `torch_shape`."""
        sizes = [slot.layout.torch_shape[0] for slot in self.slots[:-1] if self.slots[1:]]
        return np.split(array, np.cumsum(sizes)) if sizes else [array]


def _torch_name(model: nnx.Module, parents: Sequence[str], leaf: str) -> str:
    name = ".".join((*parents, leaf))
    for pattern, replacement in getattr(model, "torch_names", ()):
        name = re.sub(pattern, replacement, name)
    return name


def torch_path(model: nnx.Module, path: Sequence[str]) -> str:
    """The path of the module in PyTorch that is at `path` in the model; () is the model itself."""
    names: list[str] = []
    node: Any = model
    for key in path:
        if not (isinstance(node, nnx.Sequential) and key == "layers"):
            names.append(key)
        node = node[int(key)] if isinstance(node, nnx.List) else getattr(node, key, None)
    # A module that PyTorch's source does not have is named as it stands.
    return _torch_name(model, names, "").rstrip(".") or ".".join(names)


def _arrays(node: nnx.Module) -> Iterator[tuple[Any, Any]]:
    """The children of a module by name, and the arrays that are its attributes as they are."""
    raw = [
        (key, value)
        for key, value in vars(node).items()
        if isinstance(key, str)
        and isinstance(value, jax.Array)
        and not isinstance(value, nnx.Variable | Tracer)
    ]
    yield from nnx.iter_children(node)
    yield from raw


def _slots(model: nnx.Module) -> Iterator[Slot]:
    """Every array at every place; the places of one module in the order of the model's state."""

    def visit(
        node: Any,
        names: tuple[str, ...],
        path: tuple[Any, ...],
        layer: int | None,
        owners: tuple[Any, ...],
    ) -> Iterator[Slot]:
        for key, child in _arrays(node):
            below = (*path, key)
            if isinstance(child, nnx.Module):
                if any(child is owner for owner in owners):
                    continue
                if isinstance(node, ScannedLayers):
                    for i in range(node.depth):
                        yield from visit(child, (*names, str(i)), below, i, (*owners, child))
                elif isinstance(node, nnx.Sequential) and key == "layers":
                    yield from visit(child, names, below, layer, (*owners, child))
                else:
                    yield from visit(child, (*names, str(key)), below, layer, (*owners, child))
            elif _is_weight(child):
                value = child.get_value() if isinstance(child, nnx.Variable) else child
                shape = value.shape if layer is None else value.shape[1:]
                is_statistic = isinstance(child, nnx.BatchStat)
                table = {**LEAVES, **STATISTICS} if is_statistic else LEAVES
                yield Slot(
                    _torch_name(model, names, table.get(str(key), str(key))),
                    node,
                    key,
                    child,
                    layer,
                    layout_of(node, str(key), shape),
                    below,
                    names,
                    owners[-2] if owners[1:] else None,
                )

    yield from visit(model, (), (), None, (model,))


def _is_weight(child: Any) -> bool:
    if isinstance(child, _TRANSIENT):
        return False
    value = child.get_value() if isinstance(child, nnx.Variable) else child
    kind = getattr(value, "dtype", None)
    return kind is not None and is_real(kind)


def _places(model: nnx.Module) -> list[Entry]:
    """The entries of all places, tied ones among them, in order."""
    entries: list[Entry] = []
    joined: dict[tuple[tuple[str, ...], str], dict[str, Slot]] = {}
    for slot in _slots(model):
        if is_attention(slot.owner) and slot.module[-1] in JOINED:
            leaf = {"kernel": "weight"}.get(str(slot.key), str(slot.key))
            joined.setdefault((slot.module[:-1], leaf), {})[slot.module[-1]] = slot
            if len(joined[slot.module[:-1], leaf]) == len(JOINED):
                parts = joined[slot.module[:-1], leaf]
                entries += _join(model, [parts[name] for name in JOINED], leaf)
        elif is_attention(slot.owner) and slot.module[-1] == "out":
            leaf = {"kernel": "weight"}.get(str(slot.key), str(slot.key))
            name = _torch_name(model, slot.module[:-1], f"out_proj.{leaf}")
            entries.append(_choice(name, (slot,), "out"))
        else:
            entries.append(Entry(slot.name, (slot,)))
    return entries


def _choice(name: str, slots: tuple[Slot, ...], part: str) -> Entry:
    """PyTorch's own name for parts of an attention; their own where `torch_names` speaks of it."""
    if slots[0].name.split(".")[-2:-1] != [part]:
        return Entry(slots[0].name, slots, (name,))
    return Entry(name, slots, tuple(slot.name for slot in slots))


def _join(model: nnx.Module, slots: list[Slot], leaf: str) -> list[Entry]:
    """query, key and value as PyTorch joins them."""
    parents = slots[0].module[:-1]
    shapes = [slot.layout.torch_shape for slot in slots]
    is_named = slots[0].name.split(".")[-2:-1] != ["query"]
    if is_named or len({shape[0] for shape in shapes}) > 1:
        return [Entry(slot.name, (slot,)) for slot in slots]
    if len(set(shapes)) > 1:  # the keys' and values' widths are their own
        names = [f"{letter}_proj_{leaf}" for letter in "qkv"]
        return [
            Entry(_torch_name(model, parents, name), (slot,), (slot.name,))
            for name, slot in zip(names, slots, strict=True)
        ]
    name = _torch_name(model, parents, f"in_proj_{leaf}")
    return [Entry(name, tuple(slots), tuple(slot.name for slot in slots))]


def entries_of(model: nnx.Module) -> dict[tuple[Any, ...], list[Entry]]:
    """By the arrays that they are, the entries: the first name, and after it its aliases."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in _places(model):
        found.setdefault(entry.places, []).append(entry)
    return found


def first_entries(model: nnx.Module) -> list[Entry]:
    """The entries under their first names; arrays that are no variables are not among them."""
    return [
        entries[0]
        for entries in entries_of(model).values()
        if isinstance(entries[0].slots[0].variable, nnx.Variable)
    ]


def to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, which may want a gradient
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # unknown to NumPy; exact in float32
            value = value.float()
    return np.asarray(value)


def is_real(dtype: Any) -> bool:
    return dtype == np.bool_ or any(jnp.issubdtype(dtype, k) for k in (jnp.integer, jnp.floating))
