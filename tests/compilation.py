"""How the suite compiles: quickly, and once for its workers, child processes and later runs."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = pathlib.Path(os.environ.get("VIT_JAX_TEST_CACHE") or ROOT / ".cache" / "jax")
# A cache of more than this, left by many versions of the code, is emptied before a run.
_MOST_BYTES = 2 * 2**30
# XLA's older code generator for CPUs, which compiles in a third to half of the time.
QUICK_XLA = "--xla_cpu_use_fusion_emitters=false"


def variables() -> dict[str, str]:
    """The variables by which JAX, also in child processes, compiles quickly and finds its cache.

    To be set before JAX is imported. Every program is kept, however small. One that is set already
    stays: `JAX_COMPILATION_CACHE_DIR=` (empty) runs the suite without a cache.
    """
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    flags = os.environ.get("XLA_FLAGS", "").replace(QUICK_XLA, "")  # of a process that started us
    wanted |= {name: os.environ[name] for name in wanted if name in os.environ}
    return wanted | {"XLA_FLAGS": f"{flags} {QUICK_XLA}".strip()}


@contextlib.contextmanager
def as_for_users() -> Iterator[None]:
    """XLA compiles as it does for users, here and in child processes."""
    import jax
    from jax._src import compiler

    def get_compile_options(
        *args: Any, of: Any = compiler.get_compile_options, **named: Any
    ) -> Any:
        own = named.get("env_options_overrides") or {}
        named["env_options_overrides"] = {"xla_cpu_use_fusion_emitters": True, **own}
        return of(*args, **named)

    flags = os.environ["XLA_FLAGS"].replace(QUICK_XLA, "")
    env = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with (
            mock.patch.object(compiler, "get_compile_options", get_compile_options),
            mock.patch.dict(os.environ, env),
        ):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def write_whole_entries() -> None:
    """Makes JAX put entries in place whole: two workers, or one that is killed, may write one.

    JAX writes an entry where it is read; half of one stays for good and is warned of each time.
    """
    from jax._src.lru_cache import LRUCache

    def put(self: LRUCache, key: str, value: bytes) -> None:
        path = self.path / f"{key}-cache"
        if path.exists():
            return
        with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as file:
            file.write(value)
        os.replace(file.name, path)

    LRUCache.put = put


def empty_a_large_cache() -> None:
    if not CACHE.is_dir():
        return
    entries = [entry for entry in os.scandir(CACHE) if entry.is_file()]
    if sum(entry.stat().st_size for entry in entries) > _MOST_BYTES:
        for entry in entries:
            os.unlink(entry)
