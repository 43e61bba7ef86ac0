"""Calls that are seen from outside of the `jax.vmap`s around them: with the whole batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import batching

# Bound with batched arrays alone: its rule of batching takes the call one vmap further out.
_CALL = core.Primitive("vmapped_call")
_CALL.multiple_results = True


class _Call:
    """A function of arrays, and what is to run it once no vmap is around it."""

    def __init__(self, function: Callable[..., Any], outermost: Callable[..., Any]):
        self.function, self.outermost = function, outermost
        self.rest: Any = None  # of what it returned, all but the arrays

    def run(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        if any(type(array).__name__ == "BatchTracer" for array in arrays):
            return _CALL.bind(*arrays, call=self)
        output = self.outermost(self._keeping, arrays)
        # What the outermost run gives counts: its arrays may be others.
        return self._split(output)

    def _keeping(self, *arrays: jax.Array) -> Any:
        return self.join(self._split(self.function(*arrays)))

    def _split(self, output: Any) -> list[jax.Array]:
        leaves, tree = jax.tree.flatten(output)
        is_array = [isinstance(leaf, jax.Array) for leaf in leaves]
        rest = [None if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        self.rest = tree, is_array, rest
        return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]

    def join(self, arrays: Sequence[jax.Array]) -> Any:
        tree, is_array, rest = self.rest
        left = iter(arrays)
        leaves = [next(left) if array else r for array, r in zip(is_array, rest, strict=True)]
        return jax.tree.unflatten(tree, leaves)


def _further_out(axis: Any, arrays: Sequence[jax.Array], dims: Sequence[int | None], call: _Call):
    """The call without its inner-most vmap, which is put inside of it."""
    moved = [
        array if dim is None else jnp.moveaxis(array, dim, 0)
        for array, dim in zip(arrays, dims, strict=True)
    ]
    axes = tuple(None if dim is None else 0 for dim in dims)

    def batched(*arrays: jax.Array) -> Any:
        def one(*arrays: jax.Array) -> tuple[jax.Array, ...]:
            return tuple(call._split(call.function(*arrays)))

        size = {} if any(axis == 0 for axis in axes) else {"axis_size": axis.size}
        name = {} if not isinstance(axis.name, str) else {"axis_name": axis.name}
        found = jax.vmap(one, in_axes=axes, out_axes=0, **name, **size)(*arrays)
        return call.join(found)

    outputs = _Call(batched, call.outermost).run(moved)
    return outputs, [0] * len(outputs)


batching.fancy_primitive_batchers[_CALL] = _further_out


def from_outside(
    function: Callable[..., Any], outermost: Callable[..., Any], arrays: Sequence[jax.Array]
) -> Any:
    """What the function makes of the arrays, run by `outermost` outside of every vmap.

    Args:
      function: of arrays; it returns anything with arrays in it.
      outermost: (function, arrays) to what it returns, or something of its form. Where the call is
        made inside of vmaps, the arrays have their axes in front, the outer one first.
      arrays: what the function is called with.
    """
    call = _Call(function, outermost)
    return call.join(call.run(arrays))
