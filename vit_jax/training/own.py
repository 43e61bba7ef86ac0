"""What a run is given in Python in place of the config's: data, loss, metrics, augmentation."""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.data.splits import Splits
from vit_jax.training.loggers import Logger
from vit_jax.training.objectives import Measure, Objective
from vit_jax.training.own_model import OwnModule
from vit_jax.training.progress import OF_THE_RUN

# (key, image (H, W, C) uint8) -> an image of the same shape and type.
ImageAugment = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a callback is told.

    Attributes:
      kind: "log" (a train row), "validation" or "end" (the last row, that of the test split).
      step: updates done.
      row: the row of metrics.jsonl.
      model: makes a copy of the model in eval mode, with the averaged weights where there are any.
    """

    kind: str
    step: int
    row: Mapping[str, Any]
    model: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Own:
    """What a run is given beside its config; see `vit_jax.training.train`."""

    data: Splits | None = None
    model: OwnModule | None = None
    loss: Measure | None = None
    metrics: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    augment: ImageAugment | None = None
    callbacks: Sequence[Callable[[Report], None]] = ()
    loggers: Sequence[Logger] = ()

    def __post_init__(self) -> None:
        named = {"loss": self.loss, "augment": self.augment}
        if not isinstance(self.model, nnx.Module):
            named["model"] = self.model
        named |= {f"metrics[{name!r}]": metric for name, metric in self.metrics.items()}
        for name, function in named.items():
            if function is not None and not callable(function):
                raise ValueError(f"{name}: wanted a function, got {function!r}")
        for index, callback in enumerate(self.callbacks):
            if not callable(callback):
                raise ValueError(f"callbacks[{index}]: wanted a function, got {callback!r}")
        for index, logger in enumerate(self.loggers):
            if not all(callable(getattr(logger, name, None)) for name in ("scalars", "close")):
                raise ValueError(
                    f"loggers[{index}]: wanted an object with scalars(step, values) and close(), "
                    f"got {logger!r}"
                )
        for name in self.metrics:
            is_name = isinstance(name, str) and name.isidentifier()
            if not is_name or name in _TAKEN or name.startswith("ema_"):
                raise ValueError(
                    f"metrics: wanted names of letters, digits and underscores that no row has "
                    f"already ({', '.join(sorted(_TAKEN))}, ema_*), got {name!r}"
                )

    def figures(self, objective: Objective) -> dict[str, Measure] | None:
        """What rows show beside the loss; None: top1 and top5, as sums of their own.

        Raises:
          ValueError: a metric has the name of a figure that the rows have already.
        """
        if objective.kind == "classification" and not self.metrics:
            return None
        taken = {*objective.figures, objective.best} & self.metrics.keys()
        for name in sorted(taken):
            raise ValueError(f"metrics: the rows of this run have a {name!r} already")
        return {**objective.figures, **self.metrics}

    @functools.cached_property
    def identities(self) -> dict[str, str]:
        """What decides the numbers of the run, for its config.json: names and hashes of sources."""
        found = {}
        if self.data is not None:
            found["data"] = self.data.describe()
        given = {"model": self.model, "loss": self.loss, "augment": self.augment}
        for name, function in given.items():
            if function is not None:
                found[name] = identity(function)
        return found | {f"metrics.{name}": identity(m) for name, m in self.metrics.items()}


_TAKEN = OF_THE_RUN | {"loss", "top1", "top5"}


def identity(function: Any) -> str:
    """The qualified name of a function and a hash of its source, comments and layout left out.

    What it was made with counts too: the arguments of a partial, the variables of a closure, the
    attributes of an object that is called or whose method is, the arrays of a module. What it calls
    does not, nor what a decorator of `functools.wraps` was made with.

    Raises:
      ValueError: it has no source, or was made with what has no exact words.
    """
    if isinstance(function, functools.partial):
        given = [function.args, sorted(function.keywords.items())]
        return f"{identity(function.func)} with {_exact(given)}"
    if isinstance(function, nnx.Module):
        arrays = [(path, _exact(x[...])) for path, x in nnx.to_flat_state(nnx.state(function))]
        mark = hashlib.sha256(repr(arrays).encode()).hexdigest()[:16]
        return f"{identity(type(function))} with arrays {mark}"
    method = inspect.unwrap(function)
    if inspect.ismethod(method) and not inspect.isclass(method.__self__):
        return f"{identity(method.__func__)} of {identity(method.__self__)}"
    is_object = not (inspect.isroutine(function) or inspect.isclass(function))
    code = type(function) if is_object else inspect.unwrap(function)
    mark = hashlib.sha256(_source(code).encode()).hexdigest()[:16]
    name = f"{code.__module__}.{code.__qualname__} {mark}"
    if is_object:
        return f"{name} with {_exact(sorted(vars(function).items()))}"
    made_with = [*(getattr(code, "__defaults__", None) or ())]
    made_with += sorted((getattr(code, "__kwdefaults__", None) or {}).items())
    made_with += [cell.cell_contents for cell in getattr(code, "__closure__", None) or ()]
    return f"{name} with {_exact(made_with)}" if made_with else name


def _source(code: Any) -> str:
    """What a function or class does, in words that change with it."""
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):  # typed at a prompt, or not written in Python
        if hasattr(code, "__code__"):
            return _bytecode(code.__code__)
        if inspect.isclass(code) and code.__module__ != "builtins":
            methods = sorted((k, v) for k, v in vars(code).items() if hasattr(v, "__code__"))
            return repr([(name, _bytecode(method.__code__)) for name, method in methods])
        raise ValueError(
            f"{code!r} has no source to be known again by: wanted a Python function"
        ) from None
    with contextlib.suppress(SyntaxError):  # a lambda amid an expression: its lines as they stand
        return ast.dump(ast.parse(source))
    return source


def _bytecode(code: types.CodeType) -> str:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, constants, code.co_names))


def _exact(value: Any) -> str:
    """The value in words that no other value has."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Mapping):
        return _exact(sorted(value.items()))
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_exact, value))})"
    if isinstance(value, np.ndarray | jax.Array):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(value) if is_key else value)
        mark = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
        return f"{array.dtype}{array.shape} {mark}"
    if isinstance(value, types.ModuleType):
        return value.__name__
    if callable(value):
        return identity(value)
    raise ValueError(
        f"a function was made with {type(value).__name__} {value!r:.80}, which a resume could not "
        "compare: wanted numbers, strings, arrays, functions, and lists or dicts of these"
    )


