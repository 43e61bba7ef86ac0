"""Memory that is freed stays with the process that asked for it."""

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc"
)

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
    child = subprocess.run(
        [sys.executable, "-c", _FAULTS, how],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = child.stdout.split()
    return kept, int(faults)


def test_a_warm_call_gets_no_memory_from_the_kernel():
    kept, faults = _run("keep")
    assert kept == "True"
    # 64 MiB are 16,384 pages. Now and then a piece is still moved.
    assert faults < 4096
    assert _run("not")[1] > 16_000


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
    ids=lambda environment: next(iter(environment)),
)
def test_settings_of_the_user_stay(environment):
    assert _run("keep", **environment)[0] == "False"
