"""The map between a model's arrays and the state dict of its PyTorch source.

One rule: the attribute path is the key, joined by dots. A `kernel` is a `weight` whose axes go from
(*spatial, in, out) to (out, in, *spatial); `scale` and `embedding` are a `weight` as they are; the
running statistics `mean` and `var` are `running_mean` and `running_var`. The layers of a
`nnx.Sequential` and of a `ScannedLayers` are named as if they stood in a list. The query, key and
value of a `nnx.MultiHeadAttention` are joined, as in `torch.nn.MultiheadAttention`, or stand alone
as three Linears. What does not follow from it stands in the model's `torch_names`, a short table of
substitutions. An array that stands in several places (tied layers) has the name of the first; the
names of the others are its aliases.

Both directions come from the same list of entries, so they cannot disagree.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.weights.entries import (
    Entry,
    Slot,
    entries_of,
    first_entries,
    is_real,
    to_numpy,
)
from vit_jax.weights.torch_layout import is_computed


class MisfitError(ValueError):
    """Arrays that are not those of a model.

    Attributes:
      problems: a line for each array that is missing, unexpected or of another shape or type.
    """

    def __init__(self, problems: Sequence[str], message: str | None = None):
        every = "the state dict does not fit the model:\n  " + "\n  ".join(problems)
        super().__init__(message or every)
        self.problems = tuple(problems)


@dataclasses.dataclass(frozen=True)
class LoadedState:
    """What a load left alone.

    Attributes:
      kept: names of the model's arrays that the mapping does not have.
      unused: names of the mapping that the model has no array for: indices, masks and counters
        that PyTorch computes, and with `strict=False` whatever else there is.
    """

    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def torch_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of `state_dict`; the model may be abstract."""
    return {entry.name: entry.torch_shape for entry in first_entries(model)}


def trained_names(model: nnx.Module, like: Collection[str] | None = None) -> list[str]:
    """Returns the names in `state_dict` that are parameters, not frozen tables."""
    return [
        name
        for entries in entries_of(model).values()
        if entries[0].slots[0].is_trained
        for name, *_ in _named(entries, like)
    ]


def names_by_path(model: nnx.Module) -> dict[tuple[Any, ...], list[str]]:
    """Returns the names in `state_dict` of each array of `nnx.state`: several of a stacked one.

    The model may be abstract.
    """
    names: dict[tuple[Any, ...], list[str]] = {}
    for entry in first_entries(model):
        for slot in entry.slots:
            names.setdefault(slot.path, []).append(entry.name)
    return names


def _named(
    entries: Sequence[Entry], like: Collection[str] | None
) -> list[tuple[str, Entry, int | None]]:
    """(name, entry, the part of it that stands alone) of one array, as `like` has it."""
    first = (entries[0].name, entries[0], None)
    if like is None:
        return [first]
    found: list[tuple[str, Entry, int | None]] = []
    for entry in entries:
        if entry.name in like:
            found.append((entry.name, entry, None))
        elif any(single in like for single in entry.singles):
            if entry.slots[1:]:
                found += [(single, entry, i) for i, single in enumerate(entry.singles)]
            else:
                found += [(single, entry, None) for single in entry.singles if single in like]
    return found or [first]


