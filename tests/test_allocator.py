"""Memory that is freed stays with the process that asked for it."""

import ctypes
import os
import pathlib
import resource

import pytest

from tests.commands import OF_JAX, run_alone

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the C library is not glibc",
)
_HUGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

_KEEP = "from vit_jax.allocator import keep_freed_memory; print(keep_freed_memory())"
# Page faults of a call whose result is 64 MiB, once it is warm.
_FAULTS = """
import resource
import jax, jax.numpy as jnp
jax.config.update("jax_cpu_enable_async_dispatch", False)  # as the commands do
f, x = jax.jit(lambda x: x + 1), jnp.zeros(2**24)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # its pieces find their places
    f(x).block_until_ready()
before = faults()
for _ in range(10):
    f(x).block_until_ready()
print((faults() - before) // 10)
"""


def _run(*code: str, **environment: str) -> list[str]:
    child = run_alone(
        *("-c", "\n".join(code)),
        variables={"JAX_PLATFORMS": "cpu", **environment},
        dropped=(*OF_JAX, "MALLOC_", "GLIBC_TUNABLES"),
    )
    return child.stdout.split()


@pytest.mark.skipif(
    _HUGE.exists() and "[always]" in _HUGE.read_text(), reason="the kernel gives pages of 2 MiB"
)
def test_a_warm_call_gets_no_memory_from_the_kernel():
    kept, faults = _run(_KEEP, _FAULTS)
    assert kept == "True"
    pages = 2**26 // resource.getpagesize()  # of a result
    assert int(faults) < pages / 4  # now and then a piece is still moved
    assert int(*_run(_FAULTS)) > 0.9 * pages


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
    ids=lambda environment: next(iter(environment)),
)
def test_settings_of_the_user_stay(environment):
    assert _run(_KEEP, **environment) == ["False"]
