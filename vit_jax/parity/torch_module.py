"""The user's own modules and inputs, named on a command line as MODULE:CALLABLE."""

import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_jax.parity.torch_run import import_torch

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parents[1]


def make_module(spec: str, seed: int = 0) -> "torch.nn.Module":
    """Imports MODULE and calls CALLABLE, which runs the user's own code.

    Args:
      spec: "MODULE:CALLABLE"; MODULE is found in the current directory and among what is installed.
      seed: PyTorch's, set before the call: a module that draws its weights draws the same again.

    Raises:
      ValueError: PyTorch is not installed; no such module or attribute; the user's code raises; or
        what it gives is no torch.nn.Module.
    """
    _split(spec)
    torch = import_torch()
    torch.manual_seed(seed)
    return make_object(spec, torch.nn.Module, "a torch.nn.Module")


def _split(spec: str) -> tuple[str, str]:
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise ValueError(f"wanted MODULE:CALLABLE, such as my_models.vit:make, got {spec!r}")
    return name, attribute


def make_object(spec: str, kinds: Any, wanted: str) -> Any:
    """Imports MODULE and calls CALLABLE, which runs the user's own code.

    Args:
      spec: "MODULE:CALLABLE"; MODULE is found in the current directory and among what is installed.
      kinds: classes; an instance of one is to come back.
      wanted: these in words.

    Raises:
      ValueError: no such module or attribute; the user's code raises, or returns something else.
    """
    name, attribute = _split(spec)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise ValueError(
                f"{spec!r}: no module {missing!r} in {os.getcwd()} or among what is installed"
            ) from error
        raise _told(f"importing {name!r}", error) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=3, cutoff=0.5)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise ValueError(f"{spec!r}: {name!r} has no {attribute!r}{hint}")
    make = getattr(module, attribute)
    if isinstance(make, kinds) or not callable(make):
        raise ValueError(
            f"{spec!r}: wanted something to call without arguments that returns {wanted}, "
            f"got a {type(make).__name__}"
        )
    try:
        made: Any = make()
    except (Exception, SystemExit) as error:
        raise _told(f"calling {spec!r}", error) from error
    if not isinstance(made, kinds):
        raise ValueError(f"{spec!r}: wanted it to return {wanted}, got a {type(made).__name__}")
    return made


@contextlib.contextmanager
def blaming_the_port(spec: str) -> Iterator[None]:
    """Errors that come up while the user's own JAX model runs are told as such; others pass.

    Raises:
      ValueError: an error of the model's.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if isinstance(error, ValueError) and _PACKAGE in last.parents:
            raise
        raise _told(f"running {spec!r}", error) from error


@contextlib.contextmanager
def blaming_the_module(spec: str) -> Iterator[None]:
    """Errors that come up while the user's module runs are told as such; others pass.

    Raises:
      ValueError: an error of the module's.
    """
    running = Path(import_torch().nn.modules.module.__file__)
    try:
        yield
    except (Exception, SystemExit) as error:
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        if running not in files or _PACKAGE in files[-1].resolve().parents:
            raise
        raise _told(f"running {spec!r}", error) from error


def _told(what: str, error: BaseException) -> ValueError:
    """One line for an error in the user's own code, and where it was raised."""
    libraries = filter(None, map(sys.modules.get, ("torch", "jax", "flax")))
    files = [str(module.__file__) for module in (importlib, *libraries)]
    others = (_PACKAGE, *(Path(file).parent for file in files))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file()
        and not set(others) & set(Path(frame.filename).resolve().parents)
    ]
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    text = next(iter(str(error).splitlines()), "")
    return ValueError(f"{what} raised {type(error).__name__}: {text}{at}")
