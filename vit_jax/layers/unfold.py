"""im2col: an image as a matrix of patches."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_int, to_pair


def extract_patches(
    images: Float[Array, "batch height width channels"], patch_size: tuple[int, int]
) -> Float[Array, "batch patches features"]:
    """Non-overlapping patches, as `torch.nn.Unfold(patch_size, stride=patch_size)` transposed.

    Args:
      images: (B, H, W, C), H and W divisible by the patch's.
      patch_size: (height, width) in pixels.

    Returns:
      (B, N, C * height * width): patches row by row; the features of one in the order (C, height,
      width), which is PyTorch's.
    """
    batch, height, width, channels = images.shape
    patch_height, patch_width = patch_size
    rows, columns = height // patch_height, width // patch_width
    x = images.reshape(batch, rows, patch_height, columns, patch_width, channels)
    x = x.transpose(0, 1, 3, 5, 2, 4)  # (B, rows, columns, C, patch height, patch width)
    return x.reshape(batch, rows * columns, channels * patch_height * patch_width)


def cut_patches(images: Any, patch_size: tuple[int, int]) -> Any:
    """Images (B, H, W, C), of JAX or NumPy, to patches row by row: (B, N, height * width * C)."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    x = images.reshape(batch, rows, patch_size[0], columns, patch_size[1], channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, rows, columns, patch height, patch width, C)
    return x.reshape(batch, rows * columns, -1)


def window_filters(
    matrix: Float[Array, "features out_dim"], channels: int, window: tuple[int, int]
) -> Float[Array, "height width channels out_dim"]:
    """What multiplies the features of a window, (C * height * width, D), as (height, width, C, D).

    The result is the kernel of the same map as a convolution.
    """
    return matrix.reshape(channels, *window, -1).transpose(1, 2, 0, 3)


def window_grid(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> tuple[int, int]:
    """Returns how many windows stand below and beside each other on an image of (height, width).

    Raises:
      ValueError: the padded image is smaller than a window.
    """
    if any(n + 2 * p < k for n, k, p in zip(size, kernel_size, padding, strict=True)):
        raise ValueError(
            f"an image of {size[0]}x{size[1]} with a padding of {padding} is smaller than a window "
            f"of {kernel_size}"
        )
    rows, columns = (
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(size, kernel_size, stride, padding, strict=True)
    )
    return rows, columns


def unfold(
    images: Float[Array, "batch height width channels"],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Array, "batch patches features"]:
    """Overlapping patches, as `torch.nn.Unfold(kernel_size, stride=..., padding=...)` transposed.

    One strided slice for each row of the window, then one for each column. On a CPU, forward and
    backward, this was as fast as one slice for each element of the window, and the backward pass
    of `jax.lax.conv_general_dilated_patches` two to six times as slow (`benchmarks/unfold.py`).

    Args:
      images: (B, H, W, C); kernel_size, stride, padding: (height, width) in pixels. The padding is
        zero.

    Returns:
      (B, N, C * height * width): windows row by row; the features of one in the order (C, height,
      width), which is PyTorch's.

    Raises:
      ValueError: the padded image is smaller than a window.
    """
    batch, height, width, channels = images.shape
    rows, columns = window_grid((height, width), kernel_size, stride, padding)
    x = jnp.pad(images, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))

    def slices(axis: int, size: int, step: int, count: int) -> list[jax.Array]:
        end = step * (count - 1) + 1
        return [jax.lax.slice_in_dim(x, i, i + end, step, axis=axis) for i in range(size)]

    x = jnp.stack(slices(1, kernel_size[0], stride[0], rows), axis=3)
    x = jnp.stack(slices(2, kernel_size[1], stride[1], columns), axis=4)
    x = x.transpose(0, 1, 2, 5, 3, 4)  # (B, rows, columns, C, window height, window width)
    return x.reshape(batch, rows * columns, channels * kernel_size[0] * kernel_size[1])


class SoftSplit(nnx.Module):
    """Overlapping windows as tokens (Yuan et al. 2021, 2101.11986, section 3.1): see `unfold`.

    Args:
      kernel_size, stride, padding: pixels, one number or (height, width).
    """

    def __init__(self, kernel_size: int, stride: int, padding: int):
        self.kernel_size = to_pair("kernel_size", kernel_size)
        self.stride = to_pair("stride", stride)
        padding = check_int("padding", padding, least=0)
        self.padding = (padding, padding)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of (height, width)."""
        return window_grid(size, self.kernel_size, self.stride, self.padding)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch tokens features"]:
        return unfold(images, self.kernel_size, self.stride, self.padding)
