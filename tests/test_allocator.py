"""Memory that is freed stays with the process that asked for it."""

import ctypes
import os
import pathlib
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="the C library is not glibc",
)
_HUGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Page faults of a call whose result is 64 MiB, once it is warm.
_FAULTS = """
import resource, sys
from vit_jax.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
f, x = jax.jit(lambda x: x + 1), jnp.zeros(2**24)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):  # its pieces find their places
    f(x).block_until_ready()
before = faults()
for _ in range(10):
    f(x).block_until_ready()
print(kept, (faults() - before) // 10)
"""


def _run(how: str, **environment: str) -> tuple[str, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    own.pop("GLIBC_TUNABLES", None)
    child = subprocess.run(
        [sys.executable, "-c", _FAULTS, how],
        env={**own, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = child.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(
    _HUGE.exists() and "[always]" in _HUGE.read_text(), reason="the kernel gives pages of 2 MiB"
)
def test_a_warm_call_gets_no_memory_from_the_kernel():
    kept, faults = _run("keep")
    assert kept == "True"
    pages = 2**26 // resource.getpagesize()  # of a result
    assert faults < pages / 4  # now and then a piece is still moved
    assert _run("not")[1] > 0.9 * pages


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
    ids=lambda environment: next(iter(environment)),
)
def test_settings_of_the_user_stay(environment):
    assert _run("keep", **environment)[0] == "False"
