"""What a program is traced for: some forms of the same numbers suit one platform only."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_CPU: contextvars.ContextVar[bool] = contextvars.ContextVar("cpu", default=False)


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """While a step is traced inside, layers take the form that suits `platform`, as JAX names it.

    Outside, and for all but "cpu", that is the plain one.
    """
    token = _CPU.set(platform == "cpu")
    try:
        yield
    finally:
        _CPU.reset(token)


def is_for_cpu() -> bool:
    """Whether the program that is traced is for a CPU."""
    return _CPU.get()


def end_fusion(x: jax.Array) -> jax.Array:
    """On a CPU, lets XLA write `x` down, and its gradient, where it would compute them anew.

    Without it the gradients of all residual branches down to a block are summed again for each use
    in this block: time that grows with the square of the depth. Needs the compiler option of
    `compiler_options`: XLA for CPUs removes barriers before it fuses. `jax.pmap` takes no options.
    """
    return jax.lax.optimization_barrier(x) if is_for_cpu() else x


def compiler_options(platform: str) -> dict[str, str] | None:
    """Options of `jax.jit` for a program that was traced for a platform."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform == "cpu" else None
