"""The text that pages of the site take from other files."""

import importlib.util
import pathlib
import types

import pytest

from vit_jax.config import recipe_names

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
