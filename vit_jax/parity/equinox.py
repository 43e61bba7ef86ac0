"""An Equinox module as a model to be compared."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.parity.ported import Held, Part, PortedModel, part_type, rates_of, stopped
from vit_jax.parity.torch_trace import Names
from vit_jax.parity.vmapped import from_outside

Path = tuple[str, ...]
# Names of attributes that stand for others, of modules that NNX and PyTorch have too.
_RENAMED: dict[str, dict[str, str]] = {
    "MultiheadAttention": {
        "query_proj": "query",
        "key_proj": "key",
        "value_proj": "value",
        "output_proj": "out",
    },
    "Linear": {"weight": "kernel"},
    "Conv": {"weight": "kernel"},
}
_STATISTICS = ("ema_state_index", "batch_state_index")
# What says that a BatchNorm has seen no batch yet, and what it is once PyTorch's statistics stand
# there: none is divided by its weight, none is overwritten by the first batch.
_FRESH = {"batch_counter": 0, "ema_first_time_index": False}
_OPAQUE = ("State", "StateIndex")


class _Running(threading.local):
    """The parts of the model that runs, by the path of the module."""

    def __init__(self) -> None:
        self.parts: Mapping[Path, Part] = {}


_RUNNING = _Running()


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """An array of the module: the part that has it, its name there, and its own layout."""

    place: Path
    name: str
    to_module: Callable[[jax.Array], jax.Array]


class _Builder:
    """Makes the parts, and says where in them the module's arrays and submodules are."""

    def __init__(self, state: Any):
        self.state = state
        self.leaves: dict[Path, _Leaf] = {}
        self.modules: dict[Path, Path] = {}
        self.statistics: list[tuple[Any, Any, Path]] = []  # (their index, the module, its place)

    def part(self, module: Any, path: Path, place: Path) -> Part:
        part = part_type(type(module))()
        self.modules[path] = place
        part.torch_kind = "same"
        if _is(module, "PReLU"):
            part.torch_kind = ""
        if _is(module, "MultiheadAttention"):
            part.torch_kind = "MultiHeadAttention"
        fields = dict(_fields(module))
        part.mirror({**fields, **({"epsilon": fields["eps"]} if "eps" in fields else {})})
        if _is(module, "BatchNorm"):
            part.use_running_average = module.inference
        elif (rates := rates_of(module)) and isinstance(fields.get("inference"), bool):
            part.rate, part.deterministic = max(rates.values()), fields["inference"]
        for name, child in fields.items():
            if _is(module, "Sequential") and name == "layers":
                for i, layer in enumerate(child):
                    self._add(part, str(i), layer, (*path, name, str(i)), place)
            elif name in _STATISTICS and self.state is not None and child is not None:
                mean, var = self.state.get(child)
                counter = fields.get("batch_counter")
                if counter is not None:  # what is kept is not divided by its weight yet
                    count = self.state.get(counter)
                    weight = jnp.where(count == 0, 1, 1 - module.momentum**count)
                    mean, var = mean / weight, var / weight
                part.mean, part.var = nnx.BatchStat(mean), nnx.BatchStat(var)
                self.statistics.append((child, module, place))
            else:
                renamed = next((r for kind, r in _RENAMED.items() if _is(module, kind)), {})
                below = renamed.get(name, name)
                self._add(part, below, child, (*path, name), place, module)
        return part

    def _add(
        self, part: Part, name: str, child: Any, path: Path, place: Path, module: Any = None
    ) -> None:
        if _is_array(child):
            stored, to_module = _turned(module, name, child)
            is_trained = isinstance(child, jax.Array) and jnp.issubdtype(child.dtype, jnp.floating)
            setattr(part, name, (nnx.Param if is_trained else nnx.Variable)(stored))
            self.leaves[path] = _Leaf(place, name, to_module)
            return
        if _is_module(child):
            below = self.part(child, path, (*place, name))
        elif isinstance(child, list | tuple | dict):
            below = Part()
            for key, inner in _items(child):
                self._add(below, key, inner, (*path, key), (*place, name))
            if not below.children and not any(
                isinstance(value, nnx.Variable) for value in vars(below).values()
            ):
                return
        else:
            return
        # A field is no child: what was mirrored of it goes.
        setattr(part, name, below)
        part.children = (*part.children, name)


