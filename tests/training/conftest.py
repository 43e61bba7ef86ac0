"""Training compiles as for users; its child processes have a compilation cache to themselves."""

import pathlib
from collections.abc import Iterator

import pytest

from tests import compilation


@pytest.fixture(scope="package", autouse=True)
def compiled_as_for_users_in_all_scopes() -> Iterator[None]:
    """Runs of wider fixtures are held, bit for bit, against those of tests and of processes."""
    with compilation.as_for_users():
        yield


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("compilation_cache")
