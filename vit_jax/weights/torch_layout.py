"""How an array of a module is laid out in PyTorch: by its name, and by the kind of the module."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
}
# Of running statistics alone: a parameter of these names stays what it is.
STATISTICS = {"mean": "running_mean", "var": "running_var"}
# The parts of an attention with kernels (dim, heads, head_dim), and what PyTorch joins them to.
JOINED = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array whose layouts are one.

    Attributes:
      shape: of the model's array.
    """

    shape: tuple[int, ...]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.shape

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_own(self, array: np.ndarray) -> np.ndarray:
        return array


class _Reshaped(Layout):
    """A bias (heads, head_dim), or the one slope of a PReLU: one axis in PyTorch."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return (int(np.prod(self.shape)),)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.torch_shape)

    def to_own(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.shape)


class _Kernel(Layout):
    """(*spatial, in, out) here, (out, in, *spatial) in PyTorch."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return (self.shape[-1], self.shape[-2], *self.shape[:-2])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, (-1, -2), (0, 1))

    def to_own(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, (0, 1), (-1, -2))


class _Flipped(Layout):
    """A transposed convolution: (*spatial, in, out), and (in, out, *spatial) flipped in space."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return (self.shape[-2], self.shape[-1], *self.shape[:-2])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        flipped = np.flip(array, tuple(range(array.ndim - 2)))
        return np.moveaxis(flipped, (-2, -1), (0, 1))

    def to_own(self, array: np.ndarray) -> np.ndarray:
        return np.flip(np.moveaxis(array, (0, 1), (-2, -1)), tuple(range(array.ndim - 2)))


@dataclasses.dataclass(frozen=True)
class _Merged(Layout):
    """(*in, *out), as a Linear (out, in); `inputs` is the number of axes in."""

    inputs: int

    @property
    def torch_shape(self) -> tuple[int, ...]:
        into, out = self.shape[: self.inputs], self.shape[self.inputs :]
        return (int(np.prod(out)), int(np.prod(into)))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.torch_shape[::-1]).T

    def to_own(self, array: np.ndarray) -> np.ndarray:
        return array.T.reshape(self.shape)


def layout_of(module: Any, leaf: str, shape: Sequence[int]) -> Layout:
    """The layout of an array of a module in PyTorch.

    Args:
      module: an NNX module; `torch_kind`, where it has one, names the NNX module that it is like.
      leaf: the name of the array in it.
      shape: of the array.
    """
    shape = tuple(shape)
    kind = getattr(module, "torch_kind", None)
    if kind == "same":
        return Layout(shape)
    if isinstance(module, nnx.LinearGeneral) or kind == "LinearGeneral":
        if leaf == "bias":
            return _Reshaped(shape)
        into = getattr(module, "in_features", None)
        inputs = len(into) if isinstance(into, tuple | list) else getattr(module, "axes_in", 1)
        if leaf == "kernel" and not getattr(module, "batch_axis", None):
            return _Merged(shape, inputs)
    if leaf == "negative_slope":
        return _Reshaped(shape)
    if leaf != "kernel" or len(shape) < 2:
        return Layout(shape)
    turns = isinstance(module, nnx.ConvTranspose) or kind == "ConvTranspose"
    if turns and not getattr(module, "transpose_kernel", False):
        return _Flipped(shape)
    return _Kernel(shape)  # of a ConvTranspose with transpose_kernel: (*spatial, out, in)


def is_attention(module: Any) -> bool:
    """Whether its query, key, value and out have kernels with an axis of heads."""
    kind = getattr(module, "torch_kind", None)
    return isinstance(module, nnx.MultiHeadAttention) or kind == "MultiHeadAttention"


def is_computed(array: np.ndarray) -> bool:
    """Whether PyTorch computes what stands in a state dict: no weight, whatever its name.

    Whole numbers and booleans are indices, masks and counters; so is a lower triangle of ones.
    """
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.integer):
        return True
    size = array.shape[-1] if array.ndim >= 2 else 0
    if size < 2 or array.shape[-2] != size or array.size != size * size:
        return False
    return bool(np.array_equal(array.reshape(size, size), np.tri(size)))
