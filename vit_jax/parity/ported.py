"""Models of other JAX libraries as NNX modules, so that they are compared like those.

A tree of `Part`s stands for the model: each holds the arrays of one of its modules and is called
around that module's own call. So what is seen, replaced and differentiated in an NNX module is so
in theirs.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from vit_jax.inspect.recorder import Recorder, is_float
from vit_jax.parity.inputs import Inputs
from vit_jax.parity.layouts import without_unit_axes
from vit_jax.parity.torch_trace import Names
from vit_jax.weights.state_dict import load_state_dict, state_dict

_Model = TypeVar("_Model", bound="PortedModel")
# Fields of other libraries' modules that are rates of what drops at random.
_RATES = ("rate", "p", "drop_prob")
# What a config says and a diagnosis may read: no arrays, no functions.
_PLAIN = (bool, int, float, str, np.dtype, type(None))


class _Calls(threading.local):
    """What the parts that are being called do."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []


_CALLS = _Calls()


class Part(nnx.Module):
    """Stands for a module: `run` is the call of that module.

    Attributes:
      torch_kind, axes_in, transpose_kernel: see `weights.torch_layout.layout_of`.
      children: the names of the parts in it.
      collections: (name of an array, name of Linen's collection).
      mean, var: of a BatchNorm, the running statistics.
      rate: of what drops at random; `deterministic` is then whether it does not.
      use_running_average: of a BatchNorm, whether it is in eval mode.
    """

    torch_kind = ""
    axes_in = 1
    transpose_kernel = False
    mean: nnx.BatchStat
    var: nnx.BatchStat
    rate: float
    deterministic: bool
    use_running_average: bool
    children: tuple[str, ...] = ()
    collections: tuple[tuple[str, str], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _CALLS.functions.pop()(*args, **kwargs)

    def run(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]):
        """Calls the function as this module, which a recorder sees if it watches."""
        depth = len(_CALLS.functions)
        _CALLS.functions.append(function)
        try:
            return self(*args, **kwargs)
        finally:
            del _CALLS.functions[depth:]

    def mirror(self, fields: Mapping[str, Any]) -> None:
        """Takes the plain fields of the module that have no name of an array or of another part."""
        for name, value in fields.items():
            if name not in vars(self) and not hasattr(Part, name) and _is_plain(value):
                object.__setattr__(self, name, value)


def rates_of(module: Any) -> dict[str, float]:
    """The rates above zero of a module that drops at random, by the names of its fields.

    By class: what has "drop" in its name; and any field with that in its own.
    """
    is_drop = "drop" in type(module).__name__.lower()
    names = [field.name for field in dataclasses.fields(module)]
    rates = {
        name: getattr(module, name, None)
        for name in names
        if "drop" in name.lower() or (is_drop and name in _RATES)
    }
    return {name: rate for name, rate in rates.items() if type(rate) is float and rate > 0}


def stopped(module: Any) -> dict[str, float]:
    """Makes a module drop nothing, in place: its rates are zero. Returns those it had."""
    rates = rates_of(module)
    for name in rates:
        object.__setattr__(module, name, 0.0)
    return rates


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@functools.cache
def part_type(kind: type) -> type[Part]:
    """The class of parts that stand for modules of a class: its own for each, of the same name."""
    make: Any = type(Part)
    return make(kind.__name__, (Part,), {"__module__": kind.__module__})


class Held:
    """An object that NNX takes as it is, equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value


class PortedModel(nnx.Module):
    """A model of another library.

    Attributes:
      name: of its class, for the report.
      parts: its modules; their paths are PyTorch's after `torch_names`.
      channels_first: it takes images (B, C, H, W) or, of single examples, (C, H, W).
      dtype: what it is to compute in; a string: what it is written in.
      is_still: the rates of what drops at random are zero in every module.
    """

    channels_first = False

    def __init__(self, name: str, parts: Part, names: Names):
        self.name = name
        self.parts = parts
        self.dtype: Any = "its own"
        self.is_still = False
        if callable(names):
            raise ValueError("names: wanted pairs (regular expression, replacement)")
        self.torch_names = ((r"^parts(\.|$)", ""), *(tuple(pair) for pair in names))

    def settled(self: _Model, images: Any, *, still: bool) -> _Model:
        """A copy whose parts know their modes, once it has been seen that it can be run.

        Args:
          images: what it is given, or `Inputs`.
          still: the copy drops nothing.

        Raises:
          ValueError: it cannot be run.
        """
        new = nnx.clone(self)
        new.is_still = still
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(new)) if is_float(leaf)]

        def cast(_: str, array: Any) -> Any:
            return array.astype(dtypes[0]) if dtypes and is_float(array) else array

        def run(images: Any) -> Any:
            model = nnx.clone(new)
            return images.call(model) if isinstance(images, Inputs) else model(images)

        images = images.map(cast) if isinstance(images, Inputs) else cast("", images)
        try:
            with jax.enable_x64(np.dtype(np.float64) in dtypes):
                new.see_modes(lambda: jax.eval_shape(run, images))
        except Exception as error:
            text = next(iter(str(error).splitlines()), "")
            raise ValueError(
                f"{self.name} cannot be run on these inputs ({type(error).__name__}: {text})"
            ) from error
        return new

    def see_modes(self, run: Callable[[], Any]) -> None:
        """Runs the model; what is seen of its modes is noted in its parts."""
        run()

    def recorder(self) -> Recorder | None:
        """What watches this model, if anything does."""
        return vars(self).get("_recorder")

    def load(self: _Model, mapping: Mapping[str, Any], *, strict: bool = True) -> _Model:
        """Returns a copy with the arrays of a PyTorch state dict, see `vit_jax.load_state_dict`.

        Axes of length one may be missing on either side, as in a class token (1, D) for (1, 1, D).

        Raises:
          MisfitError: they are not the model's.
        """
        copy = nnx.clone(self)  # not of the same variables
        shapes = {name: array.shape for name, array in state_dict(self).items()}
        fitting = {
            name: without_unit_axes(array, shapes[name]) if name in shapes else array
            for name, array in mapping.items()
        }
        load_state_dict(copy, fitting, strict=strict)
        return copy
