"""The calls inside a model: every module's input and output, watched and, for a trial, replaced.

A copy of the model is watched; the model itself and its classes stay as they are.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.inspect.stages import BEFORE, Outputs, arrays_of, map_arrays, outputs_of
from vit_jax.layers.stack import PlainLayers, ScannedLayers
from vit_jax.models.base import VisionModel
from vit_jax.weights.entries import torch_path

_Model = TypeVar("_Model", bound=nnx.Module)


class Stop(Exception):
    """Raised by an observer that has seen enough."""


@dataclasses.dataclass
class Frame:
    """One call of a module.

    Attributes:
      path: PyTorch's path of the module; `path#1` at its second call.
      module: what is called.
      inputs: its array arguments.
      children: the calls inside it that have ended, in order, with what they gave.
      owner: the call that it is part of; None for the model itself.
    """

    path: str
    module: nnx.Module
    inputs: tuple[jax.Array, ...]
    owner: "Frame | None"
    children: list[tuple["Frame", jax.Array]] = dataclasses.field(default_factory=list)

    @property
    def input(self) -> jax.Array:
        return self.inputs[0]


@dataclasses.dataclass(frozen=True)
class Event:
    """A value on its way: the input of `entered`, or what `frame` is about to give.

    Attributes:
      stage: its name, see `inspect.stages`.
      frame: the call in whose code the value was made.
      entered: the module that is about to be called with it; None where `frame` ends.
      path: PyTorch's path of the module that is entered or left.
      part: of an output of several arrays which it is; "" is the answer.
    """

    stage: str
    frame: Frame
    entered: nnx.Module | None
    path: str
    part: str = ""

    @property
    def module(self) -> nnx.Module:
        """The module that is entered or left."""
        return self.frame.module if self.entered is None else self.entered


# What is to stand in the place of an event's value: the value itself where nothing is to change.
Replace = Callable[[Event, jax.Array], jax.Array]
Observe = Callable[[Event, jax.Array], None]


class NamedValue(nnx.Module):
    """Stands in an event for the code that names a value, see `Recorder.named`."""


def _set_fields(model: nnx.Module, **fields: Any) -> None:
    """Changes the config of each of our models inside of a module; unknown fields are left."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, VisionModel):
            known = {k: v for k, v in fields.items() if hasattr(module.config, k)}
            config = dataclasses.replace(module.config, **known)
            module.spec = dataclasses.replace(module.spec, config=config)


def plain(model: _Model) -> _Model:
    """A copy that shares the model's arrays, its layers in lists and run one by one."""
    copy = nnx.merge(*nnx.split(model), copy=True)  # of variables: a run may write into them
    for _, module in list(nnx.iter_modules(copy)):
        for name, child in list(vars(module).items()):
            if isinstance(child, ScannedLayers):
                graph, state = nnx.split(child.layer)
                layers = [
                    nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], state))
                    for i in range(child.depth)
                ]
                setattr(module, name, PlainLayers(layers))
    _set_fields(copy, remat="none", scan_layers=False)
    return copy


def recast(model: _Model, dtype: Any) -> _Model:
    """A copy of the model that computes, and keeps its arrays, in `dtype`."""
    graph, state = nnx.split(model)

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    copy = nnx.merge(graph, jax.tree.map(cast, state))
    for _, module in nnx.iter_modules(copy):
        for name in ("dtype", "param_dtype"):
            if getattr(module, name, None) is not None:
                setattr(module, name, jnp.dtype(dtype))
    _set_fields(copy, dtype=dtype, param_dtype=dtype)
    return copy


