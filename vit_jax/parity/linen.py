"""A Flax Linen module as a model to be compared."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import errors, linen, nnx
from flax.core import meta, unfreeze

from vit_jax.parity.ported import Held, Part, PortedModel, part_type, rates_of, stopped
from vit_jax.parity.torch_trace import Names

# Lists of modules are named `layers_0` there and `layers.0` in PyTorch.
_NUMBERED = (r"_(\d+)(?=\.|$)", r".\1")
_VARIABLES: dict[str, type[nnx.Variable]] = {
    "params": nnx.Param,
    "batch_stats": nnx.BatchStat,
    "cache": nnx.Cache,
    "intermediates": nnx.Intermediate,
}
# Collections that a run does not change here.
_FIXED = ("params", "intermediates")
_KINDS: tuple[tuple[type, str], ...] = (
    (linen.MultiHeadDotProductAttention, "MultiHeadAttention"),
    (linen.DenseGeneral, "LinearGeneral"),
    (linen.ConvTranspose, "ConvTranspose"),
)


class LinenModel(PortedModel):
    """See `from_linen`."""

    def __init__(
        self,
        module: linen.Module,
        variables: Mapping[str, Any],
        names: Names,
        call: Mapping[str, Any],
    ):
        tree: dict[str, Any] = unfreeze(meta.unbox(variables))
        self.held = Held((module, dict(call)))
        self.needs_keys = False
        super().__init__(type(module).__name__, _parts(tree), names)

    def variables(self) -> dict[str, Any]:
        """Linen's own, with the arrays of this model."""
        found: dict[str, Any] = {}
        for path, part in _walk(self.parts):
            for leaf, collection in part.collections:
                tree = found.setdefault(collection, {})
                for name in path:
                    tree = tree.setdefault(name, {})
                tree[leaf] = getattr(part, leaf).get_value()
        return found

    def see_modes(self, run: Callable[[], Any]) -> None:
        """Each module that drops, and each BatchNorm, has a part then that says in which mode."""
        found: dict[tuple[str, ...], Any] = {}

        def note(function, args, kwargs, context):
            inner = context.module
            if inner.scope is None or context.method_name != "__call__":
                return function(*args, **kwargs)
            if modes := _modes(inner, args, kwargs):
                _, first = found.setdefault(inner.path, (type(inner), modes))
                # It is in train mode if one of its calls is.
                first.update({name: False for name, value in modes.items() if value is False})
            rates = stopped(inner)
            try:
                return function(*args, **kwargs)
            finally:  # for its next call
                for name, rate in rates.items():
                    object.__setattr__(inner, name, rate)

        with linen.intercept_methods(note):
            try:
                run()
            except errors.InvalidRngError:  # of a module that draws at a rate of zero too
                self.needs_keys = True
                run()
        for path, (kind, modes) in found.items():
            part = _made_part(self.parts, path, kind)
            for name, value in modes.items():
                object.__setattr__(part, name, value)
            self.needs_keys |= modes.get("deterministic") is False

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        module, call = self.held.value
        parts = dict(_walk(self.parts))
        if self.needs_keys:
            call = {"rngs": {"dropout": jax.random.key(0)}, **call}

        def intercept(function, args, kwargs, context):
            inner = context.module
            if inner.scope is None or context.method_name == "setup":
                return function(*args, **kwargs)
            if not isinstance(self.dtype, str):
                for field in ("dtype", "param_dtype"):
                    if getattr(inner, field, None) is not None:
                        object.__setattr__(inner, field, self.dtype)
            if self.is_still or getattr(parts.get(inner.path), "deterministic", False):
                stopped(inner)
            if context.method_name != "__call__" or not inner.path:
                return function(*args, **kwargs)
            part = self._part_of(inner, parts)
            return part.run(function, args, kwargs)

        variables = self.variables()
        mutable = [name for name in variables if name not in _FIXED]
        with linen.intercept_methods(intercept):
            given = {**call, **keywords, **({"mutable": mutable} if mutable else {})}
            output = module.apply(variables, *inputs, **given)
        return self._kept(*output) if mutable else output

    def _kept(self, output: Any, changed: Mapping[str, Any]) -> Any:
        """The output; what the run made of the collections stands in the parts then."""
        for path, part in _walk(self.parts):
            for leaf, collection in part.collections:
                tree = changed.get(collection)
                for name in (*path, leaf):
                    tree = tree.get(name) if isinstance(tree, Mapping) else None
                if tree is not None:
                    getattr(part, leaf).set_value(tree)
        return output

    def _part_of(self, inner: linen.Module, parts: dict[tuple[str, ...], Part]) -> Part:
        path, recorder = inner.path, self.recorder()
        part = parts.get(path)
        if part is None:  # it holds no arrays
            part = parts[path] = Part()
        fields = {f.name: getattr(inner, f.name, None) for f in dataclasses.fields(inner)}
        part.mirror(fields)
        kind = next((name for cls, name in _KINDS if type(inner) is cls), "")
        axes = _layout(inner).get("axes_in", part.axes_in)
        if kind and part.collections and (part.torch_kind, part.axes_in) != (kind, axes):
            raise ValueError(
                f"{'.'.join(path)} is a linen.{type(inner).__name__}, whose arrays have a layout "
                "of their own: give from_linen `example=`, inputs to find such modules by"
            )
        if recorder is not None and not recorder.watches(part):
            recorder.adopt(part, part_type(type(inner)), self, ("parts", *path))
        return part


def _walk(part: Part, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Part]]:
    yield path, part
    for name in part.children:
        yield from _walk(getattr(part, name), (*path, name))


