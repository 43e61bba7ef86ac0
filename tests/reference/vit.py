"""The Vision Transformer of timm 1.0 and DeiT in plain PyTorch, with the fields of models/vit.py.

Parameter names are timm's; `representation_size` is the tanh layer of timm 0.4 (`pre_logits.fc`).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def pair(size):
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, in_chans, embed_dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).mT  # (B, N, D)


class StochasticDepth(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, branch):
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        kept = torch.bernoulli(branch.new_full((len(branch), 1, 1), keep))
        return branch * kept / keep


class LayerScale(nn.Module):
    def __init__(self, dim, value):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(value)))

    def forward(self, tokens):
        return tokens * self.gamma


class Attention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias, qk_scale, qk_norm, norm_eps, attn_drop, drop):
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = qk_scale if qk_scale is not None else 1.0 / math.sqrt(head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, tokens):
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, head_dim)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", self.q_norm(query), self.k_norm(key)) * self.scale
        weights = self.attn_drop(torch.softmax(scores, dim=-1))
        mixed = torch.einsum("bhqk,bhkd->bqhd", weights, value).flatten(2)  # (B, N, D)
        return self.proj_drop(self.proj(mixed))


class Mlp(nn.Module):
    def __init__(self, dim, hidden_dim, drop):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, tokens):
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))


class SwiGLU(nn.Module):
    """timm's `SwiGLUPacked`: two thirds of the hidden width, up to a multiple of 8."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        width = (int(hidden_dim * 2 / 3) + 7) // 8 * 8
        self.fc1 = nn.Linear(dim, 2 * width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, tokens):
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(
        self, dim, attention, hidden_dim, init_values, norm_eps, drop, drop_path, swiglu=False
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = SwiGLU(dim, hidden_dim) if swiglu else Mlp(dim, hidden_dim, drop)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, tokens):
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens))))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))


class PreLogits(nn.Module):
    def __init__(self, dim, out_dim):
        super().__init__()
        self.fc = nn.Linear(dim, out_dim)

    def forward(self, features):
        return torch.tanh(self.fc(features))


class VisionTransformer(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes); distilled in train mode: a pair of them."""

    def __init__(
        self,
        img_size=224,
        patch_size=16,
        in_chans=3,
        num_classes=1000,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        qk_norm=False,
        representation_size=None,
        distilled=False,
        class_token=True,
        reg_tokens=0,
        no_embed_class=False,
        init_values=None,
        swiglu=False,
        global_pool="token",
        norm_eps=1e-6,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        head_drop_rate=0.0,
    ):
        super().__init__()
        (height, width), (patch_height, patch_width) = pair(img_size), pair(patch_size)
        num_patches = (height // patch_height) * (width // patch_width)
        self.num_prefix_tokens = int(class_token) + int(distilled) + reg_tokens
        self.no_embed_class, self.global_pool = no_embed_class, global_pool
        pooled = global_pool in ("avg", "max", "avgmax")

        self.patch_embed = PatchEmbed(pair(patch_size), in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if distilled else None
        self.reg_token = nn.Parameter(torch.empty(1, reg_tokens, embed_dim)) if reg_tokens else None
        positions = num_patches + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = nn.Parameter(torch.empty(1, positions, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                Attention(
                    embed_dim,
                    num_heads,
                    qkv_bias,
                    qk_scale,
                    qk_norm,
                    norm_eps,
                    attn_drop_rate,
                    drop_rate,
                ),
                int(embed_dim * mlp_ratio),
                init_values,
                norm_eps,
                drop_rate,
                drop_path_rate * index / max(depth - 1, 1),
                swiglu,
            )
            for index in range(depth)
        )
        self.norm = nn.Identity() if pooled else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if pooled else nn.Identity()
        if distilled:  # as the sources have it
            representation_size = None
        features = representation_size or embed_dim
        self.pre_logits = (
            PreLogits(embed_dim, representation_size) if representation_size else nn.Identity()
        )
        self.head_drop = nn.Dropout(head_drop_rate)
        self.head = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        self.head_dist = None
        if distilled:
            self.head_dist = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """timm's default: only Linear layers and tokens; convolutions and norms stay PyTorch's."""
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        for table in (self.pos_embed, self.dist_token):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images):
        tokens = self.patch_embed(images)
        prefix = [
            token.expand(len(images), -1, -1)
            for token in (self.cls_token, self.dist_token, self.reg_token)
            if token is not None
        ]
        if self.no_embed_class:
            tokens = torch.cat([*prefix, tokens + self.pos_embed], dim=1)
        else:
            tokens = torch.cat([*prefix, tokens], dim=1) + self.pos_embed
        tokens = self.pos_drop(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def pool(self, tokens):
        if self.global_pool == "":
            return tokens
        if self.global_pool == "token":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        mean, largest = patches.mean(dim=1), patches.amax(dim=1)
        return {"avg": mean, "max": largest, "avgmax": 0.5 * (mean + largest)}[self.global_pool]

    def forward(self, images):
        tokens = self.forward_features(images)
        logits = self.head(self.head_drop(self.pre_logits(self.fc_norm(self.pool(tokens)))))
        if self.head_dist is None:
            return logits
        distilled_logits = self.head_dist(self.head_drop(tokens[:, 1]))
        return (logits, distilled_logits) if self.training else (logits + distilled_logits) / 2
