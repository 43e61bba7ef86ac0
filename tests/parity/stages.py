"""Outputs of a model's named stages, without a change to the model."""

import collections
import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import jax
from flax import nnx

# Seed 000 is a script, whose stages are its variables (the patches in both of its forms, the tokens
# before the encoder); seed 001 spells an attribute in its own way.
_ATTRIBUTES = {
    "naive": "patch_embed",
    "conv": "patch_embed",
    "tokens": "token_embedding",
    "pacth_emb": "patch_emb",
}


def find(model: nnx.Module, path: str) -> Any:
    """The module at PyTorch's dotted path, such as `blocks.0`."""
    return functools.reduce(
        lambda node, part: node[int(part)] if part.isdigit() else getattr(node, part),
        _ATTRIBUTES.get(path, path).split("."),
        model,
    )


@contextlib.contextmanager
def recorded(model: nnx.Module, paths: Iterable[str]) -> Iterator[dict[str, jax.Array]]:
    """Fills the yielded dict with the output of each stage called inside the block.

    `blocks.0` is the first call of that module, `blocks.0#1` its second, and so on.
    """
    stages: dict[tuple[int, int], list[str]] = {}  # by module and call
    kinds: set[type] = set()
    for stage in paths:
        path, _, call = stage.partition("#")
        module = find(model, path)
        stages.setdefault((id(module), int(call or 0)), []).append(stage)
        kinds.add(type(module))
    calls: collections.Counter[int] = collections.Counter()
    outputs: dict[str, jax.Array] = {}

    def recording(call):
        @functools.wraps(call)
        def wrapper(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            outputs.update(dict.fromkeys(stages.get((id(self), calls[id(self)]), ()), output))
            calls[id(self)] += 1
            return output

        return wrapper

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            patch = mock.patch.object(kind, "__call__", recording(kind.__call__))
            stack.enter_context(patch)
        yield outputs
