"""Outputs of a model's named stages, without a change to the model."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import jax
from flax import nnx


def find(model: nnx.Module, path: str) -> Any:
    """The module at PyTorch's dotted path, such as `blocks.0`."""
    return functools.reduce(
        lambda node, part: node[int(part)] if part.isdigit() else getattr(node, part),
        path.split("."),
        model,
    )


@contextlib.contextmanager
def recorded(model: nnx.Module, paths: Iterable[str]) -> Iterator[dict[str, jax.Array]]:
    """Fills the yielded dict with the last output of each stage called inside the block."""
    path_of = {id(find(model, path)): path for path in paths}
    outputs: dict[str, jax.Array] = {}

    def recording(call):
        @functools.wraps(call)
        def wrapper(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            if id(self) in path_of:
                outputs[path_of[id(self)]] = output
            return output

        return wrapper

    with contextlib.ExitStack() as stack:
        for kind in {type(find(model, path)) for path in path_of.values()}:
            patch = mock.patch.object(kind, "__call__", recording(kind.__call__))
            stack.enter_context(patch)
        yield outputs