def check_measure(name: str, measure: Measure, outputs: Any, labels: Any) -> None:
    """Refuses a loss or metric that does not return one number for each example.

    Args:
      name: of it, for the error.
      measure: is traced, not run.
      outputs: of the model, shapes and types.
      labels: of the batch, likewise.

    Raises:
      ValueError: it fails, or returns another shape.
    """
    wanted = f"{name}: wanted a number for each example, shape {labels.shape[:1]}"
    try:
        found = jax.eval_shape(measure, outputs, labels)
    except Exception as error:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{x.shape}", (outputs, labels))
        raise ValueError(f"{wanted}; given {shapes} it fails: {error}") from error
    if getattr(found, "shape", None) != labels.shape[:1]:
        shape = jax.tree.map(lambda x: x.shape, found)
        raise ValueError(f"{wanted}, got shape {shape}: leave the mean to the run")


def augmented(augment: ImageAugment, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Each image augmented with a key of its own.

    Raises:
      ValueError: an image changes its shape or type.
    """
    found = jax.vmap(augment)(keys, images)
    if (found.shape, found.dtype) != (images.shape, images.dtype):
        raise ValueError(
            f"augment: wanted an image {images.shape[1:]} {images.dtype} as it was given, got "
            f"{found.shape[1:]} {found.dtype}"
        )
    return jnp.asarray(found)
