"""A compilation cache for all training tests: they compile the same few programs over and over."""

import pathlib
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("compilation_cache")


@pytest.fixture(autouse=True)
def compilation_cache(cache_dir: pathlib.Path) -> Iterator[None]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(cache_dir))
    jax.config.update(names[1], 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
