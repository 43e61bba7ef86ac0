"""The modular ViT of seed 001, completed after its source, labml-nn 0.5.1, in plain PyTorch.

Tokens are sequence first, (N, B, D), as there. `share_layers` is the text's own: one layer object
under every number.
"""

import torch
from torch import nn

from tests.reference.vit import pair


class PatchEmbeddings(nn.Module):
    def __init__(self, in_chans, dim, patch_size):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images):
        return self.conv(images).flatten(2).permute(2, 0, 1)


class LearnedPositions(nn.Module):
    def __init__(self, max_tokens, dim):
        super().__init__()
        self.positional_encodings = nn.Parameter(torch.zeros(max_tokens, 1, dim))

    def forward(self, tokens):
        return tokens + self.positional_encodings[: len(tokens)]


class Projection(nn.Module):
    """A Linear, its output in heads (N, B, heads, head_dim)."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.num_heads = num_heads

    def forward(self, tokens):
        return self.linear(tokens).unflatten(-1, (self.num_heads, -1))


class Attention(nn.Module):
    def __init__(self, dim, num_heads, drop_rate):
        super().__init__()
        self.query = Projection(dim, num_heads)
        self.key = Projection(dim, num_heads)
        self.value = Projection(dim, num_heads)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, tokens):
        # (N, B, H, D) to (B, H, N, D)
        q, k, v = (
            project(tokens).permute(1, 2, 0, 3) for project in (self.query, self.key, self.value)
        )
        weights = self.dropout((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
        return self.output((weights @ v).permute(2, 0, 1, 3).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, drop_rate):
        super().__init__()
        self.layer1 = nn.Linear(dim, hidden_dim)
        self.layer2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(drop_rate)

    def forward(self, tokens):
        return self.layer2(self.dropout(self.layer1(tokens).relu()))


class TransformerLayer(nn.Module):
    def __init__(self, dim, num_heads, mlp_dim, norm_eps, drop_rate, attn_drop_rate):
        super().__init__()
        self.self_attn = Attention(dim, num_heads, attn_drop_rate)
        self.feed_forward = FeedForward(dim, mlp_dim, drop_rate)
        self.dropout = nn.Dropout(drop_rate)
        self.norm_self_attn = nn.LayerNorm(dim, eps=norm_eps)
        self.norm_ff = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, tokens):
        tokens = tokens + self.dropout(self.self_attn(self.norm_self_attn(tokens)))
        return tokens + self.dropout(self.feed_forward(self.norm_ff(tokens)))


class ClassificationHead(nn.Module):
    def __init__(self, dim, hidden_dim, num_classes):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, num_classes)

    def forward(self, x):
        return self.linear2(self.linear1(x).relu())


class ModularViT(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes)."""

    def __init__(
        self,
        patch_size=4,
        in_chans=3,
        num_classes=10,
        embed_dim=512,
        depth=6,
        num_heads=8,
        mlp_dim=2048,
        head_hidden_dim=2048,
        max_tokens=5000,
        share_layers=False,
        norm_eps=1e-5,
        drop_rate=0.1,
        attn_drop_rate=None,
    ):
        super().__init__()
        attn_drop_rate = drop_rate if attn_drop_rate is None else attn_drop_rate

        def layer():
            return TransformerLayer(
                embed_dim, num_heads, mlp_dim, norm_eps, drop_rate, attn_drop_rate
            )

        self.pacth_emb = PatchEmbeddings(in_chans, embed_dim, pair(patch_size))
        self.pos_emb = LearnedPositions(max_tokens, embed_dim)
        self.classification = ClassificationHead(embed_dim, head_hidden_dim, num_classes)
        layers = [layer()] * depth if share_layers else [layer() for _ in range(depth)]
        self.transformer_layer = nn.ModuleList(layers)
        self.cls_token_emb = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.ln = nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, images):
        patches = self.pacth_emb(images)
        class_token = self.cls_token_emb.expand(-1, len(images), -1)
        tokens = self.pos_emb(torch.cat([class_token, patches]))
        for layer in self.transformer_layer:
            tokens = layer(tokens)
        return self.classification(self.ln(tokens[0]))