def _turned(
    module: Any, name: str, array: Any
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """An array in PyTorch's layout, and what brings that back into the module's."""
    shape, stored = array.shape, jnp.asarray(array)
    is_turned = name == "weight" and _is(module, "ConvTranspose")
    if is_turned:
        groups = module.groups

        def turn(array: jax.Array) -> jax.Array:  # its own inverse
            flipped = jnp.flip(array, tuple(range(2, array.ndim)))
            parts = flipped.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2)
            return parts.reshape(-1, *parts.shape[2:])

        return turn(stored), turn
    is_flat = name == "bias" and (_is(module, "Conv") or _is(module, "ConvTranspose"))
    return (stored.ravel() if is_flat else stored), lambda array: array.reshape(shape)


class EquinoxModel(PortedModel):
    """See `from_equinox`."""

    channels_first = True

    def __init__(
        self, module: Any, batched: bool, names: Names, state: Any, call: Mapping[str, Any]
    ):
        builder = _Builder(state)
        parts = builder.part(module, (), ())
        self.held = Held((module, batched, dict(call), state, builder))
        super().__init__(type(module).__name__, parts, names)

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        module, batched, call, state, builder = self.held.value
        places = dict(_walk(self.parts))
        filled = _filled(module, builder, places, self.is_still)
        state = _with_statistics(state, builder, places)
        states = () if state is None else (state,)

        trained = [item for item in builder.statistics if not item[1].inference]

        def one(inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
            output = filled(*inputs, *states, **{**call, **keywords})
            if not states:
                return output, []
            output, new = output
            return output, [new.get(index) for index, _, _ in trained]

        before = _RUNNING.parts
        _RUNNING.parts = {path: places[place] for path, place in builder.modules.items()}
        try:
            if batched:
                output, kept = one(inputs, keywords)
            else:
                output, kept = jax.vmap(one, axis_name="batch")(inputs, keywords)
                kept = jax.tree.map(lambda array: array[0], kept)  # the same for every example
        finally:
            _RUNNING.parts = before
        for (_, _, place), (mean, var) in zip(trained, kept, strict=True):
            places[place].mean.set_value(mean)
            places[place].var.set_value(var)
        return output


def _walk(part: Part, path: Path = ()) -> Iterator[tuple[Path, Part]]:
    yield path, part
    for name in part.children:
        yield from _walk(getattr(part, name), (*path, name))


def _with_statistics(state: Any, builder: _Builder, places: Mapping[Path, Part]) -> Any:
    """The state with the running statistics of the parts, of whatever type."""
    new: dict[int, Any] = {}  # by the identity of the arrays there
    for index, module, place in builder.statistics:
        part, (mean, var) = places[place], state.get(index)
        new |= {id(mean): part.mean.get_value(), id(var): part.var.get_value()}
        for name, value in _FRESH.items():
            if (fresh := getattr(module, name, None)) is not None:
                new[id(state.get(fresh))] = jnp.asarray(value)
    return jax.tree.map(lambda leaf: new.get(id(leaf), leaf), state)


def _filled(module: Any, builder: _Builder, places: Mapping[Path, Part], is_still: bool) -> Any:
    """The module with the arrays of the parts, its submodules watched; see `PortedModel`."""

    def fill(value: Any, path: Path) -> Any:
        if path in builder.leaves:
            leaf = builder.leaves[path]
            return leaf.to_module(getattr(places[leaf.place], leaf.name).get_value())
        if path in builder.modules:
            new = object.__new__(_watched(type(value), path) if path else type(value))
            for name, child in _fields(value):
                object.__setattr__(new, name, fill(child, (*path, name)))
            is_off = getattr(places[builder.modules[path]], "deterministic", False)
            # Of one in inference mode a call may say `inference=False`, which is to be seen.
            if is_still or (is_off and not getattr(value, "inference", False)):
                stopped(new)
            return new
        if isinstance(value, list | tuple | dict):
            items = dict(_items(value))
            new_items = {key: fill(child, (*path, key)) for key, child in items.items()}
            if all(new_items[key] is items[key] for key in items):
                return value
            if isinstance(value, dict):
                return dict(zip(value, new_items.values(), strict=True))
            make: Any = type(value)
            return (
                make(*new_items.values()) if hasattr(value, "_fields") else make(new_items.values())
            )
        return value

    return fill(module, ())


@functools.cache
def _watched(kind: type, path: Path) -> type:
    """The class of a module that is called as its part; the class itself where it has no call."""
    has_call = any("__call__" in vars(base) for base in kind.__mro__)
    if not has_call or kind.__name__ == "Shared":  # which returns modules
        return kind
    own: Any = kind

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = _RUNNING.parts[path]
        given = (self, args, kwargs)
        leaves, tree = jax.tree.flatten(given)
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def rebuilt(arrays: Sequence[jax.Array]) -> Any:
            new = list(leaves)
            for i, array in zip(where, arrays, strict=True):
                new[i] = array
            return jax.tree.unflatten(tree, new)

        def function(*arrays: jax.Array) -> Any:
            module, args, kwargs = rebuilt(arrays)
            return own.__call__(module, *args, **kwargs)

        def outermost(function: Callable[..., Any], arrays: Sequence[jax.Array]) -> Any:
            module, args, kwargs = rebuilt(arrays)

            def run(*args: Any, **kwargs: Any) -> Any:
                passed = jax.tree.leaves((module, args, kwargs))
                if len(passed) != len(leaves):  # keys were taken away: it keeps them
                    return function(*arrays)
                return function(*(passed[i] for i in where))

            return part.run(run, args, kwargs)

        return from_outside(function, outermost, [leaves[i] for i in where])

    body = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), body)


