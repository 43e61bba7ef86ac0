"""im2col: an image as a matrix of patches."""

from jaxtyping import Array, Float


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
