"""The walkthrough ViT of seed 000 as a module, over PyTorch's own encoder.

By default one class token and attention over tokens; the text has a class token for each slot of
the batch, and leaves `batch_first` at PyTorch's False.
"""

import torch
from torch import nn
from torch.nn import functional

from tests.reference.vit import pair


class EncoderViT(nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes)."""

    def __init__(
        self,
        patch_size=4,
        in_chans=3,
        num_classes=10,
        embed_dim=256,
        depth=6,
        num_heads=8,
        mlp_dim=2048,
        max_tokens=257,
        class_token_batch=1,
        batch_first=True,
        norm_eps=1e-5,
        drop_rate=0.1,
        attn_drop_rate=None,
    ):
        super().__init__()
        self.patch_size = pair(patch_size)
        height, width = self.patch_size
        self.weight = nn.Parameter(torch.randn(in_chans * height * width, embed_dim))
        self.cls_token_embedding = nn.Parameter(torch.randn(class_token_batch, 1, embed_dim))
        self.positon_embedding_table = nn.Parameter(torch.randn(max_tokens, embed_dim))
        # Each layer of its own, where nn.TransformerEncoder would copy the first.
        layers = [
            nn.TransformerEncoderLayer(
                embed_dim,
                num_heads,
                mlp_dim,
                drop_rate,
                layer_norm_eps=norm_eps,
                batch_first=batch_first,
            )
            for _ in range(depth)
        ]
        self.transformer_encoder = nn.TransformerEncoder(
            layers[0], num_layers=depth, enable_nested_tensor=False
        )
        self.transformer_encoder.layers = nn.ModuleList(layers)
        if attn_drop_rate is not None:
            for layer in layers:
                layer.self_attn.dropout = attn_drop_rate
        self.linear_layer = nn.Linear(embed_dim, num_classes)

    def forward(self, images):
        patches = functional.unfold(images, self.patch_size, stride=self.patch_size).mT
        class_tokens = self.cls_token_embedding.expand(len(images), -1, -1)
        tokens = torch.cat([class_tokens, patches @ self.weight], dim=1)
        tokens = tokens + self.positon_embedding_table[: tokens.shape[1]]
        return self.linear_layer(self.transformer_encoder(tokens)[:, 0])
