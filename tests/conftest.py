"""Checks that hold for the whole suite; platform and cache are settled before JAX starts."""

import contextlib
import ctypes
import gc
import os
import resource
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tests import compilation

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the tolerances are those of a CPU
os.environ.update(compilation.variables())

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning

import tests.typecheck  # noqa: F401 - the import hook finds it by name

compilation.write_whole_entries()

# Each annotated function of these is wrapped when its module is imported, now or later.
_CHECKED = [f"vit_jax.{package}" for package in ("layers", "models", "weights", "data")]
jaxtyping.install_import_hook(_CHECKED, "tests.typecheck.checked")
with warnings.catch_warnings():
    # flax's nnx.List is a typing.MutableSequence, which beartype calls deprecated.
    warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
    import vit_jax.models.registry
    import vit_jax.weights.load  # noqa: F401

_MOST_MEMORY, _GROWTH = 3 * 2**29, 2**28  # bytes
_limit = _MOST_MEMORY
# Where shape annotations are checked: each check takes a fifth of a model's time to trace.
_SHAPES = {"layers", "models", "data"}
# Where no promotion may be left to JAX. The training tests are out: optax itself relies on it.
_STRICT = {"layers", "models", "parity", "reference", "weights"}


def _promote_types(a: Any, b: Any, of: Callable = jnp.promote_types) -> Any:
    """`jnp.promote_types` is a promotion by name, as explicit as can be; strict mode refuses it."""
    with jax.numpy_dtype_promotion("standard"):
        return of(a, b)


@pytest.fixture(autouse=True)
def explicit_numerics(request: pytest.FixtureRequest) -> Iterator[None]:
    """Full matmul precision; in the model tests also no implicit dtype or rank promotion."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        if _STRICT & set(request.path.parts):
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(mock.patch.object(jnp, "promote_types", _promote_types))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


@pytest.fixture(autouse=True)
def shapes_checked(request: pytest.FixtureRequest) -> None:
    jaxtyping.config.update("jaxtyping_disable", not _SHAPES & set(request.path.parts))


@pytest.fixture(autouse=True)
def compiled_as_for_users(request: pytest.FixtureRequest) -> Iterator[None]:
    """What tests marked "optimised" ask for; all others compile quickly."""
    if request.node.get_closest_marker("optimised") is None:
        yield
    else:
        with compilation.as_for_users():
            yield


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Compiled programs are dropped where they have grown large: the disk cache has them."""
    global _limit
    yield
    if _resident() > _limit:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError):  # of glibc
            ctypes.CDLL(None).malloc_trim(0)
        _limit = max(_MOST_MEMORY, _resident() + _GROWTH)  # what is freed may stay resident


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.fixture
def promoting() -> Iterator[None]:
    """For half precision: Flax's own LayerNorm leaves it to JAX to widen its input to float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for this test alone, so that both precisions live in one process."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _settings_of_commands() -> Iterator[None]:
    """What a command sets for its process, and tests that run one in theirs would leave behind."""
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        if getattr(jax.config, name) != value:
            jax.config.update(name, value)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that starts the workers
        compilation.empty_a_large_cache()


def pytest_collection_finish() -> None:
    """The garbage collector leaves out what was imported, and walks the rest less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the worst parity figure per fixture and stage, so that it can be quoted."""
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for report in terminalreporter.getreports("passed"):
        for name, figure in report.user_properties:
            if isinstance(name, str) and name.startswith("parity:"):
                _, subject, stage = name.split(":", 2)
                rows[subject][stage] = max(figure, rows[subject].get(stage, 0.0))
    if rows:
        terminalreporter.section("worst error: float64 relative to rms, float32 in noise floors")
        for subject, stages in sorted(rows.items()):
            figures = "  ".join(f"{stage} {figure:.1e}" for stage, figure in stages.items())
            terminalreporter.write_line(f"{subject:<52} {figures}")
