"""A config written as a recipe is read as the same config."""

import pytest

from vit_jax.config import find_recipe, load_recipe, recipe_names
from vit_jax.config.recipe_file import recipe_file


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_that_comes_along_is_written_and_read_back(name, tmp_path):
    config = load_recipe(find_recipe(name))
    path = tmp_path / "recipe.py"
    path.write_text(recipe_file(config, "It."))
    assert load_recipe(path) == config


def test_names_of_any_letters(config, tmp_path):
    odd = ("a'b.jpg", 'a"b.jpg', "a\"'\\.jpg", "\u20ac \U0001f600\n", "\udcff", "\\")
    config.data.exclude = odd
    config.data.data_dir = odd[2]
    path = tmp_path / "recipe.py"
    path.write_text(recipe_file(config, 'about """it""" \\ and "'), encoding="utf-8")
    assert load_recipe(path) == config


def test_it_is_written_as_it_would_be_formatted(config):
    text = recipe_file(config, "It.")
    assert text.splitlines()[0] == '"""It.'
    assert "seed" not in text  # a default
    assert '        data=DataConfig(\n            source="digits",\n' in text
    assert "        optimizer=OptimizerConfig(learning_rate=0.001),\n" in text
