"""The text that pages of the site take from other files."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import types

import pytest

from vit_jax.config import TrainConfig, recipe_names
from vit_jax.config.validate import fields_of
from vit_jax.models.registry import DESIGNS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_without_its_title_and_with_links_of_docs(hooks, tmp_path, monkeypatch):
    (tmp_path / "NEWS.md").write_text("# News\nhead\n\n## One\n[a](docs/a.md) [b](b.md)\n")
    monkeypatch.setattr(hooks, "_ROOT", tmp_path)
    page = "# x\n<!-- from NEWS.md -->\ny\n"
    assert hooks.on_page_markdown(page) == "# x\nhead\n\n## One\n[a](a.md) [b](b.md)\n\ny\n"
    assert hooks.on_page_markdown("<!-- not run: x -->") == "<!-- not run: x -->"


def test_every_recipe_and_example_has_a_section(hooks):
    recipes = hooks.on_page_markdown((ROOT / "docs" / "recipes.md").read_text())
    examples = hooks.on_page_markdown((ROOT / "docs" / "examples.md").read_text())
    assert all(f"## {name}\n" in recipes for name in recipe_names())
    assert all(f"## {p.stem}\n" in examples for p in (ROOT / "examples").glob("*.py"))
    assert "def get_config() -> TrainConfig:" in recipes


def test_every_field_of_a_config_stands_in_a_table(hooks):
    page = hooks.on_page_markdown((ROOT / "docs" / "api" / "training.md").read_text())
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.*?) \| (.+) \|$", page, re.M)
    assert {row[0] for row in rows} == {info.path for info in fields_of(TrainConfig)}
    assert ("optimizer.momentum", "a number >= 0 and &lt; 1", "`0.9`") in [row[:3] for row in rows]
    page = (ROOT / "docs" / "api" / "models.md").read_text()
    shown = hooks.on_page_markdown(page)
    assert "| `mlp_ratio` | float | `4.0` | hidden width of the MLP over `embed_dim`" in shown
    assert "None, also where it is given as 0" in shown
    for design in DESIGNS:
        for parent in design.config_class.__mro__:
            if dataclasses.is_dataclass(parent):
                assert f"<!-- fields {parent.__module__}.{parent.__name__} -->" in page


def test_a_notebook_is_its_cells_and_their_output(hooks, tmp_path, monkeypatch):
    png = "iVBORw0KGgo="
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "[a](../docs/a.md)"]},
        {
            "cell_type": "code",
            "source": ["x = 1\n", "x"],
            "outputs": [
                {"output_type": "stream", "text": ["said\n"]},
                {"output_type": "display_data", "data": {"image/png": png, "text/plain": ["F"]}},
                {"output_type": "execute_result", "data": {"text/plain": ["1"]}},
            ],
        },
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(hooks, "_ROOT", tmp_path)
    assert hooks.on_page_markdown("<!-- notebook a.ipynb -->") == (
        "[a](a.md)\n\n```python\nx = 1\nx\n```\n\n```text\nsaid\n```\n\n"
        f"![output](data:image/png;base64,{png})\n\n```text\n1\n```"
    )


def test_each_yes_of_the_comparison_names_a_page():
    lines = (ROOT / "docs" / "compared.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ")]
    assert len(rows) > 40
    assert all(len(row) == 4 for row in rows)
    unnamed = [row[0] for row in rows if "yes" in row[1] and "](" not in row[1]]
    assert not unnamed
