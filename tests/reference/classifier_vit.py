"""The CIFAR-100 classifier of seed 003 in plain PyTorch, with one class token by default."""

import torch
from torch import nn

from tests.reference.vit import pair


def dense_stack(in_dim, widths, drop_rate):
    """Linear, GELU, Dropout for every width, the last included."""
    layers = []
    for width in widths:
        layers.append(nn.Sequential(nn.Linear(in_dim, width), nn.GELU(), nn.Dropout(drop_rate)))
        in_dim = width
    return nn.Sequential(*layers)


class CreatePatches(nn.Module):
    def __init__(self, patch_size):
        super().__init__()
        self.unfold = nn.Unfold(patch_size, stride=patch_size)

    def forward(self, images):
        return self.unfold(images).mT  # (B, N, C * kh * kw)


class PatchEmbedding(nn.Module):
    def __init__(self, num_patches, patch_dim, embed_dim, class_token_batch):
        super().__init__()
        self.position_emb = nn.Embedding(num_patches + 1, embed_dim)
        self.projection_layer = nn.Linear(patch_dim, embed_dim)
        self.class_parameter = nn.Parameter(torch.rand(class_token_batch, 1, embed_dim))

    def forward(self, patches):
        class_tokens = self.class_parameter.expand(len(patches), -1, -1)
        tokens = torch.cat([class_tokens, self.projection_layer(patches)], dim=1)
        return tokens + self.position_emb.weight[None]


class TransformerBlock(nn.Module):
    def __init__(self, embed_dim, num_heads, mlp_dim, norm_eps, drop_rate, attn_drop_rate):
        super().__init__()
        self.layer_norm_input = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = nn.MultiheadAttention(
            embed_dim, num_heads, dropout=attn_drop_rate, batch_first=True
        )
        self.dropout_1 = nn.Dropout(drop_rate)
        self.layer_norm_1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.layer_norm_2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.ffn = dense_stack(embed_dim, [mlp_dim, embed_dim], drop_rate)

    def forward(self, tokens):
        normed = self.layer_norm_input(tokens)
        attended, _ = self.attn(normed, normed, normed, need_weights=False)
        middle = self.layer_norm_1(tokens + self.dropout_1(attended))
        return self.layer_norm_2(middle + self.ffn(middle))


class ClassifierViT(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes)."""

    def __init__(
        self,
        img_size=72,
        patch_size=6,
        in_chans=3,
        num_classes=100,
        embed_dim=64,
        depth=8,
        num_heads=4,
        mlp_dim=128,
        mlp_head_units=(2048, 1024),
        class_token_batch=1,
        norm_eps=1e-6,
        drop_rate=0.1,
        attn_drop_rate=0.0,
        head_drop_rate=0.5,
    ):
        super().__init__()
        (height, width), (patch_height, patch_width) = pair(img_size), pair(patch_size)
        self.create_patch_layer = CreatePatches((patch_height, patch_width))
        self.patch_embedding_layer = PatchEmbedding(
            (height // patch_height) * (width // patch_width),
            in_chans * patch_height * patch_width,
            embed_dim,
            class_token_batch,
        )
        self.transformer_layers = nn.ModuleList(
            TransformerBlock(embed_dim, num_heads, mlp_dim, norm_eps, drop_rate, attn_drop_rate)
            for _ in range(depth)
        )
        self.mlp_block = dense_stack(embed_dim, mlp_head_units, head_drop_rate)
        self.logits_layer = nn.Linear(mlp_head_units[-1], num_classes)

    def forward(self, images):
        tokens = self.patch_embedding_layer(self.create_patch_layer(images))
        for layer in self.transformer_layers:
            tokens = layer(tokens)
        return self.logits_layer(self.mlp_block(tokens[:, 0]))
