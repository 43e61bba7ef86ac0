"""Recipes: Python files whose `get_config()` returns a `TrainConfig`."""

import ast
import contextlib
import inspect
import pathlib
import sys
import traceback
from collections.abc import Iterator
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


def recipe_name(path: str | pathlib.Path) -> str:
    """The name of a recipe's run: that of its file, and its argument after an underscore."""
    file, argument = _split(path)
    return file.stem if argument is None else f"{file.stem}_{argument.replace('/', '_')}"


def find_recipe(name: str) -> pathlib.Path:
    """The file of a recipe; with an argument for its `get_config` as `FILE:ARGUMENT`.

    Args:
      name: a path of a file, or `NAME`, `NAME.py` or `configs/NAME.py` of a recipe that comes
        with the package, each with `:ARGUMENT` or not; an existing file goes first. `NAME_ARGUMENT`
        is `NAME:ARGUMENT` where that recipe takes one.

    Raises:
      ValueError: no such recipe.
    """
    file, argument = _split(name)
    if file.is_file():
        return pathlib.Path(name)
    folders = (pathlib.Path("."), pathlib.Path("configs"))
    is_ours = file.parent in folders or file.parent.resolve() == recipes_dir().resolve()
    if is_ours and file.suffix in ("", ".py"):
        stems = [name for name in recipe_names() if f"{file.stem}_".startswith(f"{name}_")]
        for stem in sorted(stems, key=len, reverse=True):
            built_in = recipes_dir() / f"{stem}.py"
            rest = file.stem.removeprefix(stem).removeprefix("_")
            if rest and (argument is not None or not _takes_argument(built_in)):
                continue
            argument = rest or argument
            return built_in if argument is None else pathlib.Path(f"{built_in}:{argument}")
    names = recipe_names()
    raise ValueError(
        f"--config: no file {name!r} and no recipe of that name{proposal(file.stem, names)}; "
        f"recipes that come along: {', '.join(names)}"
    )


def load_recipe(path: str | pathlib.Path) -> TrainConfig:
    """Runs a recipe's file and returns what its `get_config()` gives.

    Args:
      path: of `find_recipe`. The file may import modules that lie in its folder.

    Raises:
      ValueError: the code of the recipe fails (the line is named), it has no `get_config`, that
        returns anything but a `TrainConfig`, or takes no argument where one is given.
    """
    file, argument = _split(path)
    namespace: dict[str, Any] = {"__name__": f"recipe_{file.stem}", "__file__": str(file)}
    try:
        with _importing_from(file.parent):
            # Not an import: nothing is left in sys.modules or in a __pycache__ of the folder.
            exec(compile(file.read_bytes(), str(file), "exec"), namespace)
            get_config = namespace.get("get_config")
            if not callable(get_config):
                raise ValueError("it has no function get_config()")
            arguments = () if argument is None else (argument,)
            try:
                inspect.signature(get_config).bind(*arguments)
            except TypeError:
                wants = "takes no argument" if arguments else "wants an argument (FILE:ARGUMENT)"
                given = repr(argument) if arguments else "none"
                raise ValueError(f"its get_config() {wants}, got {given}") from None
            config = get_config(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() and kinds of its own too
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(file)
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


def _split(path: str | pathlib.Path) -> tuple[pathlib.Path, str | None]:
    """A recipe's file and the argument after a colon; either may have colons of its own."""
    text = str(path)
    if pathlib.Path(text).is_file():
        return pathlib.Path(text), None
    ends = [end for end, letter in enumerate(text) if letter == ":"]
    for end in ends:
        if pathlib.Path(text[:end]).is_file():
            return pathlib.Path(text[:end]), text[end + 1 :]
    name, colon, argument = text.partition(":")
    return pathlib.Path(name), argument if colon else None


def _takes_argument(file: pathlib.Path) -> bool:
    """Whether `get_config` of a recipe of ours takes one; its code is not run."""
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "get_config" and bool(node.args.args)
        for node in ast.parse(file.read_bytes()).body
    )


@contextlib.contextmanager
def _importing_from(folder: pathlib.Path) -> Iterator[None]:
    """A folder's modules can be imported, and are forgotten afterwards."""
    before, writes = set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes
        # The folder's own, and nothing of a virtual environment in it or of this package.
        own = {path.stem for path in folder.glob("*") if path.suffix == ".py" or path.is_dir()}
        for name in set(sys.modules) - before:
            top = name.partition(".")[0]
            file = getattr(sys.modules.get(top), "__file__", None)
            is_here = bool(file) and pathlib.Path(file).resolve().is_relative_to(folder.resolve())
            if top in own - {"vit_jax"} and is_here:
                del sys.modules[name]
