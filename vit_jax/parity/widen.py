"""Runs a JAX computation in float64 throughout, its casts to narrower floats left out.

What a model computes in float32, whatever is asked of it, is rounded there: in float64 it then
departs by that rounding, in which a fault of its size cannot be seen. Here the same code runs with
float64 in the place of the narrower types, so that nothing but its own arithmetic is left.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Trace, Tracer, eval_context, eval_jaxpr
from jax.extend import core, linear_util

from vit_jax.parity.held import is_rounded, moved_by_a_digit
from vit_jax.parity.named import inlined, inner_jaxprs

# Of the types of 8 bits none: a model that quantizes means it.
_WIDE = {
    jnp.dtype(narrow): jnp.dtype(wide)
    for narrow, wide in (
        ("float16", "float64"),
        ("bfloat16", "float64"),
        ("float32", "float64"),
        ("complex64", "complex128"),
    )
}
# Called with (name of the narrow type).
Note = Callable[[str], None]
Hold = Callable[[np.ndarray, Any], np.ndarray]


def is_narrow(dtype: Any) -> bool:
    """Whether it is a floating-point type that is replayed in a wider one."""
    return dtype in _WIDE


def has_narrow(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> bool:
    """Whether something in it, or in what it calls, is computed in a narrow type."""
    closed = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        any(is_narrow(getattr(var.aval, "dtype", None)) for var in eqn.outvars)
        or any(has_narrow(inner) for inner in inner_jaxprs(eqn.params))
        for eqn in closed.eqns
    )


@dataclasses.dataclass
class Islands:
    """Where a model of float64 computes in narrower types, and whether these are widened.

    Attributes:
      is_widened: what the model computes from now on is.
      found: the types by module.
      refusal: why it cannot be widened; "" where it can.
      jitter: constants of a narrow type, which keep their rounding, are moved by their last digit.
      held: the modules with such constants.
    """

    is_widened: bool = False
    found: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    jitter: bool = False
    held: set[str] = dataclasses.field(default_factory=set)

    def see(self, jaxpr: core.ClosedJaxpr) -> bool:
        """Whether the computation has to be run again, widened."""
        if self.is_widened or self.refusal or jnp.result_type(float) != jnp.float64:
            return False
        self.is_widened = has_narrow(jaxpr)
        return self.is_widened

    def refuse(self, error: Exception) -> None:
        self.is_widened, self.refusal = False, f"{type(error).__name__}: {error}".splitlines()[0]

    def widened(self, where: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
        """A context for a run of the model.

        Args:
          where: the module that is running.
        """
        if not self.is_widened:
            return contextlib.nullcontext()

        def note(dtype: str) -> None:
            self.found.setdefault(where(), set()).add(dtype)

        def hold(array: np.ndarray, dtype: Any) -> np.ndarray:
            if not is_rounded(array):
                return array
            self.held.add(where())
            return moved_by_a_digit(array, float(jnp.finfo(dtype).eps)) if self.jitter else array

        return widening(note, hold)


@contextlib.contextmanager
def widening(note: Note, hold: Hold = lambda array, dtype: array) -> Iterator[None]:
    """What JAX computes in this context is computed in float64 in the place of narrower types.

    Inside of a transformation, such as `jax.grad`, it is part of what is transformed. Functions
    that are compiled inside are run operation by operation: compiled, their constants would have
    been rounded before.

    Args:
      note: called for each operation that would have computed in a narrow type.
      hold: called with each real constant of a narrow type, in a wide one, and with its own type:
        what is to stand there.
    """
    with core.take_current_trace() as parent, contextlib.ExitStack() as stack:
        stack.enter_context(jax.disable_jit())
        # What is of two types may here be of a third one.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(core.set_current_trace(_Widening(parent, note, hold)))
        yield


class _Widening(Trace):
    """Hands every operation on to the trace below it, with wide types in the place of narrow ones.

    Args:
      parent: what runs or records the operations.
      note, hold: see `widening`.
    """

    def __init__(self, parent: Any, note: Note, hold: Hold):
        super().__init__()
        self.parent, self.note, self.hold = parent, note, hold

    def process_primitive(self, primitive: Any, tracers: Any, params: dict[str, Any], /) -> Any:
        args = [self._wide(arg) for arg in tracers]
        if primitive.name == "reduce_precision":
            self.note("fewer bits")
            return args[0]
        inline = inlined(primitive, params)
        if inline is not None:
            with core.set_current_trace(self):
                return inline(*args)
        params = {name: self._wide_param(name, value) for name, value in params.items()}
        found = self.parent.process_primitive(primitive, args, params)
        # Of a callback or of other bits, which know no other type.
        return list(map(self._wide, found)) if primitive.multiple_results else self._wide(found)

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, **params: Any
    ) -> Any:
        return self.parent.process_custom_jvp_call(
            primitive, self._rewrapped(fun), self._rewrapped(jvp), self._all_wide(tracers), **params
        )

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, **params: Any
    ) -> Any:
        functions = (self._rewrapped(fun), self._rewrapped(fwd), self._rewrapped(bwd))
        return self.parent.process_custom_vjp_call(
            primitive, *functions, self._all_wide(tracers), **params
        )

    def stage_value(self, val: Any) -> Any:
        return self.parent.stage_value(self._wide(val))

    def cur_qdd(self, x: Any) -> Any:
        return self.parent.cur_qdd(x)

    def _rewrapped(self, function: Any) -> Any:
        """A function that is called later, and then by another trace, perhaps, computes wide."""

        def wide(*args: Any) -> Any:
            with widening(self.note, self.hold):
                return function.call_wrapped(*args)

        return linear_util.wrap_init(wide, debug_info=function.debug_info)

    def _all_wide(self, args: Any) -> list[Any]:
        return [self._wide(arg) for arg in args]

    def _wide(self, value: Any) -> Any:
        """The value in its wide type; a constant of a narrow type keeps its rounding."""
        dtype: Any = getattr(value, "dtype", None)
        if dtype not in _WIDE:
            return value
        if not isinstance(value, Tracer):
            array = np.asarray(value).astype(_WIDE[dtype])
            if array.dtype.kind == "f":
                array = self.hold(array, dtype)
            with eval_context():
                return jnp.asarray(array)
        with core.set_current_trace(self.parent):
            return jax.lax.convert_element_type(value, _WIDE[dtype])

    def _wide_param(self, name: str, value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return self._wide_jaxpr(value) if has_narrow(value) else value
        if isinstance(value, core.Jaxpr):  # has no constants
            return self._wide_jaxpr(core.ClosedJaxpr(value, ())).jaxpr
        if isinstance(value, tuple) and any(isinstance(v, core.ClosedJaxpr) for v in value):
            parts = [self._wide_param(name, part) for part in value]
            make: Any = type(value)
            return make(*parts) if hasattr(value, "_fields") else make(parts)
        if name == "precision" and isinstance(value, jax.lax.DotAlgorithm | _PRESET):
            return None
        if isinstance(value, np.dtype | type) and is_narrow(dtype := jnp.dtype(value)):
            self.note(dtype.name)
            return _WIDE[dtype]
        return value

    def _wide_jaxpr(self, closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
        def wide(*args: Any) -> Any:
            with widening(self.note, self.hold):
                return eval_jaxpr(closed.jaxpr, closed.consts, *args)

        avals = [
            jax.ShapeDtypeStruct(aval.shape, _WIDE.get(aval.dtype, aval.dtype))
            for aval in closed.in_avals
        ]
        return jax.make_jaxpr(wide)(*avals)


_PRESET = jax.lax.DotAlgorithmPreset
