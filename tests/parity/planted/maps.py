"""A U-Net with group norms, a variational autoencoder and a detector: modules and their ports."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, normal


class TResBlock(nn.Module):
    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, dim), nn.GroupNorm(4, out_dim)
        self.conv1 = nn.Conv2d(dim, out_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.skip = nn.Conv2d(dim, out_dim, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class TUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = TResBlock(8, 8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.middle = TResBlock(16, 16)
        self.up = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)
        self.block2 = TResBlock(24, 8)
        self.norm_out = nn.GroupNorm(4, 8, eps=1e-6)
        self.conv_out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.block1(self.conv_in(x))
        y = self.up(self.middle(self.down(x)))
        y = self.block2(torch.cat((y, x), 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv_out(F.silu(self.norm_out(y)))


class GroupNorm(Port):
    def __init__(self, dim: int, eps: float = 1e-5):
        self.weight, self.bias = nnx.Param(jnp.ones(dim)), nnx.Param(jnp.zeros(dim))
        self.eps = eps

    def __call__(self, x):
        groups = 2 if self.has("two_groups") else 4
        parts = x.reshape(*x.shape[:3], groups, -1)
        if self.has("strided_groups"):
            parts = jnp.moveaxis(x.reshape(*x.shape[:3], -1, groups), -1, -2)
        axes = (4,) if self.has("each_pixel") else (1, 2, 4)
        mean = parts.mean(axes, keepdims=True)
        ddof = 1 if self.has("ddof") else 0
        variance = parts.var(axes, keepdims=True, ddof=ddof)
        parts = (parts - mean) / jnp.sqrt(variance + self.eps)
        if self.has("strided_groups"):
            parts = jnp.moveaxis(parts, -1, -2)
        return parts.reshape(x.shape) * self.weight[...] + self.bias[...]


class Up(Port):
    """PyTorch's ConvTranspose2d(kernel 4, stride 2, padding 1)."""

    def __init__(self, dim: int, out_dim: int):
        # As PyTorch's (in, out, height, width) becomes by the rule of kernels.
        self.kernel = nnx.Param(jnp.zeros((4, 4, out_dim, dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(self, x):
        kernel = self.kernel[...]
        if self.has("unflipped"):
            kernel = kernel[::-1, ::-1]
        padding = ((3, 1), (3, 1)) if self.has("padded_before") else "SAME"
        y = jax.lax.conv_transpose(
            x,
            kernel,
            (2, 2),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            transpose_kernel=True,
        )
        return y + self.bias[...]


class ResBlock(Port):
    def __init__(self, dim: int, out_dim: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = GroupNorm(dim), GroupNorm(out_dim)
        self.conv1 = nnx.Conv(dim, out_dim, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(out_dim, out_dim, (3, 3), padding=1, rngs=rngs)
        self.skip = nnx.Conv(dim, out_dim, (1, 1), rngs=rngs)

    def __call__(self, x):
        y = nnx.silu(self.norm1(x))
        kept = y if self.has("skip_of_norm") else x
        return self.skip(kept) + self.conv2(nnx.silu(self.norm2(self.conv1(y))))


def corners(x, size: tuple[int, int]):
    """Bilinear, the corners of both grids on one another."""
    for axis, (old, new) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        at = jnp.linspace(0, old - 1, new)
        low = jnp.clip(jnp.floor(at).astype(int), 0, old - 2)
        part = (at - low).reshape(-1, *[1] * (x.ndim - axis - 1))
        x = jnp.take(x, low, axis) * (1 - part) + jnp.take(x, low + 1, axis) * part
    return x


class UNet(Port):
    def __init__(self, rngs: nnx.Rngs):
        self.conv_in = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.block1 = ResBlock(8, 8, rngs)
        self.down = nnx.Conv(8, 16, (3, 3), 2, padding=1, rngs=rngs)
        self.middle = ResBlock(16, 16, rngs)
        self.up = Up(16, 16)
        self.block2 = ResBlock(24, 8, rngs)
        self.norm_out = GroupNorm(8, 1e-6)
        self.conv_out = nnx.Conv(8, 3, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        x = self.block1(self.conv_in(x))
        y = self.up(self.middle(self.down(x)))
        y = self.block2(jnp.concatenate((x, y) if self.has("skip_first") else (y, x), -1))
        size = (2 * y.shape[1], 2 * y.shape[2])
        if self.has("corners"):
            y = corners(y, size)
        else:
            method = "nearest" if self.has("nearest") else "bilinear"
            y = jax.image.resize(y, (len(y), *size, y.shape[-1]), method)
        y = self.norm_out(y)
        return self.conv_out(y if self.has("no_last_silu") else nnx.silu(y))


architecture("unet", TUNet, UNet, lambda: normal(2, 8, 12, 3))


# ---------------------------------------------------------------------------- autoencoder


class TVAE(nn.Module):
    """Answers with the picture, the mean, the logarithm of the variance and the deviation."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.to_latent = nn.Linear(8 * 2 * 3, 2 * 5)
        self.from_latent = nn.Linear(5, 8 * 2 * 3)
        self.to_pixels = nn.Conv2d(8, 3 * 16, 3, padding=1)

    def forward(self, x):
        y = F.leaky_relu(self.conv2(F.elu(self.conv1(x))), 0.2)
        mean, logvar = self.to_latent(y.flatten(1)).chunk(2, -1)
        logvar = logvar.clamp(-0.5, 0.5)
        y = self.from_latent(mean).reshape(-1, 8, 2, 3)
        picture = F.pixel_shuffle(self.to_pixels(y), 4).sigmoid()
        return picture, mean, logvar, (0.5 * logvar).exp()


class VAE(Port):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 6, (3, 3), 2, padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=rngs)
        self.to_latent = nnx.Linear(8 * 2 * 3, 2 * 5, rngs=rngs)
        self.from_latent = nnx.Linear(5, 8 * 2 * 3, rngs=rngs)
        self.to_pixels = nnx.Conv(8, 3 * 16, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        slope = 0.01 if self.has("slope") else 0.2
        y = nnx.leaky_relu(self.conv2(nnx.elu(self.conv1(x))), slope)
        if not self.has("flattened_hwc"):
            y = y.transpose(0, 3, 1, 2)
        mean, logvar = jnp.split(self.to_latent(y.reshape(len(y), -1)), 2, -1)
        if self.has("variance_first"):
            mean, logvar = logvar, mean
        if not self.has("no_clamp"):
            logvar = jnp.clip(logvar, -0.5, 0.5)
        y = self.from_latent(mean)
        if self.has("shaped_hwc"):
            y = y.reshape(-1, 2, 3, 8)
        else:
            y = y.reshape(-1, 8, 2, 3).transpose(0, 2, 3, 1)
        y = self.to_pixels(y)
        b, h, w, _ = y.shape
        if self.has("colour_last"):  # channels as (4, 4, 3)
            y = y.reshape(b, h, w, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
        else:
            y = y.reshape(b, h, w, 3, 4, 4).transpose(0, 1, 4, 2, 5, 3)
        picture = nnx.sigmoid(y.reshape(b, 4 * h, 4 * w, 3))
        deviation = jnp.exp(logvar if self.has("no_half") else 0.5 * logvar)
        return picture, mean, 2 * logvar if self.has("doubled_logvar") else logvar, deviation


architecture("vae", TVAE, VAE, lambda: normal(2, 8, 12, 3))


# ---------------------------------------------------------------------------- detector

_STRIDE = 4


class TDetector(nn.Module):
    """A pyramid of two levels; answers with classes and boxes of all places."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(dim, dim, 3, stride=2, padding=2, dilation=2)
        self.lateral2, self.lateral3 = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.avgpool = nn.AvgPool2d(3, 1, 1)
        self.cls = nn.Conv2d(dim, 2 * 5, 3, padding=1)
        self.box = nn.Conv2d(dim, 2 * 4, 3, padding=1)

    def forward(self, x):
        second = F.relu(self.conv2(F.relu(self.conv1(x))))
        third = self.lateral3(F.relu(self.conv3(second)))
        level = self.lateral2(second) + F.interpolate(third, scale_factor=2, mode="nearest")
        level = self.avgpool(level)
        b, _, h, w = level.shape
        classes = self.cls(level).reshape(b, 2, 5, h, w).permute(0, 3, 4, 1, 2).flatten(1, 3)
        boxes = self.box(level).reshape(b, 2, 4, h, w).permute(0, 3, 4, 1, 2).flatten(1, 3)
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centres = (torch.stack((x, y), -1).to(level) + 0.5) * _STRIDE
        centres = centres.reshape(-1, 1, 2).expand(-1, 2, -1).flatten(0, 1)
        size = boxes[..., 2:].clamp(max=0.5).exp() * _STRIDE
        corner = centres + boxes[..., :2] * _STRIDE - size / 2
        return {"logits": classes, "boxes": torch.cat((corner, corner + size), -1)}


class Detector(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 8):
        self.conv1 = nnx.Conv(3, dim, (3, 3), 2, padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(dim, dim, (3, 3), 2, padding=1, rngs=rngs)
        self.conv3 = nnx.Conv(dim, dim, (3, 3), 2, padding=2, kernel_dilation=2, rngs=rngs)
        self.lateral2 = nnx.Conv(dim, dim, (1, 1), rngs=rngs)
        self.lateral3 = nnx.Conv(dim, dim, (1, 1), rngs=rngs)
        self.cls = nnx.Conv(dim, 2 * 5, (3, 3), padding=1, rngs=rngs)
        self.box = nnx.Conv(dim, 2 * 4, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x):
        second = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        third = self.lateral3(nnx.relu(self.conv3(second)))
        level = self.lateral2(second)
        if not self.has("no_top_down"):
            b, h, w, c = level.shape
            method = "bilinear" if self.has("smooth") else "nearest"
            level = level + jax.image.resize(third, (b, h, w, c), method)
        counted = not self.has("real_pixels")
        level = nnx.avg_pool(level, (3, 3), (1, 1), "SAME", count_include_pad=counted)
        b, h, w, _ = level.shape
        if self.has("anchors_inside"):  # channels as (classes, anchors)
            classes = self.cls(level).reshape(b, h, w, 5, 2).swapaxes(3, 4).reshape(b, -1, 5)
        else:
            classes = self.cls(level).reshape(b, -1, 5)
        if self.has("columns_first"):
            classes = classes.reshape(b, h, w, -1).swapaxes(1, 2).reshape(b, -1, 5)
        boxes = self.box(level).reshape(b, -1, 4)
        y, x = np.mgrid[:h, :w]
        pair = (y, x) if self.has("y_first") else (x, y)
        centres = np.stack(pair, -1) + (0.0 if self.has("no_half_pixel") else 0.5)
        centres = jnp.asarray(np.repeat(centres.reshape(-1, 2), 2, axis=0) * _STRIDE)
        size = boxes[..., 2:]
        if not self.has("no_clamp"):
            size = jnp.minimum(size, 0.5)
        size = jnp.exp(size) * _STRIDE
        corner = centres + boxes[..., :2] * _STRIDE - size / 2
        other = size if self.has("width_height") else corner + size
        return {"logits": classes, "boxes": jnp.concatenate((corner, other), -1)}


architecture("detector", TDetector, Detector, lambda: normal(2, 16, 24, 3))
