"""Patches to tokens."""

import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_choice
from vit_jax.layers.initializers import uniform_bias, uniform_fan_in
from vit_jax.layers.unfold import extract_patches

PATCHIFY = ("conv", "unfold")


def patch_grid(img_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the patches per column and row, or raises ValueError where they do not fit."""
    if img_size[0] % patch_size[0] or img_size[1] % patch_size[1]:
        raise ValueError(
            f"img_size must be divisible by patch_size: {img_size[0]}x{img_size[1]} is not a whole "
            f"number of {patch_size[0]}x{patch_size[1]} patches"
        )
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


class PatchEmbed(nnx.Module):
    """Non-overlapping patches, each projected to a token (Dosovitskiy et al. 2020, section 3.1).

    One convolution kernel `proj` serves both forms: "conv" convolves with it, "unfold" cuts the
    patches out (im2col) and multiplies by the same numbers as a matrix.

    Args:
      img_size: (height, width) in pixels.
      patch_size: (height, width) in pixels.
      in_chans: channels of the image.
      embed_dim: width of a token.
      patchify: "conv" or "unfold".
      use_bias: whether the projection has one.
      kernel_init, bias_init: of the projection; default as `torch.nn.Conv2d`.

    Raises:
      ValueError: img_size is not divisible by patch_size, or patchify is unknown.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        *,
        patchify: str = "conv",
        use_bias: bool = True,
        kernel_init: Initializer = uniform_fan_in,
        bias_init: Initializer | None = None,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.grid_size = patch_grid(img_size, patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_size = patch_size
        self.patchify = check_choice("patchify", patchify, PATCHIFY)
        self.dtype = dtype
        self.proj = nnx.Conv(
            in_chans,
            embed_dim,
            kernel_size=patch_size,
            strides=patch_size,
            padding="VALID",
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init or uniform_bias(in_chans * patch_size[0] * patch_size[1]),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        if self.patchify == "conv":
            x = self.proj(images)  # (B, rows, columns, D)
            return x.reshape(x.shape[0], -1, x.shape[-1])
        kernel = self.proj.kernel[...].astype(self.dtype)  # (height, width, C, D)
        kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
        x = extract_patches(images.astype(self.dtype), self.patch_size)
        x = jnp.matmul(x, kernel)
        if self.proj.bias is None:
            return x
        return x + self.proj.bias[...].astype(self.dtype).reshape(1, 1, -1)
