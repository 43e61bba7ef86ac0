"""The package as a whole: which way imports point, and what importing it does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vit_jax"

# Each part may import itself and these: layers <- models <- the middle <- cli and train.py.
_MIDDLE = {"training", "interop", "parity", "plots", "inference"}
_BELOW_MIDDLE = {"layers", "models", "data", "config", "storage"}
ALLOWED = {
    "layers": set(),
    "models": {"layers"},
    "data": set(),
    "config": set(),
    "storage": set(),
    "allocator": set(),
    **dict.fromkeys(_MIDDLE, _MIDDLE | _BELOW_MIDDLE),
    "plan": _MIDDLE | _BELOW_MIDDLE,
    "cli": _MIDDLE | _BELOW_MIDDLE | {"plan", "allocator"},
    "__init__": {"models", "interop", "parity"},
}


def imported_parts(source: str) -> set[str]:
    """Parts of vit_jax that a file imports, at its top or anywhere inside; `""` for vit_jax."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "vit_jax":
                part = rest.partition(".")[0]
                exists = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()
                parts.add(part if part and exists else "")
    return parts


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        part = file.parts[0].removesuffix(".py")
        if part not in ALLOWED:
            wrong.append(f"{file}: {part} has no place in the layers: say what it may import")
            continue
        parts = imported_parts(path.read_text()) - ALLOWED[part] - {part}
        if part == "cli":
            parts -= {""}
        if parts:
            wrong.append(f"{file}: {part} must not import {sorted(parts)}")
    assert not wrong, "\n".join(wrong)


def test_the_import_test_sees_every_form() -> None:
    source = """
import vit_jax.models.vit as vit
from vit_jax import training, create_model
def late():
    from vit_jax.data.loader import Loader
"""
    assert imported_parts(source) == {"models", "training", "", "data"}


def run(code: str) -> str:
    """Output of a fresh interpreter, which sees nothing of this one's configuration."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_has_no_heavy_dependencies_and_no_side_effects() -> None:
    """Nothing big is imported, nothing printed, no setting changed, no device touched."""
    code = """
import os, sys, threading
import jax
before, environment = dict(jax.config.values), dict(os.environ)
from vit_jax import *
from jax._src import xla_bridge
assert dict(jax.config.values) == before, "a jax setting changed"
assert dict(os.environ) == environment, "an environment variable changed"
assert not xla_bridge.backends_are_initialized(), "a device was touched"
assert threading.active_count() == 1, "a thread was started"
heavy = {"tensorflow", "torch", "matplotlib", "sklearn", "torchvision", "timm", "cv2", "grain"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(code) == "[]\n"


def test_import_is_fast() -> None:
    """At most half as much again as JAX and Flax alone: of processor time, since tests share cores.

    With all that the public names stand for, which are imported when first used.
    """
    code = (
        "import time, jax, flax.nnx; print(time.process_time());"
        "from vit_jax import *; print(time.process_time())"
    )
    times = (
        map(float, run(code).split()) for _ in range(3)
    )  # a machine in use delays this or that
    assert any(ours < 1.5 * alone for alone, ours in times)


@pytest.mark.xdist_group("a group")
def test_groups_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Or each worker would make anew what the tests of a group share: minutes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@a group")
