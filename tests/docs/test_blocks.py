"""What README and docs show to be run runs, page by page, in what looks like a clone."""

import os
import pathlib
import subprocess
import traceback

import pytest

from tests.docs.blocks import PYTHON, SHELL, read_blocks
from tests.docs.run_page import run_page, write_programs
from tests.tiers import mostly_slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
_DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *_DOCS]
# What they show, the others show too, or it is tests/cli, inference and plots that run it small.
SLOW = {
    f"docs/{name}.md"
    for name in (
        *(
            "checkpoints",
            "concepts",
            "export",
            "features",
            "finetune",
            "models",
            "objectives",
            "own",
            "pictures",
        ),
        *("parity", "parity_linen", "parity_equinox", "parity_batchnorm"),
    )
}


@pytest.fixture
def clone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory: a clone, as it looks, with its virtual environment."""
    directory = tmp_path / "clone"
    directory.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".venv", ".git"):
            (directory / path.name).symlink_to(path)
    programs = directory / ".venv" / "bin"
    write_programs(programs)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    return directory


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("page", mostly_slow(PAGES, fast=set(PAGES) - SLOW))
def test_blocks_run(page: str) -> None:
    run_page(ROOT / page)


def test_blocks_that_are_not_run_can_be_parsed() -> None:
    for block in (block for page in PAGES for block in read_blocks(ROOT / page)):
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
    ("text", "said"),
    [
        (HELPER + GIVEN + GOOD, ""),
        (HELPER + GOOD, 'page.md", line 10, in <module>\n    assert undefined_before == 2'),
        (HELPER.replace("return 3", "return 4") + GIVEN + GOOD, "in test_three"),
        ("```bash\n.venv/bin/python -c 'import vit_jax'; ls train.py\n```\n", ""),
        ("```bash\nfor n in x; do .venv/bin/vit-jax models $n; done\n```\n", "page.md:2: status 2"),
        ("```bash\npython train.py --help >a; grep eps a; cd docs; ! python train.py\n```\n", ""),
        ("```bash\nfalse\ntrue\n```\n", "page.md:2: status 1"),
        ("<!-- run as: true -->\n```bash\nfalse\n```\n", ""),
        ("<!-- run as:\nfalse\n-->\n```bash\ntrue\n```\n", "page.md:5: status 1"),
        ("<!-- not run: it\nis wrong -->\n\n```bash\nfalse\n```\n", ""),
        ("<!-- not run: -->\n```bash\nfalse\n```\n", "'not run' says nothing"),
        ("<!-- not run: no block -->\ntext\n", "no block behind the marker 'not run'"),
        ("<!-- given: x = 1 -->\n```bash\ntrue\n```\n", "no marker 'given' for a bash block"),
        ("```\ntrue\n```\n", "a block of the language ''"),
        ("- a list\n\n  ```bash\n  cat <<X\n  X\n  false\n  ```\n", "page.md:4: status 1"),
    ],
)
def test_a_broken_block_fails(text: str, said: str, clone: pathlib.Path) -> None:
    page = clone / "page.md"
    page.write_text(text)
    try:
        run_page(page)
        error = ""
    except Exception:
        error = traceback.format_exc()
    assert bool(error) == bool(said), error
    assert said in error
