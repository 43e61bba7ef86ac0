"""What the site's pages take from files beside them."""

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


def test_sections_and_their_links(hooks, tmp_path, monkeypatch):
    text = (
        "# Title\nhead\n\n## One\n![a](docs/images/a.png)\n### In it\n\n## Two\n[c](CHANGELOG.md)\n"
    )
    (tmp_path / "README.md").write_text(text)
    monkeypatch.setattr(hooks, "_ROOT", tmp_path)
    page = "x\n<!-- from README.md: One -->\ny\n<!-- from README.md: Two -->\n"
    assert hooks.on_page_markdown(page) == (
        "x\n![a](images/a.png)\n### In it\n\n\ny\n[c](changelog.md)\n\n"
    )
    assert hooks.on_page_markdown("<!-- from README.md -->") == "head\n\n"
    whole = hooks.on_page_markdown("<!-- from README.md: * -->")
    assert whole.startswith("head\n\n## One")
    with pytest.raises(ValueError, match="no section 'Three'; it has One, Two"):
        hooks.on_page_markdown("<!-- from README.md: Three -->")
    assert hooks.on_page_markdown("<!-- not run: x -->") == "<!-- not run: x -->"


def test_every_recipe_and_example_stands_on_its_page(hooks):
    recipes = hooks.on_page_markdown((ROOT / "docs" / "recipes.md").read_text())
    examples = hooks.on_page_markdown((ROOT / "docs" / "examples.md").read_text())
    assert all(f"## {name}\n" in recipes for name in recipe_names())
    assert all(f"## {p.stem}\n" in examples for p in (ROOT / "examples").glob("*.py"))
    assert "def get_config() -> TrainConfig:" in recipes
