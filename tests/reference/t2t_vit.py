"""T2T-ViT and its squeeze-and-excite, dense and ghost variants in plain PyTorch.

Parameter names are those of the official release (yitu-opensource/T2T-ViT).
"""

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference.t2t_tokens import sinusoid, token_grid, tokens_module
from tests.reference.vit import Attention, Block, Mlp, pair


def linear_rates(last, count):
    """`count` rates from 0 to `last`."""
    return [last * index / max(count - 1, 1) for index in range(count)]


class T2TViT(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes)."""

    def __init__(
        self,
        img_size=224,
        tokens_type="performer",
        in_chans=3,
        num_classes=1000,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        qkv_bias=False,
        qk_scale=None,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.0,
        token_dim=64,
        norm_eps=1e-5,
    ):
        super().__init__()
        self.num_heads, self.mlp_ratio, self.norm_eps = num_heads, mlp_ratio, norm_eps
        self.qkv_bias, self.qk_scale = qkv_bias, qk_scale
        self.drop_rate, self.attn_drop_rate = drop_rate, attn_drop_rate
        self.drop_path_rate = drop_path_rate

        rows, columns = token_grid(pair(img_size))
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        table = sinusoid(rows * columns + 1, embed_dim).float()[None]
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.tokens_to_token = tokens_module(tokens_type, in_chans, token_dim, embed_dim, norm_eps)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks, out_dim = self.make_blocks(embed_dim, depth)
        self.norm = nn.LayerNorm(out_dim, eps=norm_eps)
        self.head = nn.Linear(out_dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    def make_blocks(self, dim, depth):
        rates = linear_rates(self.drop_path_rate, depth)
        return nn.ModuleList(self.make_block(dim, rate) for rate in rates), dim

    def make_block(self, dim, drop_path):
        hidden_dim = int(dim * self.mlp_ratio)
        attention = self.make_attention(dim)
        return Block(dim, attention, hidden_dim, None, self.norm_eps, self.drop_rate, drop_path)

    def attention_settings(self, dim):
        return {
            "dim": dim,
            "num_heads": self.num_heads,
            "qkv_bias": self.qkv_bias,
            "qk_scale": self.qk_scale,
            "qk_norm": False,
            "norm_eps": self.norm_eps,
            "attn_drop": self.attn_drop_rate,
            "drop": self.drop_rate,
        }

    def make_attention(self, dim):
        return Attention(**self.attention_settings(dim))

    @torch.no_grad()
    def reset_parameters(self):
        """Linear layers and the class token; convolutions and norms stay PyTorch's."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images):
        tokens = self.tokens_to_token(images)
        cls_token = self.cls_token.expand(len(images), -1, -1)
        tokens = self.pos_drop(torch.cat([cls_token, tokens], dim=1) + self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, images):
        return self.head(self.forward_features(images)[:, 0])


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all tokens."""

    def __init__(self, dim, reduction=16):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(dim, dim // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(dim // reduction, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, tokens):
        return tokens * self.fc(tokens.mean(dim=1, keepdim=True))


class SqueezeExciteAttention(Attention):
    """The gate sits between the projection and its dropout."""

    def __init__(self, **settings):
        super().__init__(**{**settings, "drop": 0.0})
        self.se_layer = SqueezeExcite(settings["dim"])
        self.drop = nn.Dropout(settings["drop"])

    def forward(self, tokens):
        return self.drop(self.se_layer(super().forward(tokens)))


class T2TViTSE(T2TViT):
    def make_attention(self, dim):
        return SqueezeExciteAttention(**self.attention_settings(dim))


class DenseBlock(Block):
    """Appends to each token `growth` channels of what the block makes of it."""

    def __init__(self, dim, attention, hidden_dim, norm_eps, drop, drop_path, growth):
        super().__init__(dim, attention, hidden_dim, None, norm_eps, drop, drop_path)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, tokens):
        return torch.cat([tokens, self.dense_linear(super().forward(tokens))], dim=-1)


class Transition(nn.Module):
    """Halves the width."""

    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)

    def forward(self, tokens):
        return F.gelu(self.linear(tokens))


class T2TViTDense(T2TViT):
    """Stages of growing width with a transition between two; stochastic depth by stage."""

    def __init__(self, growth_rate=64, block_config=(3, 6, 6, 4), **fields):
        self.growth_rate = growth_rate
        super().__init__(depth=block_config, **fields)

    def make_blocks(self, dim, depth):
        rates = linear_rates(self.drop_path_rate, len(depth))
        blocks = nn.ModuleList()
        for stage, (count, rate) in enumerate(zip(depth, rates, strict=True)):
            if stage:
                blocks.append(Transition(dim))
                dim //= 2
            for _ in range(count):
                blocks.append(self.make_block(dim, rate))
                dim += self.growth_rate
        return blocks, dim

    def make_block(self, dim, drop_path):
        hidden_dim, attention = int(dim * self.mlp_ratio), self.make_attention(dim)
        settings = (self.norm_eps, self.drop_rate, drop_path, self.growth_rate)
        return DenseBlock(dim, attention, hidden_dim, *settings)


def depthwise(dim):
    return nn.Conv1d(dim, dim, 1, groups=dim, bias=False)


class GhostAttention(Attention):
    """Half of the queries, keys and values are a scaled copy of the other half."""

    def __init__(self, **settings):
        super().__init__(**settings)
        del self.qkv  # the layer: the method takes its place
        half = settings["dim"] // 2
        for name in "qkv":
            setattr(self, name, nn.Linear(settings["dim"], half, bias=settings["qkv_bias"]))
        for name in "qkv":
            setattr(self, f"cheap_operation_{name}", depthwise(half))

    def qkv(self, tokens):
        parts = []
        for name in "qkv":
            first = getattr(self, name)(tokens)
            copy = getattr(self, f"cheap_operation_{name}")(first.mT).mT
            parts += [first, copy]
        return torch.cat(parts, dim=-1)


class GhostMlp(Mlp):
    """Three times the width of the tokens, two thirds of it from scaled copies of the first."""

    def __init__(self, dim, drop):
        super().__init__(dim, 3 * dim, drop)
        self.fc1 = nn.Linear(dim, dim)
        self.cheap_operation2, self.cheap_operation3 = depthwise(dim), depthwise(dim)

    def forward(self, tokens):
        first = F.gelu(self.fc1(tokens))
        copies = [
            F.gelu(operation(first.mT).mT)
            for operation in (self.cheap_operation2, self.cheap_operation3)
        ]
        return self.drop(self.fc2(self.drop(torch.cat([first, *copies], dim=-1))))


class T2TViTGhost(T2TViT):
    def make_attention(self, dim):
        return GhostAttention(**self.attention_settings(dim))

    def make_block(self, dim, drop_path):
        block = super().make_block(dim, drop_path)
        block.mlp = GhostMlp(dim, self.drop_rate)
        return block
