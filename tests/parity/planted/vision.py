"""ConvNeXt and Swin: PyTorch modules and their ports."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, normal


class TConvNeXtBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(self.norm(y))))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class TConvNeXt(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, stride=4)
        self.stem_norm = nn.LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(TConvNeXtBlock(dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((-2, -1))))


class ConvNeXtBlock(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.dwconv = nnx.Conv(dim, dim, (7, 7), padding=3, feature_group_count=dim, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.pwconv1 = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.pwconv2 = nnx.Linear(4 * dim, dim, rngs=rngs)
        self.gamma = nnx.Param(jnp.ones(dim))

    def __call__(self, x):
        y = self.norm(self.dwconv(x))
        y = self.pwconv2(nnx.gelu(self.pwconv1(y), approximate=self.has("tanh")))
        gamma = self.gamma[...]
        if self.has("gamma_after"):
            return gamma * (x + y)
        y = y if self.has("no_gamma") else gamma * y
        if self.has("no_residual"):
            return y
        return x + x + y if self.has("doubled") else x + y


class ConvNeXt(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 8):
        self.stem = nnx.Conv(3, dim, (4, 4), strides=4, rngs=rngs)
        self.stem_norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.blocks = nnx.List([ConvNeXtBlock(dim, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(dim, 5, rngs=rngs)

    def __call__(self, x):
        if self.has("bgr"):
            x = x[..., ::-1]
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = x.max((1, 2)) if self.has("max_pool") else x.mean((1, 2))
        return self.head(self.norm(x))


architecture("convnext", TConvNeXt, ConvNeXt, lambda: normal(2, 16, 24, 3))


# ---------------------------------------------------------------------------- Swin

_WINDOW, _HEADS, _GRID = 4, 2, 8


def relative_index(window: int) -> np.ndarray:
    """(N, N): row of the table for each query and key of a window."""
    y, x = np.divmod(np.arange(window * window), window)
    dy = y[:, None] - y[None] + window - 1
    dx = x[:, None] - x[None] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(grid: int, window: int, shift: int) -> np.ndarray:
    """(windows, N, N): true where two tokens of a shifted window were neighbours before."""
    zone = np.zeros(grid, int)
    zone[-window:-shift], zone[-shift:] = 1, 2
    zones = 3 * zone[:, None] + zone[None]
    count = grid // window
    cut = zones.reshape(count, window, count, window).transpose(0, 2, 1, 3)
    cut = cut.reshape(count * count, window * window)
    return cut[:, :, None] == cut[:, None, :]


class TWindowAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.zeros((2 * _WINDOW - 1) ** 2, _HEADS))

    def forward(self, x, mask=None):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, _HEADS, c // _HEADS).permute(2, 0, 3, 1, 4)
        scores = (q * (c // _HEADS) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[torch.from_numpy(relative_index(_WINDOW))].permute(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.reshape(b // windows, windows, _HEADS, n, n)
            scores = scores.masked_fill(~mask[None, :, None], -100.0).reshape(b, _HEADS, n, n)
        out = scores.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class TSwinBlock(nn.Module):
    def __init__(self, dim: int, shift: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TWindowAttention(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.shift = shift

    def forward(self, x):
        b, h, w, c = x.shape
        y, mask = self.norm1(x), None
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = torch.from_numpy(shift_mask(_GRID, _WINDOW, self.shift))
        rows, columns = h // _WINDOW, w // _WINDOW
        y = y.reshape(b, rows, _WINDOW, columns, _WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        y = self.attn(y.reshape(-1, _WINDOW * _WINDOW, c), mask)
        y = y.reshape(b, rows, columns, _WINDOW, _WINDOW, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, h, w, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TMerging(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class TSwin(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 2, stride=2)
        self.blocks = nn.ModuleList(TSwinBlock(dim, shift) for shift in (0, 2))
        self.downsample = TMerging(dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.head = nn.Linear(2 * dim, 5)

    def forward(self, x):
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.downsample(x)).mean((1, 2)))


class WindowAttention(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.qkv = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.proj = nnx.Linear(dim, dim, rngs=rngs)
        self.table = nnx.Param(jnp.zeros(((2 * _WINDOW - 1) ** 2, _HEADS)))

    def __call__(self, x, mask=None):
        b, n, c = x.shape
        d = c // _HEADS
        if self.has("heads_first"):  # (heads, 3, d) in place of (3, heads, d)
            q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, n, _HEADS, 3, d), 3, 0)
        else:
            q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, n, 3, _HEADS, d), 2, 0)
        scale = d**-1.0 if self.has("scale_d") else d**-0.5
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * scale, k)
        index = relative_index(_WINDOW)
        bias = self.table[...][index.T if self.has("bias_transposed") else index]
        if not self.has("no_bias"):
            scores = scores + jnp.transpose(bias, (2, 0, 1))
        if mask is not None and not self.has("no_mask"):
            scores = scores.reshape(-1, mask.shape[0], _HEADS, n, n)
            scores = jnp.where(mask[None, :, None], scores, -100.0).reshape(b, _HEADS, n, n)
        weights = jax.nn.softmax(scores, axis=-2 if self.has("over_queries") else -1)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return self.proj(out.reshape(b, n, c))


class SwinBlock(Port):
    def __init__(self, dim: int, shift: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.attn = WindowAttention(dim, rngs)
        self.fc1 = nnx.Linear(dim, 2 * dim, rngs=rngs)
        self.fc2 = nnx.Linear(2 * dim, dim, rngs=rngs)
        self.shift = shift

    def __call__(self, x):
        b, h, w, c = x.shape
        rows, columns = h // _WINDOW, w // _WINDOW
        y, mask = self.norm1(x), None
        shift = -self.shift if self.has("other_way") else self.shift
        if shift:
            y = jnp.roll(y, (-shift, -shift), (1, 2))
            mask = shift_mask(_GRID, _WINDOW, self.shift)
        y = y.reshape(b, rows, _WINDOW, columns, _WINDOW, c)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, _WINDOW * _WINDOW, c)
        y = self.attn(y, mask)
        y = y.reshape(b, rows, columns, _WINDOW, _WINDOW, c)
        if self.has("columns_first"):
            y = y.transpose(0, 2, 3, 1, 4, 5)
        else:
            y = y.transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, h, w, c)
        if shift and not self.has("not_undone"):
            y = jnp.roll(y, (shift, shift), (1, 2))
        x = x + y
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))


class Merging(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(4 * dim, epsilon=1e-5, rngs=rngs)
        self.reduction = nnx.Linear(4 * dim, 2 * dim, use_bias=False, rngs=rngs)

    def __call__(self, x):
        pairs = [(0, 0), (1, 0), (0, 1), (1, 1)]
        if self.has("row_by_row"):
            pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
        return self.reduction(self.norm(jnp.concatenate([x[:, i::2, j::2] for i, j in pairs], -1)))


class Swin(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 8):
        self.patch_embed = nnx.Conv(3, dim, (2, 2), strides=2, rngs=rngs)
        self.blocks = nnx.List([SwinBlock(dim, shift, rngs) for shift in (0, 2)])
        self.downsample = Merging(dim, rngs)
        self.norm = nnx.LayerNorm(2 * dim, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(2 * dim, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.downsample(x)).mean((1, 2)))


architecture("swin", TSwin, Swin, lambda: normal(2, 16, 16, 3))
