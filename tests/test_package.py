"""The package as a whole: which way imports point, and what importing it does.

`python -m tests.test_package` prints the graph of imports, lazy ones included, floor by floor.
"""

import ast
import os
from pathlib import Path

import pytest

from tests.breaks.table import BREAKS
from tests.commands import run_alone

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vit_jax"

# The floors of the house, from the ground up. A part imports itself and parts of lower floors.
FLOORS = (
    {"storage", "allocator", "watching"},
    {"layers", "data", "config", "plots"},
    {"models"},
    {"weights"},
    {"training", "inspect"},
    {"inference", "parity", "plan"},
    {"__init__", "cli"},
)
# What the floors would allow and the design does not: pictures are joined to commands alone.
FOR_COMMANDS = {"plots", "allocator"}


def allowed(part: str) -> set[str]:
    number = next(number for number, floor in enumerate(FLOORS) if part in floor)
    below = set[str]().union(*FLOORS[:number])
    return {part} | (below if part == "cli" else below - FOR_COMMANDS)


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


def wrong_imports(files: dict[str, str]) -> list[str]:
    """Of files, source by path in the package, those that import what is not below them."""
    wrong = []
    for file, source in sorted(files.items()):
        part = Path(file).parts[0].removesuffix(".py")
        if not any(part in floor for floor in FLOORS):
            wrong.append(f"{file}: {part} has no floor")
            continue
        parts = imported_parts(source) - allowed(part)
        if part == "cli":
            parts -= {""}
        if parts:
            wrong.append(f"{file}: {part} must not import {sorted(parts)}")
    return wrong


def sources() -> dict[str, str]:
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}


def print_graph() -> None:
    files = sources()
    for floor in reversed(FLOORS):
        for part in sorted(floor):
            own = [source for file, source in files.items() if Path(file).parts[0] == part]
            own += [files[f"{part}.py"]] if f"{part}.py" in files else []
            below = set[str]().union(*map(imported_parts, own)) - {part, ""}
            print(f"{part:10} imports {', '.join(sorted(below)) or 'nothing'}")
        print()


def test_imports_point_one_way() -> None:
    assert not wrong_imports(sources())


def test_a_lazy_import_against_the_floors_is_found() -> None:
    for file, imported in (
        ("weights/late.py", "training.loop"),
        ("inspect/late.py", "parity.values"),
        ("training/late.py", "plots.curves"),
        ("plots/late.py", "models.base"),
        ("data/late.py", "config"),
    ):
        source = f"def late():\n    from vit_jax.{imported} import anything\n"
        assert wrong_imports({file: source}), file


def test_the_import_test_sees_every_form() -> None:
    source = """
import vit_jax.models.vit as vit
from vit_jax import training, create_model
def late():
    from vit_jax.data.loader import Loader
"""
    assert imported_parts(source) == {"models", "training", "", "data"}


def test_each_break_of_the_table_stands_where_it_is_to_be_planted() -> None:
    for entry in BREAKS:
        assert (ROOT / entry.file).read_text().count(entry.old) == 1, entry.name


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
    assert run_alone("-c", code).stdout == "[]\n"


def test_import_is_fast() -> None:
    """At most half as much again as JAX and Flax alone: of processor time, since tests share cores.

    With all that the public names stand for, which are imported when first used.
    """
    code = (
        "import time, jax, flax.nnx; print(time.process_time());"
        "from vit_jax import *; print(time.process_time())"
    )
    times = (
        map(float, run_alone("-c", code).stdout.split()) for _ in range(5)
    )  # a machine in use delays this or that
    assert any(ours < 1.5 * alone for alone, ours in times)


@pytest.mark.xdist_group("a group")
def test_groups_are_kept_together(request: pytest.FixtureRequest) -> None:
    """Or each worker would make anew what the tests of a group share: minutes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@a group")


if __name__ == "__main__":
    print_graph()
