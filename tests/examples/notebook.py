"""Runs a notebook without Jupyter. `python -m tests.examples.notebook` also renews its output.

Its cells share one namespace. Of each are kept what it prints, the pictures that pyplot holds, and
the value of its last expression.
"""

import ast
import base64
import contextlib
import io
import json
import os
import pathlib
import pprint
import sys
import tempfile
from typing import Any

NOTEBOOK = pathlib.Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"


def run_cells(notebook: dict[str, Any]) -> None:
    """Runs the code of a notebook in the current directory and puts the outputs into it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            cell["execution_count"] = number
            cell["outputs"] = _run("".join(cell["source"]), number, namespace)


def _run(code: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    value, printed = None, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    for png in _pictures():
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": data})
    if value is not None:
        shown = {
            "data": {"text/plain": _lines(pprint.pformat(value, sort_dicts=False))},
            "execution_count": number,
        }
        outputs.append({"output_type": "execute_result", "metadata": {}} | shown)
    return outputs


def _pictures() -> list[bytes]:
    """What Jupyter would show of the figures of a cell; they are closed."""
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=80)
        found.append(file.getvalue())
    plt.close("all")
    return found


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Renews the outputs of the notebook."""
    notebook = json.loads(NOTEBOOK.read_text())
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        run_cells(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    seconds = sum(os.times()[:4])
    print(f"{len(notebook['cells'])} cells, {seconds:.1f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"
    main()