def state_dict(
    model: nnx.Module, *, like: Collection[str] | Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Returns copies of the model's arrays, named and laid out as in its PyTorch source.

    Parameters, running statistics, frozen tables and constants that are `nnx.Variable`s, each array
    once, with the dtype the model keeps it in. Gradients are named the same way:
    `state_dict(nnx.merge(graphdef, gradients, rest))`.

    Args:
      model: with arrays.
      like: the names, or the state dict, of a PyTorch module. Arrays that it has under several
        names (tied) stand under each, parts of an attention joined or alone as there. Of a state
        dict the entries come that PyTorch computes, such as `num_batches_tracked`, as they are
        there, and constants that it has not are left out: `torch_module.load_state_dict` takes all
        of it strictly, as tensors.

    Raises:
      ValueError: the model is abstract.
    """
    cache: dict[Any, np.ndarray] = {}
    every = entries_of(model).values()
    if any(
        isinstance(slot.value, jax.ShapeDtypeStruct)
        for entries in every
        for slot in entries[0].slots
    ):
        raise ValueError("the model is abstract (nnx.eval_shape): it has no arrays yet")
    found: dict[str, np.ndarray] = {}
    for entries in every:
        is_raw = not isinstance(entries[0].slots[0].variable, nnx.Variable)
        for name, entry, part in _named(entries, like):
            is_new = like is None or name not in like
            if is_new and (is_raw or (isinstance(like, Mapping) and not entry.is_required)):
                continue
            whole = entry.read(cache)
            if isinstance(like, Mapping) and name in like and entry.slots[0].is_index:
                whole = whole.reshape(to_numpy(like[name]).shape)
            found[name] = whole if part is None else entry.split(whole)[part].copy()
    if isinstance(like, Mapping):
        for name in like.keys() - found.keys():
            array = to_numpy(like[name])
            tied = _tied_to(name, array, like, found.keys())
            if tied is not None:
                found[name] = found[tied].copy()
            elif is_computed(array) or _is_buffer(model, name):
                found[name] = array.copy()
        found = {
            name: found[name] for name in (*like, *(found.keys() - like.keys())) if name in found
        }
    return found


def _place(array: np.ndarray, old: Any) -> jax.Array:
    """A copy in the type of the old one and, where that lies on devices, as it lies there."""
    new = jnp.array(array, old.dtype)  # `asarray` would share the memory of PyTorch's tensor
    return jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new


def _tied_to(
    name: str, array: np.ndarray, mapping: Mapping[str, Any], known: Collection[str]
) -> str | None:
    """The known entry that is the same matrix: PyTorch names a tied head twice."""
    if not array.size:
        return None
    if array.ndim < 2 or not is_real(array.dtype) or bool((array == array.flat[:1]).all()):
        return None  # zeros and ones are equal by chance
    for other in known:
        is_alike = tuple(getattr(mapping.get(other), "shape", ())) == array.shape
        if other != name and is_alike and np.array_equal(to_numpy(mapping[other]), array):
            return other
    return None


def _is_buffer(model: nnx.Module, name: str) -> bool:
    """Whether the model's source computes what may stand in a state dict under this name."""
    return name.rpartition(".")[2] in getattr(model, "torch_buffers", ())


class _Loading:
    """The arrays of one mapping for one model, and what does not fit."""

    def __init__(self, model: nnx.Module, mapping: Mapping[str, Any], strict: bool):
        self.mapping, self.strict = mapping, strict
        self.problems: list[str] = []
        self.kept: list[str] = []
        self.loaded: list[tuple[Slot, np.ndarray]] = []  # in the model's layout
        self._late: list[str] = []
        every = entries_of(model)
        known = {
            name for entries in every.values() for e in entries for name in (e.name, *e.singles)
        }
        missing = [entries for entries in every.values() if not self._has(entries)]
        for entries in missing:
            self._miss(entries)
        self.unused = [name for name in mapping if name not in known]
        for name in self.unused:
            array = to_numpy(mapping[name])
            is_free = _is_buffer(model, name) or (is_real(array.dtype) and is_computed(array))
            if strict and not is_free and _tied_to(name, array, mapping, known) is None:
                self.problems.append(f"unexpected: {name}")
        for entries in every.values():
            if entries not in missing:
                self._take(entries)
        self.problems += self._late

    def _alone(self, entry: Entry) -> bool:
        """Whether its slots stand in the mapping one by one, under other names."""
        if not entry.slots[1:]:
            return any(single in self.mapping for single in entry.singles)
        return all(single in self.mapping for single in entry.singles)

    def _has(self, entries: list[Entry]) -> bool:
        return any(entry.name in self.mapping or self._alone(entry) for entry in entries)

    def _miss(self, entries: list[Entry]) -> None:
        entry = entries[0]
        there = [single for single in entry.singles if single in self.mapping]
        names = [s for s in entry.singles if s not in self.mapping] if there else [entry.name]
        abstract = any(isinstance(slot.value, jax.ShapeDtypeStruct) for slot in entry.slots)
        if abstract or (self.strict and entry.is_required) or there:
            hint = ""
            if isinstance(entry.slots[0].variable, nnx.BatchStat) and not abstract:
                hint = " (running statistics; strict=False keeps the model's own)"
            self.problems += [f"missing: {name}{hint}" for name in names]
        elif entry.is_required or not entry.slots[0].is_index:
            self.kept.append(entry.name)

    def _array(self, name: str, shape: tuple[int, ...], is_index: bool) -> np.ndarray | None:
        array = to_numpy(self.mapping[name])
        if not is_real(array.dtype):
            self.problems.append(f"not numeric: {name} wanted real numbers, got {array.dtype}")
        elif array.shape == shape or (is_index and array.size == np.prod(shape)):
            return array.reshape(shape)
        else:
            self.problems.append(f"misshapen: {name} wanted {shape}, got {array.shape}")
        return None

    def _take(self, entries: list[Entry]) -> None:
        """The first array that is there; the others must be equal, in the model's layout."""
        first: tuple[str, list[np.ndarray]] | None = None
        for entry in entries:
            for names in self._sources(entry):
                found = self._parts(entry, names, quiet=first is not None)
                if first is None and found is not None:
                    first = names[0], found
                elif first is None:
                    return
                elif found is None or not all(map(np.array_equal, first[1], found)):
                    self._late.append(
                        f"not tied: {names[0]} differs from {first[0]}, and the model has one "
                        "array for both"
                    )
        assert first is not None
        for slot, array in zip(entries[0].slots, first[1], strict=True):
            if not slot.is_index:
                self.loaded.append((slot, array))
            elif not np.array_equal(self._own(slot), array):
                self.problems.append(
                    f"differs: {first[0]} holds whole numbers, and the model computes others"
                )

    def _own(self, slot: Slot) -> np.ndarray:
        array = np.asarray(slot.value)
        return array if slot.layer is None else array[slot.layer]

    def _sources(self, entry: Entry) -> list[tuple[str, ...]]:
        """The names under which the whole entry stands in the mapping."""
        sources = [(entry.name,)] if entry.name in self.mapping else []
        if not self._alone(entry):
            return sources
        if entry.slots[1:]:
            return [*sources, entry.singles]
        return [*sources, *((single,) for single in entry.singles if single in self.mapping)]

    def _parts(self, entry: Entry, names: tuple[str, ...], quiet: bool) -> list[np.ndarray] | None:
        """An entry's arrays in the model's layout; None, and a problem, where they do not fit."""
        before = len(self.problems)
        slots = entry.slots
        is_index = slots[0].is_index
        if len(names) == len(slots):
            shapes = [slot.layout.torch_shape for slot in slots]
            arrays = [
                self._array(name, shape, is_index)
                for name, shape in zip(names, shapes, strict=True)
            ]
        else:
            whole = self._array(names[0], entry.torch_shape, is_index)
            arrays = [None] if whole is None else entry.split(whole)
        if quiet:
            del self.problems[before:]
        if any(array is None for array in arrays):
            return None
        return [
            slot.layout.to_own(array)
            for slot, array in zip(slots, arrays, strict=True)
            if array is not None
        ]

    def place(self) -> None:
        """Puts the arrays into the model; layers of a stacked one together."""
        layers: dict[Any, list[np.ndarray]] = {}
        placed: list[tuple[Slot, jax.Array]] = []
        for slot, array in self.loaded:
            if slot.layer is not None:  # the layers come in order
                stacked = layers.setdefault(slot.place[:2], [])
                stacked.append(array)
                if len(stacked) < slot.value.shape[0]:
                    continue
                array = np.stack(stacked)
            placed.append((slot, _place(array, slot.value)))
        for slot, array in placed:
            slot.set(array)


def load_state_dict(
    model: nnx.Module, mapping: Mapping[str, Any], *, strict: bool = True
) -> LoadedState:
    """Loads a PyTorch state dict into the model, in place.

    Whole numbers that PyTorch computes and keeps as buffers (position ids, an index of relative
    positions, `num_batches_tracked`), booleans, and a causal mask (a lower triangle of ones) are no
    weights: they are compared where the model has an array of that name, and ignored where it has
    none. Constants of the model, in a plain `nnx.Variable` or an array that is an attribute, are
    loaded where the mapping has them.

    Args:
      model: it keeps its dtypes and shardings: values are cast to `param_dtype`. It may be
        abstract, of `nnx.eval_shape`.
      mapping: name to array (numpy, JAX or torch) in PyTorch layout. An array that the model has
        once may stand there under any of its names, with equal values; so may a matrix that is
        equal to another one of the mapping, as a tied head is.
      strict: False keeps the model's own arrays where the mapping has none, such as running
        statistics, and leaves what the model has no place for.

    Returns:
      What was kept and what was not used, by name.

    Raises:
      MisfitError: names every missing, unexpected, misshapen and not numeric entry, and those that
        differ where the model has one array; the model is unchanged.
    """
    loading = _Loading(model, mapping, strict)
    if loading.problems:
        raise MisfitError(loading.problems)
    loading.place()
    return LoadedState(tuple(loading.kept), tuple(loading.unused))
