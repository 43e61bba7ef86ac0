"""What README and docs show to be run runs, page by page, each in a fresh process."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import PYTHON, SHELL, read_blocks

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
BIN = pathlib.Path(sys.prefix) / "bin"
RUN = [sys.executable, "-m", "tests.docs.run_page"]


def _run_page(page: pathlib.Path, directory: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """In a directory that looks like a clone with its virtual environment, and is not it."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".venv", ".git"):
            (directory / path.name).symlink_to(path)
    (directory / ".venv").symlink_to(sys.prefix)
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [*RUN, str(page)],
        cwd=directory,
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=1000,
    )


@pytest.mark.timeout(1100)
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_run(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = _run_page(page, tmp_path)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_that_are_not_run_can_be_parsed(page: pathlib.Path) -> None:
    for block in read_blocks(page):
        if block.language in PYTHON:
            compile(block.code, block.place, "exec")
        elif block.language in SHELL:
            parsed = subprocess.run(
                ["bash", "-n", "-c", block.code], capture_output=True, text=True
            )
            assert parsed.returncode == 0, f"{block.place}: {parsed.stderr}"


GOOD = """
```python
from helper import three
assert undefined_before == 2


def test_three():
    assert three() == 3
```
"""
HELPER = "\n<!-- file: helper.py -->\n```python\ndef three():\n    return 3\n```\n"
GIVEN = "<!-- given: undefined_before = 2 -->"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (HELPER + GIVEN + GOOD, 0, ""),
        (HELPER + GOOD, 1, 'page.md", line 10, in <module>\n    assert undefined_before == 2'),
        (HELPER.replace("return 3", "return 4") + GIVEN + GOOD, 1, "in test_three"),
        ("```bash\n.venv/bin/python -c 'import vit_jax'; ls train.py\n```\n", 0, ""),
        ("```bash\nfalse\ntrue\n```\n", 1, "page.md:2: status 1"),
        ("<!-- run as: true -->\n```bash\nfalse\n```\n", 0, ""),
        ("<!-- run as:\nfalse\n-->\n```bash\ntrue\n```\n", 1, "page.md:5: status 1"),
        ("<!-- not run: it\nis wrong -->\n\n```bash\nfalse\n```\n", 0, ""),
        ("<!-- not run: -->\n```bash\nfalse\n```\n", 1, "'not run' says nothing"),
        ("<!-- not run: no block -->\ntext\n", 1, "no block behind the marker 'not run'"),
        ("<!-- given: x = 1 -->\n```bash\ntrue\n```\n", 1, "no marker 'given' for a bash block"),
        ("```\ntrue\n```\n", 1, "a block of the language ''"),
        ("- a list\n\n  ```bash\n  cat <<X\n  X\n  false\n  ```\n", 1, "page.md:4: status 1"),
    ],
)
def test_a_broken_block_fails(text: str, status: int, said: str, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    (tmp_path / "clone").mkdir()
    done = _run_page(page, tmp_path / "clone")
    assert done.returncode == status, done.stderr
    assert re.search(re.escape(said), done.stderr), done.stderr
