"""Runs what can be run of one page, in the current directory: `python -m tests.docs.run_page PAGE`.

The Python blocks share one namespace, and functions of theirs that are named `test_...` are called.
"""

import os
import pathlib
import subprocess
import sys
from typing import Any

from tests.docs.blocks import PYTHON, SHELL, Block, read_blocks


def run_page(page: pathlib.Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in read_blocks(page):
        start = _processor_seconds()
        if block.marker == "file":
            pathlib.Path(block.said).write_text(block.code)
        elif block.marker == "not run":
            continue
        elif block.language in PYTHON:
            _run_python(block, namespace)
        elif block.language in SHELL:
            _run_shell(block)
        else:
            continue
        print(f"{block.place}: {_processor_seconds() - start:.1f} s of processor time", flush=True)


def _processor_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])


def _run_python(block: Block, namespace: dict[str, Any]) -> None:
    if block.marker == "given":
        exec(compile(block.said, f"{block.place} (given)", "exec"), namespace)
    before = dict(namespace)
    # Empty lines before it, so that a traceback names the line of the page.
    exec(compile("\n" * (block.line - 1) + block.code, str(block.page), "exec"), namespace)
    for name, value in list(namespace.items()):
        if name.startswith("test_") and value is not before.get(name):
            value()


def _run_shell(block: Block) -> None:
    code = block.said if block.marker == "run as" else block.code
    status = subprocess.run(["bash", "-euo", "pipefail", "-c", code]).returncode
    if status != 0:
        sys.exit(f"{block.place}: status {status} of\n{code}")


if __name__ == "__main__":
    run_page(pathlib.Path(sys.argv[1]))