class Recorder:
    """Watches one run of a model that `watch` made.

    Args:
      observe: called with each event and its value; may raise `Stop`.
      replace: called before, gives the value that the model goes on with.
      perturb: by stage, what is added to values: zeros to differentiate by.
      keyless: takes the random keys from every call: nothing is dropped then.
      outputs: of modules that give several arrays elsewhere, by PyTorch's path, what they give
        there: arrays here are named alike.
    """

    def __init__(
        self,
        observe: Observe,
        replace: Replace | None = None,
        perturb: Mapping[str, jax.Array] | None = None,
        *,
        keyless: bool = False,
        outputs: Mapping[str, Outputs] | None = None,
    ):
        self.observe, self.replace, self.perturb = observe, replace, perturb or {}
        self.keyless, self.outputs = keyless, outputs or {}
        self._paths: dict[int, str] = {}
        self._calls: dict[int, int] = {}
        self._names: collections.Counter[str] = collections.Counter()
        self._adopted: list[nnx.Module] = []
        self._frame: Frame | None = None

    @property
    def path(self) -> str:
        """Of the module that is running."""
        return "" if self._frame is None else self._frame.path.partition("#")[0]

    def watch(self, model: _Model) -> _Model:
        """Turns the modules of the model, a copy by `plain`, into watched ones, in place."""
        paths = {
            id(module): torch_path(model, tuple(map(str, path)))
            for path, module in sorted(
                nnx.iter_modules(model), key=lambda item: tuple(map(str, item[0]))
            )
            if callable(module)
        }
        for _, module in list(nnx.iter_modules(model)):
            if callable(module):
                object.__setattr__(module, "__class__", _watched(type(module)))
                object.__setattr__(module, "_recorder", self)
        self._paths = paths
        return model

    def watches(self, module: nnx.Module) -> bool:
        return vars(module).get("_recorder") is self

    def adopt(
        self, module: nnx.Module, kind: type, model: nnx.Module, path: tuple[str, ...]
    ) -> None:
        """Watches, as one of a class, a module that the model made after `watch`."""
        object.__setattr__(module, "__class__", _watched(kind))
        object.__setattr__(module, "_recorder", self)
        self._paths[id(module)] = torch_path(model, path)
        self._adopted.append(module)  # so that its id stays its own

    def _pass(self, event: Event, value: jax.Array) -> jax.Array:
        """The value that takes an event's place; whole numbers are watched alone."""
        if is_float(value):
            if self.replace is not None:
                value = self.replace(event, value)
            if event.stage in self.perturb:
                value = value + self.perturb[event.stage]
        self.observe(event, value)
        return value

    def _pass_output(self, frame: Frame, output: Any) -> Any:
        """The output with each of its arrays passed, the answer first."""
        arrays = arrays_of(output, is_watched)
        outputs = jax_outputs(arrays)
        if outputs is None:
            return output
        parts = outputs.parts(self.outputs.get(frame.path))
        passed = {
            name: self._pass(Event(frame.path + part, frame, None, frame.path, part), arrays[name])
            for name, part in sorted(parts.items(), key=lambda item: item[1] != "")
        }
        return map_arrays(output, lambda name, _: passed[name], is_watched)

    def call(self, module: nnx.Module, function: Callable[..., Any], args: tuple, kwargs: dict):
        calls = self._calls.get(id(module), 0)
        self._calls[id(module)] = calls + 1
        path = self._paths[id(module)] + (f"#{calls}" if calls else "")
        owner = self._frame
        if self.keyless:
            args = tuple(None if _is_key(a) else a for a in args)
            kwargs = {name: None if _is_key(a) else a for name, a in kwargs.items()}
        if owner is not None:
            args, kwargs = self._pass_input(Event(BEFORE + path, owner, module, path), args, kwargs)
        given = (*args, *kwargs.values())
        arrays = tuple(a for a in given if isinstance(a, jax.Array) and not _is_key(a))
        frame = self._frame = Frame(path, module, arrays, owner)
        try:
            output = function(*args, **kwargs)
        finally:
            self._frame = owner
        output = self._pass_output(frame, output)
        if owner is not None:
            owner.children.append((frame, output))
        return output

    def named(self, name: str, value: jax.Array) -> jax.Array:
        """What the model goes on with in the place of a value that its code names.

        It is passed as if a module of that name, in the one that runs, had given it.
        """
        path = f"{self.path}.{name}" if self.path else name
        calls = self._names[path]
        self._names[path] += 1
        stage = f"{path}#{calls}" if calls else path
        frame = Frame(stage, NamedValue(), (), self._frame)
        return self._pass(Event(stage, frame, None, stage), value)

    def _pass_input(self, event: Event, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments with the first array among them passed, one of floats before others."""
        given = {**dict(enumerate(args)), **kwargs}
        watched = {key: value for key, value in given.items() if is_watched(value)}
        floats = [key for key, value in watched.items() if is_float(value)]
        for key in (*floats, *watched)[:1]:
            given[key] = self._pass(event, given[key])
        return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}


def is_float(value: jax.Array) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def is_watched(value: Any) -> bool:
    """Whether it is an array of floats or of whole numbers; masks are a matter of convention."""
    return isinstance(value, jax.Array) and (
        is_float(value) or jnp.issubdtype(value.dtype, jnp.integer)
    )


def jax_outputs(arrays: Mapping[str, jax.Array]) -> Outputs | None:
    """The names of an output's arrays and which is the answer."""
    return outputs_of(arrays, lambda name: is_float(arrays[name]))


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


@functools.cache
def _watched(kind: type) -> type:
    def call(self, *args, **kwargs):
        recorder: Recorder = self._recorder
        return recorder.call(self, functools.partial(kind.__call__, self), args, kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