def _fields(module: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(module):
        if hasattr(module, field.name):
            yield field.name, getattr(module, field.name)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    yield from ((str(key), child) for key, child in pairs)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _is_module(value: Any) -> bool:
    import equinox

    return isinstance(value, equinox.Module) and type(value).__name__ not in _OPAQUE


def _is(module: Any, name: str) -> bool:
    """Whether it is a module of `equinox.nn` of that name, or made from one."""
    import equinox

    return isinstance(module, getattr(equinox.nn, name))


def from_equinox(
    module: Any,
    *,
    batched: bool = False,
    names: Names = (),
    state: Any = None,
    **call: Any,
) -> EquinoxModel:
    """Makes of an Equinox module what `compare` takes.

    Its arrays have PyTorch's layouts already, and the path of attributes is the name, as in
    `vit_jax.state_dict`; the projections of an `eqx.nn.MultiheadAttention` are `in_proj_weight` and
    `out_proj.weight`, or Linears named query, key, value and out. Every call of a module is a
    stage, with the whole batch: also where it is called inside of `jax.vmap`. Modules inside of
    `jax.jit`, `jax.lax.scan` or `jax.checkpoint` are not.

    Args:
      module: as it is to be compared: `eqx.nn.inference_mode(module)` in eval mode. A float
        `jax.Array` is trained, a `numpy.ndarray` is a constant.
      batched: it takes a batch. Otherwise single examples, such as (C, H, W), and it is mapped over
        the first axis of every input.
      names: pairs (regular expression, replacement) that turn its paths into PyTorch's.
      state: an `eqx.nn.State`, which it then takes after its inputs and returns after its output.
        A BatchNorm counts as one that has seen many batches: what it keeps is compared.
      call: further arguments of the call, such as `key`, the same for every example.

    Returns:
      An NNX module; `.load(torch_module.state_dict())` is one with PyTorch's weights. Images it
      takes as Equinox does, channels first; `compare` still wants them (B, H, W, C).

    Raises:
      ValueError: equinox is not installed, or it is no Equinox module.
    """
    try:
        import equinox
    except ImportError as error:
        raise ValueError("an Equinox module needs Equinox: `pip install equinox`") from error
    if not isinstance(module, equinox.Module):
        raise ValueError(f"wanted an equinox.Module, got {type(module).__name__}")
    return EquinoxModel(module, batched, names, state, call)
