"""The tokens-to-token modules of T2T-ViT in plain PyTorch, for images of any height and width.

Parameter names are those of the official release (yitu-opensource/T2T-ViT), as are the dropouts.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference.vit import Attention, Mlp

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding
PERFORMER_DROP = 0.1  # whatever the rates of the model


def grid_after(size, split):
    """(rows, columns) of the windows that fit."""
    kernel, stride, padding = split
    return tuple((side + 2 * padding - kernel) // stride + 1 for side in size)


def token_grid(size):
    """(rows, columns) of the tokens that an image of (height, width) becomes."""
    for split in SPLITS:
        size = grid_after(size, split)
    return size


def sinusoid(positions, dim):
    """(positions, dim): pairs of sine and cosine, wavelengths from 2 pi to 20000 pi; float64."""
    pair = torch.arange(dim, dtype=torch.float64) // 2
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * pair / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())


class TokenPerformer(nn.Module):
    """Linear attention by positive random features, one head, with its MLP."""

    def __init__(self, in_dim, dim, kernel_ratio=0.5, norm_eps=1e-5, eps=1e-8):
        super().__init__()
        features = int(dim * kernel_ratio)
        directions = nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features)
        self.w = nn.Parameter(directions, requires_grad=False)
        self.eps = eps
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(PERFORMER_DROP)
        self.norm1 = nn.LayerNorm(in_dim, eps=norm_eps)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(PERFORMER_DROP)
        )

    def kernel(self, x):
        """(B, N, dim) to positive features (B, N, m)."""
        exponent = F.linear(x, self.w) - 0.5 * x.square().sum(dim=-1, keepdim=True)
        return exponent.exp() / math.sqrt(len(self.w))

    def forward(self, tokens):
        key, query, value = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)
        key, query = self.kernel(key), self.kernel(query)
        weight = torch.einsum("bnm,bm->bn", query, key.sum(dim=1))
        mixed = torch.einsum("bnm,bkm,bkd->bnd", query, key, value) / (weight + self.eps)[..., None]
        tokens = value + self.drop(self.proj(mixed))
        return tokens + self.mlp(self.norm2(tokens))


class WideAttention(Attention):
    """One head whose scale comes from the width of the input; the values are its skip."""

    def __init__(self, in_dim, dim, qk_scale, attn_drop, drop):
        scale = in_dim**-0.5 if qk_scale is None else qk_scale
        super().__init__(dim, 1, False, scale, False, 0.0, attn_drop, drop)
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)

    def forward(self, tokens):
        return self.qkv(tokens).chunk(3, dim=-1)[2] + super().forward(tokens)


class TokenTransformer(nn.Module):
    def __init__(self, in_dim, dim, qk_scale=None, norm_eps=1e-5, attn_drop=0.0, drop=0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim, eps=norm_eps)
        self.attn = WideAttention(in_dim, dim, qk_scale, attn_drop, drop)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, dim, drop)

    def forward(self, tokens):
        tokens = self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class SoftSplits(nn.Module):
    """Images (B, C, H, W) to tokens (B, N, D): unfold, attend, fold back, twice; then a Linear."""

    def __init__(self, layer, in_chans, dim, embed_dim, norm_eps):
        super().__init__()
        self.soft_split0, self.soft_split1, self.soft_split2 = (
            nn.Unfold(kernel, stride=stride, padding=padding) for kernel, stride, padding in SPLITS
        )
        (first, _, _), (second, _, _), (third, _, _) = SPLITS
        self.attention1 = layer(in_chans * first**2, dim, norm_eps=norm_eps)
        self.attention2 = layer(dim * second**2, dim, norm_eps=norm_eps)
        self.project = nn.Linear(dim * third**2, embed_dim)

    def forward(self, images):
        grid = grid_after(images.shape[-2:], SPLITS[0])
        tokens = self.attention1(self.soft_split0(images).mT)
        maps = tokens.mT.unflatten(-1, grid)  # (B, dim, rows, columns)
        grid = grid_after(grid, SPLITS[1])
        tokens = self.attention2(self.soft_split1(maps).mT)
        maps = tokens.mT.unflatten(-1, grid)
        return self.project(self.soft_split2(maps).mT)


class Convolutions(nn.Module):
    """Three convolutions with the geometry of the soft splits, nothing in between."""

    def __init__(self, in_chans, dim, embed_dim):
        super().__init__()
        widths = (in_chans, dim, dim, embed_dim)
        self.soft_split0, self.soft_split1, self.project = (
            nn.Conv2d(width, out, kernel, stride=stride, padding=padding)
            for width, out, (kernel, stride, padding) in zip(
                widths[:-1], widths[1:], SPLITS, strict=True
            )
        )

    def forward(self, images):
        return self.project(self.soft_split1(self.soft_split0(images))).flatten(2).mT


def tokens_module(tokens_type, in_chans, dim, embed_dim, norm_eps):
    if tokens_type == "convolution":
        return Convolutions(in_chans, dim, embed_dim)
    layer = {"performer": TokenPerformer, "transformer": TokenTransformer}[tokens_type]
    return SoftSplits(layer, in_chans, dim, embed_dim, norm_eps)
