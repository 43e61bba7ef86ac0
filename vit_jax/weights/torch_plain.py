"""From what a pickle made to nested plain containers, within stated bounds."""

from typing import Any, NamedTuple

import numpy as np

from vit_jax.weights.torch_globals import Global
from vit_jax.weights.torch_numpy import NumpyArray, NumpyDType
from vit_jax.weights.torch_tensors import Storage, Tensor

MAX_DEPTH = 64
MAX_NODES = 4_000_000
MAX_COPIES = 4  # the tensors' bytes in relation to the file's
FREE_BYTES = 2**26

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_SETS = frozenset({set, frozenset})  # of scalars


class _Plain(NamedTuple):
    """A finished object: its value, and what it measures as a tree."""

    source: Any  # kept alive: finished objects are found by identity
    value: Any
    depth: int
    nodes: int
    nbytes: int


def to_plain(root: Any, file_bytes: int) -> Any:
    """The object with dicts, lists, tuples, sets, scalars and NumPy arrays in place of all else.

    Objects that the pickle shares stay shared, so a small file can describe a large tree, and a
    tensor with strides of 0 a large array. The bounds hold for the tree as one who walks it sees
    it: `MAX_DEPTH` levels, `MAX_NODES` objects, and arrays of `MAX_COPIES` times the file's bytes
    (and `FREE_BYTES` more).

    Raises:
      ValueError: a bound is passed, a container holds itself, or an array is not whole.
    """
    max_bytes = MAX_COPIES * file_bytes + FREE_BYTES
    done: dict[int, _Plain] = {}
    unfinished: set[int] = set()
    waiting = [root]
    while waiting:  # a walk without recursion: the depth is not known to be bounded yet
        node = waiting[-1]
        if id(node) in done:
            waiting.pop()
            continue
        items = _items(node)
        missing = [i for i in items if type(i) not in _SCALARS and id(i) not in done]
        if missing:
            if id(node) in unfinished:
                raise ValueError("the file describes a container that holds itself")
            unfinished.add(id(node))
            waiting += missing
            continue
        waiting.pop()
        done[id(node)] = _finish(node, items, done, max_bytes)
    return done[id(root)].value


def _items(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []


def _finish(node: Any, items: list[Any], done: dict[int, _Plain], max_bytes: int) -> _Plain:
    """The object's value from those of its items, and its measures, held to the bounds."""
    children = [done[id(item)] for item in items if type(item) not in _SCALARS]
    if isinstance(node, dict | list | tuple):
        values = [item if type(item) in _SCALARS else done[id(item)].value for item in items]
        if isinstance(node, dict):
            value: Any = dict(zip(node, values, strict=True))
        else:
            value = values if isinstance(node, list) else tuple(values)
    else:
        value = _leaf(node)
    depth = 1 + max((child.depth for child in children), default=0)
    nodes = 1 + len(items) - len(children) + sum(child.nodes for child in children)
    nodes += len(node) if type(node) in _SETS else 0
    nbytes = sum(child.nbytes for child in children)
    nbytes += value.nbytes if isinstance(value, np.ndarray) else 0
    if depth > MAX_DEPTH:
        raise ValueError(f"the file nests its containers more than {MAX_DEPTH} deep")
    if nodes > MAX_NODES:
        raise ValueError(f"the file describes more than {MAX_NODES:,} objects")
    if nbytes > max_bytes:
        raise ValueError(
            f"the file describes arrays of {nbytes:,} bytes or more, which is over {MAX_COPIES} "
            "times what it holds"
        )
    return _Plain(node, value, depth, nodes, nbytes)


def _leaf(node: Any) -> Any:
    if isinstance(node, Tensor | Storage):
        return node.array()
    if isinstance(node, Global):
        return node.name
    if isinstance(node, NumpyDType):
        return str(node.dtype())
    if isinstance(node, NumpyArray):
        if node.array is None:
            raise ValueError("the file describes a NumPy array without its data")
        return node.array
    return node
