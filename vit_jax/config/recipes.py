"""Recipes: Python files whose `get_config()` returns a `TrainConfig`."""

import pathlib
import traceback
from typing import Any

from vit_jax.config.schema import TrainConfig
from vit_jax.config.validate import proposal


def recipes_dir() -> pathlib.Path:
    """The directory of the recipes that come with the package."""
    package = pathlib.Path(__file__).resolve().parents[1]
    # A wheel carries them inside the package; in the source tree they lie beside it.
    in_wheel = package / "configs"
    return in_wheel if in_wheel.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in recipes_dir().glob("*.py"))


def find_recipe(name: str) -> pathlib.Path:
    """The file of a recipe.

    Args:
      name: a path of a file, or `NAME`, `NAME.py` or `configs/NAME.py` of a recipe that comes
        with the package; an existing file goes first.

    Raises:
      ValueError: no such recipe.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    if path.parent in (pathlib.Path("."), pathlib.Path("configs")) and path.suffix in ("", ".py"):
        built_in = recipes_dir() / f"{path.stem}.py"
        if built_in.is_file():
            return built_in
    names = recipe_names()
    raise ValueError(
        f"--config: no file {name!r} and no recipe of that name{proposal(path.stem, names)}; "
        f"recipes that come along: {', '.join(names)}"
    )


def load_recipe(path: str | pathlib.Path) -> TrainConfig:
    """Run a recipe's file and return what its `get_config()` gives.

    Raises:
      ValueError: the code of the recipe fails (the line is named), it has no `get_config`, or
        that returns anything but a `TrainConfig`.
    """
    namespace: dict[str, Any] = {"__name__": f"recipe_{pathlib.Path(path).stem}", "__file__": path}
    try:
        # Not an import: nothing is left in sys.modules or in a __pycache__ beside the recipe.
        exec(compile(pathlib.Path(path).read_bytes(), str(path), "exec"), namespace)
        get_config = namespace.get("get_config")
        if not callable(get_config):
            raise ValueError("it has no function get_config()")
        config = get_config()
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f", line {lines[-1]}" if lines else ""
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"recipe {path}{where}: {what}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"recipe {path}: wanted a vit_jax.config.TrainConfig from get_config(), got "
            f"{type(config).__name__}"
        )
    return config
