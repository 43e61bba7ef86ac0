"""The layouts in which one side may have a value of the other's."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vit_jax.layers.unfold import SoftSplit
from vit_jax.parity.values import Expected

# From the axes of a map here, (B, H, W, C), to PyTorch's.
_MAP = (0, 3, 1, 2)


def in_shape(array: np.ndarray, shape: tuple[int, ...], module: Any = None) -> Iterator[np.ndarray]:
    """The array in each layout in which PyTorch may have it, that is of this shape.

    Images and convolutions have their channels last here and first there; `nn.Unfold` gives
    features before patches; a module may run with the sequence before the batch. Where axes are
    of one size there are several.
    """
    orders: list[tuple[int, ...]] = []
    if array.ndim == 4:
        orders = [(0, 1, 2, 3), _MAP]
    elif array.ndim == 3:
        orders = [(0, 2, 1)] if isinstance(module, SoftSplit) else [(0, 1, 2), (0, 2, 1), (1, 0, 2)]
    elif array.shape == shape:
        yield array
    for order in orders:
        turned = array.transpose(order)
        if turned.shape == shape:
            yield turned


def layout_of_output(array: np.ndarray, expected: Expected) -> tuple[int, ...] | None:
    """The order of axes that the model's own output has to be put in; None: another shape.

    It has PyTorch's axes, and alone of rank 4 it may be a map with its channels last.
    """
    orders = [tuple(range(array.ndim)), *([_MAP] if array.ndim == 4 else [])]
    fitting = [o for o in orders if array.transpose(o).shape == tuple(expected.shape)]
    return min(fitting, key=lambda o: expected.error(array.transpose(o)), default=None)


def other_layouts(
    shape: tuple[int, ...], wanted: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[jax.Array], jax.Array]]]:
    """What brings an output to another shape, in words and as a function."""
    if len(shape) <= 5:
        for order in itertools.permutations(range(len(shape))):
            if tuple(shape[axis] for axis in order) == wanted:
                text = f"the reference's with its axes in another order: {shape}, not {wanted}"
                yield text, lambda array, order=order: array.transpose(order)
    if np.prod(shape) == np.prod(wanted):
        yield (
            f"the reference's reshaped: {shape}, not {wanted}",
            lambda array: array.reshape(wanted),
        )


def error_of(array: np.ndarray, expected: Expected, module: Any = None) -> float | None:
    """The difference from a value in the layout that is nearest; None where none is of its shape.

    A fault that is nothing but one layout for another shows in the values after it.
    """
    errors = [expected.error(turned) for turned in in_shape(array, expected.shape, module)]
    return min(errors, default=None)


def without_unit_axes(array: Any, shape: tuple[int, ...]) -> Any:
    """The array in a shape that differs from its own in axes of length one alone; else as it is.

    A port for single examples has a class token of (D,) or (1, D) for PyTorch's (1, 1, D).
    """
    long = [size for size in array.shape if size != 1]
    return array.reshape(shape) if long == [size for size in shape if size != 1] else array