def _made_part(part: Part, path: tuple[str, ...], kind: type) -> Part:
    """The part at a path: made, with those above it, where it holds no arrays."""
    for i, name in enumerate(path):
        if name not in part.children:
            # An array or a mirrored field may have that name.
            made = part_type(kind)() if i == len(path) - 1 else Part()
            setattr(part, name, made)
            part.children = (*part.children, name)
        part = getattr(part, name)
    return part


def _modes(module: linen.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """In which mode a module is called: attributes of its part; none where it has no modes."""
    call: Any = type(module).__call__
    given = inspect.signature(call).bind(module, *args, **kwargs).arguments

    def mode(name: str) -> Any:
        own = getattr(module, name, None)
        return own if given.get(name) is None else given[name]

    if isinstance(module, linen.BatchNorm):
        is_eval = bool(mode("use_running_average"))
        return {"use_running_average": is_eval, "momentum": module.momentum}
    rates, is_off = rates_of(module), mode("deterministic")
    is_drop = "drop" in type(module).__name__.lower()
    drops = is_drop or isinstance(module, linen.MultiHeadDotProductAttention)
    if not drops or not rates or not isinstance(is_off, bool):
        return {}
    return {"rate": max(rates.values()), "deterministic": is_off}


def _parts(variables: Mapping[str, Mapping[str, Any]]) -> Part:
    """The modules that hold arrays, each with those of all collections."""
    part = Part()
    children: dict[str, dict[str, Any]] = {}
    collections: list[tuple[str, str]] = []
    for collection, tree in variables.items():
        for name, value in tree.items():
            if isinstance(value, Mapping):
                children.setdefault(name, {})[collection] = value
            elif hasattr(value, "dtype"):
                if any(name == other for other, _ in collections):
                    raise ValueError(f"two collections have an array {name!r} of one module")
                kind = _VARIABLES.get(collection, nnx.Variable)
                setattr(part, name, kind(jax.numpy.asarray(value)))
                collections.append((name, collection))
    for name, trees in children.items():
        setattr(part, name, _parts(trees))
    part.collections, part.children = tuple(collections), tuple(children)
    part.torch_kind = _guess(part)
    return part


def _guess(part: Part) -> str:
    """The kind of a module by its arrays."""
    kernel, bias = getattr(part, "kernel", None), getattr(part, "bias", None)
    if {"query", "key", "value", "out"} <= set(part.children):
        inner = [getattr(part, name) for name in ("query", "key", "value", "out")]
        if all(getattr(getattr(p, "kernel", None), "ndim", 0) == 3 for p in inner):
            for p, axes in zip(inner, (1, 1, 1, 2), strict=True):
                p.torch_kind, p.axes_in = "LinearGeneral", axes
            return "MultiHeadAttention"
    if isinstance(bias, nnx.Variable) and isinstance(kernel, nnx.Variable) and bias.ndim > 1:
        part.axes_in = kernel.ndim - bias.ndim
        return "LinearGeneral"
    if isinstance(kernel, nnx.Variable) and kernel.ndim == 2:
        part.axes_in = 1
        return "LinearGeneral"  # the same as a Dense
    return ""


def _layout(module: linen.Module) -> dict[str, Any]:
    """The attributes of a part that say how the arrays of such a module lie."""
    kind = next((name for cls, name in _KINDS if type(module) is cls), "")
    if isinstance(module, linen.DenseGeneral):
        axes = module.axis
        return {"torch_kind": kind, "axes_in": len(axes) if isinstance(axes, Sequence) else 1}
    if isinstance(module, linen.ConvTranspose):
        return {"torch_kind": kind, "transpose_kernel": module.transpose_kernel}
    return {"torch_kind": kind} if kind or isinstance(module, linen.Conv | linen.Dense) else {}


def from_linen(
    module: linen.Module,
    variables: Mapping[str, Any],
    *,
    names: Names = (_NUMBERED,),
    example: Sequence[Any] | None = None,
    **call: Any,
) -> LinenModel:
    """Makes of a Linen module what `compare` takes.

    Its arrays have PyTorch's layouts and, but for the path of the module, PyTorch's names:
    `kernel`, `scale` and `embedding` are `weight`, statistics `running_mean` and `running_var`, the
    kernels of a `MultiHeadDotProductAttention` `in_proj_weight` or those of three Linears. Every
    call of a module is a stage. Modules inside of `nn.scan`, `nn.remat` or `nn.jit` are not.

    Args:
      module: not bound.
      variables: of `module.init`: `params`, `batch_stats` and others.
      names: pairs (regular expression, replacement) that turn the paths into PyTorch's; by default
        `layers_0` is `layers.0`.
      example: inputs of any size, to find by them the modules whose arrays do not say what they
        are: `ConvTranspose`, and `DenseGeneral` without bias or over several axes.
      call: further arguments of `module.apply`, such as `train=False` or `rngs`.

    Returns:
      An NNX module; `.load(torch_module.state_dict())` is one with PyTorch's weights.

    Raises:
      ValueError: two collections have an array of one name.
    """
    model = LinenModel(module, variables, names, call)
    if example is not None:
        parts = dict(_walk(model.parts))
        found: dict[tuple[str, ...], dict[str, Any]] = {}

        def note(function, args, kwargs, context):
            inner = context.module
            if inner.scope is not None and inner.path in parts:
                found[inner.path] = _layout(inner)
            return function(*args, **kwargs)

        with linen.intercept_methods(note):
            jax.eval_shape(lambda v: module.apply(v, *example, **call), model.variables())
        for path, layout in found.items():
            for name, value in layout.items():
                setattr(parts[path], name, value)
    return model
