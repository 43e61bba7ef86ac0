"""The notebook runs without Jupyter, and shows the output that it has now."""

import json
import pathlib
from typing import Any

import pytest

from tests.commands import unchanged_process
from tests.examples.notebook import NOTEBOOK, run_cells


def shown(notebook: dict[str, Any]) -> list[list[list[str]]]:
    """What kinds of output each cell has."""
    return [
        [sorted(output.get("data", {"text": ""})) for output in cell.get("outputs", [])]
        for cell in notebook["cells"]
    ]


def of_cell(notebook: dict[str, Any], start: str) -> str:
    (cell,) = (c for c in notebook["cells"] if "".join(c["source"]).startswith(start))
    return "".join(cell["outputs"][-1]["data"]["text/plain"])


@pytest.mark.slow  # it trains twice, as tests/training/test_own.py does
def test_notebook(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    stored = json.loads(NOTEBOOK.read_text())
    with unchanged_process():
        run_cells(notebook)
    assert shown(notebook) == shown(stored)
    model = "model = vit_jax.from_pretrained("
    assert of_cell(notebook, f'{model}"runs/notebook:best")') == of_cell(
        stored, f'{model}"runs/notebook:best")'
    )
    found = eval(of_cell(notebook, "train(finetuning"))
    assert found["validation_top1"] > 0.8
