"""Values that a JAX computation names by `jax.ad_checkpoint.checkpoint_name`, as they come up."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jax.core import Trace, eval_jaxpr
from jax.extend import core

_NAMING = "name"
_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
# From a name and its value to what the computation goes on with.
Named = Callable[[str, Any], Any]


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The computations that an operation calls."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.Jaxpr | core.ClosedJaxpr):
                yield part


def inlined(primitive: Any, params: dict[str, Any]) -> Callable[..., Any] | None:
    """What runs a call of compiled or rematerialised code operation by operation; else None."""
    if primitive.name not in _CALLS:
        return None
    for jaxpr in inner_jaxprs(params):
        closed = jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else core.ClosedJaxpr(jaxpr, ())
        return lambda *args: eval_jaxpr(closed.jaxpr, closed.consts, *args)
    return None


def has_names(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> bool:
    """Whether something in it is named where `naming` sees it."""
    closed = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        eqn.primitive.name == _NAMING
        or (eqn.primitive.name in _CALLS and any(map(has_names, inner_jaxprs(eqn.params))))
        for eqn in closed.eqns
    )


@contextlib.contextmanager
def naming(named: Named) -> Iterator[None]:
    """What is named in this context is given to a function, inside of `jax.vmap` with the batch.

    So is what compiled and rematerialised functions name, which are run operation by operation; not
    what loops, such as `jax.lax.scan`, and custom derivatives do.

    Args:
      named: see `Named`.
    """
    with core.take_current_trace() as parent, core.set_current_trace(_Naming(parent, named)):
        yield


class _Naming(Trace):
    """Hands every operation on to the trace below it, and what is named to a function."""

    def __init__(self, parent: Any, named: Named):
        super().__init__()
        self.parent, self.named = parent, named

    def process_primitive(self, primitive: Any, tracers: Any, params: dict[str, Any], /) -> Any:
        inline = inlined(primitive, params)
        if inline is None and primitive.name != _NAMING:
            return self.parent.process_primitive(primitive, tracers, params)
        with core.set_current_trace(self):
            return self.named(params["name"], *tracers) if inline is None else inline(*tracers)

    def process_custom_jvp_call(self, *args: Any, **params: Any) -> Any:
        return self.parent.process_custom_jvp_call(*args, **params)

    def process_custom_vjp_call(self, *args: Any, **params: Any) -> Any:
        return self.parent.process_custom_vjp_call(*args, **params)

    def stage_value(self, val: Any) -> Any:
        return self.parent.stage_value(val)

    def cur_qdd(self, x: Any) -> Any:
        return self.parent.cur_qdd(x)
