"""An MLP-Mixer, a decoder of queries, a Perceiver and an attention pooling: modules and ports."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, ids, normal


class TMLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class MLP(Port):
    def __init__(self, dim: int, hidden: int, rngs: nnx.Rngs):
        self.fc1, self.fc2 = nnx.Linear(dim, hidden, rngs=rngs), nnx.Linear(hidden, dim, rngs=rngs)

    def __call__(self, x):
        return self.fc2(nnx.gelu(self.fc1(x), approximate=self.has("tanh")))


class TMixerBlock(nn.Module):
    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens, self.mlp_channels = TMLP(tokens, 24), TMLP(dim, 32)

    def forward(self, x):
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class TMixer(nn.Module):
    """As many tokens as channels: 16."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, stride=4)
        self.blocks = nn.ModuleList(TMixerBlock(16, dim) for _ in range(2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class MixerBlock(Port):
    def __init__(self, tokens: int, dim: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.mlp_tokens, self.mlp_channels = MLP(tokens, 24, rngs), MLP(dim, 32, rngs)

    def __call__(self, x):
        y = self.norm1(x)
        y = self.mlp_tokens(y if self.has("not_transposed") else y.swapaxes(1, 2))
        x = x + (y if self.has("not_back") else y.swapaxes(1, 2))
        return x + self.mlp_channels(x if self.has("unnormed") else self.norm2(x))


class Mixer(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.stem = nnx.Conv(3, dim, (4, 4), strides=4, rngs=rngs)
        self.blocks = nnx.List([MixerBlock(16, dim, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(dim, 5, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        if self.has("columns_first"):
            x = x.swapaxes(1, 2)
        x = x.reshape(len(x), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(2 if self.has("channel_mean") else 1))


architecture("mixer", TMixer, Mixer, lambda: normal(2, 16, 16, 3))


# ---------------------------------------------------------------------------- cross attention


class TCross(nn.Module):
    def __init__(self, dim: int, heads: int = 2):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.heads = heads

    def forward(self, queries, keys, values, mask=None):
        b, n, c = queries.shape
        parts = (self.q(queries), self.k(keys), self.v(values))
        q, k, v = (p.reshape(b, -1, self.heads, c // self.heads).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.o(y.transpose(1, 2).reshape(b, n, c))


class Cross(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs, heads: int = 2):
        self.q, self.k, self.v, self.o = (nnx.Linear(dim, dim, rngs=rngs) for _ in range(4))
        self.heads = heads

    def __call__(self, queries, keys, values, mask=None):
        b, n, c = queries.shape
        parts = (self.q(queries), self.k(keys), self.v(values))
        q, k, v = (p.reshape(b, -1, self.heads, c // self.heads) for p in parts)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if not self.has("unscaled"):
            scores = scores * (c if self.has("whole_width") else c // self.heads) ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        if self.has("over_queries"):
            weights = jax.nn.softmax(scores, axis=-2)
        if self.has("over_heads"):
            weights = jax.nn.softmax(scores, axis=1)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        if self.has("heads_inside"):
            y = y.swapaxes(2, 3)
        return self.o(y.reshape(b, n, c))


class TDETR(nn.Module):
    """Ids, of which 0 is padding, to classes and boxes of learnt queries."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.embed = nn.Embedding(13, dim)
        self.pos = nn.Parameter(torch.zeros(8, dim))
        self.query_pos = nn.Parameter(torch.zeros(5, dim))
        self.self_attn, self.cross_attn = TCross(dim), TCross(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(dim, 32), nn.Linear(32, dim)
        self.class_head, self.box_head = nn.Linear(dim, 7), nn.Linear(dim, 4)

    def forward(self, ids):
        memory, mask = self.embed(ids), (ids != 0)[:, None, None]
        place = self.query_pos[None].expand(len(ids), -1, -1)
        x = torch.zeros_like(place)
        x = self.norm1(x + self.self_attn(x + place, x + place, x))
        x = self.norm2(x + self.cross_attn(x + place, memory + self.pos, memory, mask))
        x = self.norm3(x + self.linear2(F.relu(self.linear1(x))))
        centre, size = self.box_head(x).sigmoid().chunk(2, -1)
        return self.class_head(x), torch.cat((centre - size / 2, centre + size / 2), -1)


class DETR(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.embed = nnx.Embed(13, dim, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((8, dim)))
        self.query_pos = nnx.Param(jnp.zeros((5, dim)))
        self.self_attn, self.cross_attn = Cross(dim, rngs), Cross(dim, rngs)
        self.norm1, self.norm2, self.norm3 = (
            nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs) for _ in range(3)
        )
        self.linear1, self.linear2 = nnx.Linear(dim, 32, rngs=rngs), nnx.Linear(32, dim, rngs=rngs)
        self.class_head = nnx.Linear(dim, 7, rngs=rngs)
        self.box_head = nnx.Linear(dim, 4, rngs=rngs)

    def __call__(self, ids):
        memory, mask = self.embed(ids), (ids != 0)[:, None, None]
        if self.has("mask_inverted"):
            mask = ~mask
        if self.has("no_mask"):
            mask = None
        if self.has("mask_of_last"):  # another padding: the last token's
            mask = jnp.broadcast_to(jnp.arange(ids.shape[1]) < ids.shape[1] - 1, mask.shape)
        place = jnp.broadcast_to(self.query_pos[...], (len(ids), *self.query_pos.shape))
        x = jnp.zeros_like(place)
        x = self.norm1(x + self.self_attn(x + place, x + place, x))
        keys = memory if self.has("keys_unplaced") else memory + self.pos[...]
        values = keys if self.has("values_placed") else memory
        queries = x if self.has("queries_unplaced") else x + place
        x = self.norm2(x + self.cross_attn(queries, keys, values, mask))
        y = self.linear2(nnx.relu(self.linear1(x)))
        x = self.norm3(y if self.has("no_residual") else x + y)
        boxes = self.box_head(x)
        boxes = boxes if self.has("no_sigmoid") else nnx.sigmoid(boxes)
        centre, size = jnp.split(boxes, 2, -1)
        boxes = jnp.concatenate((centre - size / 2, centre + size / 2), -1)
        return self.class_head(x), boxes[..., [1, 0, 3, 2]] if self.has("y_first") else boxes


architecture("detr", TDETR, DETR, lambda: ids(3, 8, vocabulary=4, seed=5))


class TPerceiver(nn.Module):
    """Reads its input twice with one layer."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(6, dim))
        self.norm_latents, self.norm_context = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TCross(dim)
        self.norm_ff = nn.LayerNorm(dim)
        self.wide, self.narrow = nn.Linear(dim, 64), nn.Linear(32, dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        latents = self.latents[None].expand(len(x), -1, -1)
        context = self.norm_context(x)
        for _ in range(2):
            latents = latents + self.attn(self.norm_latents(latents), context, context)
            value, gate = self.wide(self.norm_ff(latents)).chunk(2, -1)
            latents = latents + self.narrow(value * F.gelu(gate))
        return self.head(latents.mean(1))


class Perceiver(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.latents = nnx.Param(jnp.zeros((6, dim)))
        self.norm_latents, self.norm_context, self.norm_ff = (
            nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs) for _ in range(3)
        )
        self.attn = Cross(dim, rngs)
        self.wide, self.narrow = nnx.Linear(dim, 64, rngs=rngs), nnx.Linear(32, dim, rngs=rngs)
        self.head = nnx.Linear(dim, 5, rngs=rngs)

    def __call__(self, x):
        latents = jnp.broadcast_to(self.latents[...], (len(x), *self.latents.shape))
        context = x if self.has("context_unnormed") else self.norm_context(x)
        for _ in range(2):
            y = self.attn(self.norm_latents(latents), context, context)
            latents = y if self.has("no_residual") else latents + y
            both = self.wide(self.norm_ff(latents))
            value, gate = jnp.split(both, 2, -1)
            if self.has("gate_first"):
                value, gate = gate, value
            if self.has("interleaved_gate"):
                value, gate = both[..., ::2], both[..., 1::2]
            latents = latents + self.narrow(value * nnx.gelu(gate, approximate=False))
        return self.head(latents.sum(1) if self.has("sum") else latents.mean(1))


architecture("perceiver", TPerceiver, Perceiver, lambda: normal(2, 10, 16))


class TSigLIP(nn.Module):
    """Patches pooled by the attention of a learnt probe; answers with a unit vector."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, stride=4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 12, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.probe = nn.Parameter(torch.zeros(1, 1, dim))
        self.attn = TCross(dim)
        self.head_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = TMLP(dim, 32)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        x = self.norm(x)
        y = self.attn(self.probe.expand(len(x), -1, -1), x, x)
        y = (y + self.mlp(self.head_norm(y)))[:, 0]
        return F.normalize(y, dim=-1)


class SigLIP(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.patch_embed = nnx.Conv(3, dim, (4, 4), strides=4, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((1, 12, dim)))
        self.norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.probe = nnx.Param(jnp.zeros((1, 1, dim)))
        self.attn = Cross(dim, rngs)
        self.head_norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.mlp = MLP(dim, 32, rngs)

    def __call__(self, x):
        x = self.patch_embed(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        position = self.pos_embed[...]
        if self.has("position_flipped"):
            position = position[:, ::-1]
        x = x if self.has("no_position") else x + position
        x = self.norm(x)
        probe = jnp.broadcast_to(self.probe[...], (len(x), 1, x.shape[-1]))
        y = self.attn(probe, x, x)
        z = self.head_norm(y)
        y = ((z if self.has("residual_of_norm") else y) + self.mlp(z))[:, 0]
        if self.has("no_unit"):
            return y
        epsilon = 1e-6 if self.has("epsilon") else 0.0
        return y / jnp.sqrt(jnp.square(y).sum(-1, keepdims=True) + epsilon)


architecture("siglip", TSigLIP, SigLIP, lambda: normal(2, 12, 16, 3))
