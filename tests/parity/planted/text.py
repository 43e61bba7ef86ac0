"""GPT, a CLIP text tower and a T5 encoder: PyTorch modules and their ports."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, ids


class TAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x):
        b, n, c = x.shape
        parts = self.c_attn(x).split(c, dim=2)
        q, k, v = (p.view(b, n, self.heads, -1).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, n, c))


class TGPTBlock(nn.Module):
    def __init__(self, dim: int, heads: int, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = TAttention(dim, heads)
        self.c_fc, self.c_proj = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.activation = activation

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(self.activation(self.c_fc(self.ln_2(x))))


def _tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


class TGPT(nn.Module):
    """Its output layer is tied to the embedding."""

    def __init__(self, dim: int = 16, heads: int = 2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(13, dim), nn.Embedding(12, dim)
        self.h = nn.ModuleList(TGPTBlock(dim, heads, _tanh_gelu) for _ in range(2))
        self.ln_f = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


class Attention(Port):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.c_attn = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.c_proj = nnx.Linear(dim, dim, rngs=rngs)
        self.heads = heads

    def __call__(self, x):
        b, n, c = x.shape
        parts = jnp.split(self.c_attn(x), 3, axis=-1)
        if self.has("key_first"):
            parts = [parts[1], parts[0], parts[2]]
        if self.has("dim_first"):  # channels split as (d, heads)
            q, k, v = (p.reshape(b, n, -1, self.heads).transpose(0, 1, 3, 2) for p in parts)
        else:
            q, k, v = (p.reshape(b, n, self.heads, -1) for p in parts)
        d = q.shape[-1]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        scores = scores / (d if self.has("scale_d") else math.sqrt(d))
        if self.has("one_head_scaled"):
            scores = scores.at[:, 1].multiply(1.5)
        above = 1 if self.has("sees_next") else 0
        mask = jnp.tril(jnp.ones((n, n), bool), above)
        if self.has("anti_causal"):
            mask = mask.T
        if not self.has("no_mask"):
            scores = jnp.where(mask, scores, -1e4 if self.has("soft_mask") else -jnp.inf)
        if self.has("multiplied_mask"):
            scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d), 0.0)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        return self.c_proj(y.reshape(b, n, c))


class GPTBlock(Port):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs, activation):
        self.ln_1 = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.attn = Attention(dim, heads, rngs)
        self.c_fc = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.c_proj = nnx.Linear(4 * dim, dim, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        y = self.ln_1(x)
        x = (y if self.has("residual_of_norm") else x) + self.attn(y)
        activation = self.activation
        if self.has("erf"):
            activation = lambda y: nnx.gelu(y, approximate=False)  # noqa: E731
        z = x if self.has("no_ln_2") else self.ln_2(x)
        return x + self.c_proj(activation(self.c_fc(z)))


class GPT(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16, heads: int = 2):
        self.wte, self.wpe = nnx.Embed(13, dim, rngs=rngs), nnx.Embed(12, dim, rngs=rngs)
        self.h = nnx.List([GPTBlock(dim, heads, rngs, nnx.gelu) for _ in range(2)])
        self.ln_f = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        positions = jnp.arange(x.shape[1]) + (1 if self.has("from_one") else 0)
        tokens, places = self.wte(x), self.wpe(positions)
        if self.has("scaled_embedding"):
            tokens = tokens * tokens.shape[-1] ** 0.5
        if self.has("no_position"):
            places = 0 * places
        x = tokens + places
        for block in self.h:
            x = block(x)
        y = self.wte.attend(x if self.has("no_ln_f") else self.ln_f(x))
        return y * x.shape[-1] ** -0.5 if self.has("scaled_logits") else y


architecture("gpt", TGPT, GPT, lambda: ids(2, 8))


# ---------------------------------------------------------------------------- CLIP's text tower


class TCLIP(nn.Module):
    def __init__(self, dim: int = 16, heads: int = 2):
        super().__init__()
        self.token_embedding = nn.Embedding(13, dim)
        self.positional_embedding = nn.Parameter(torch.zeros(7, dim))
        self.blocks = nn.ModuleList(
            TGPTBlock(dim, heads, lambda x: x * torch.sigmoid(1.702 * x)) for _ in range(2)
        )
        self.ln_final = nn.LayerNorm(dim)
        self.text_projection = nn.Parameter(torch.zeros(dim, dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        x = self.ln_final(x)
        x = x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
        return self.logit_scale.exp() * x / x.norm(dim=-1, keepdim=True)


class CLIP(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16, heads: int = 2):
        self.token_embedding = nnx.Embed(13, dim, rngs=rngs)
        self.positional_embedding = nnx.Param(jnp.zeros((7, dim)))
        quick = lambda x: x * jax.nn.sigmoid(1.702 * x)  # noqa: E731
        self.blocks = nnx.List([GPTBlock(dim, heads, rngs, quick) for _ in range(2)])
        self.ln_final = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.text_projection = nnx.Param(jnp.zeros((dim, dim)))
        self.logit_scale = nnx.Param(jnp.zeros(()))

    def __call__(self, ids):
        position = self.positional_embedding[...]
        if self.has("rolled_position"):
            position = jnp.roll(position, 1, axis=0)
        x = self.token_embedding(ids) + position
        for block in self.blocks:
            x = block(x)
        x = self.ln_final(x)
        last = ids.argmax(-1) - (1 if self.has("token_before") else 0)
        if self.has("last_token"):
            last = jnp.full(len(ids), ids.shape[1] - 1)
        projection = self.text_projection[...]
        x = x[jnp.arange(len(x)), last] @ (projection.T if self.has("projection_T") else projection)
        scale = self.logit_scale[...]
        scale = scale if self.has("no_exp") else jnp.exp(scale)
        axis = 0 if self.has("norm_of_batch") else -1
        return scale * x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def _clip_ids() -> np.ndarray:
    """The last token of a text has the largest number."""
    found = ids(3, 7, vocabulary=12)
    found[[0, 1, 2], [4, 6, 2]] = 12
    return found


architecture("clip", TCLIP, CLIP, _clip_ids)


# ---------------------------------------------------------------------------- T5

_BUCKETS = 8


def bucket_of(distance: np.ndarray) -> np.ndarray:
    """Of keys minus queries; half of the buckets for keys to come, the far ones shared."""
    half = _BUCKETS // 2
    near = np.minimum(np.abs(distance), half - 1)
    return near + half * (distance > 0)


class TT5Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, x, bias):
        b, n, c = x.shape
        q, k, v = (
            f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, n, c))


class TT5Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.attn = TT5Attention(dim, heads)
        self.wi_0, self.wi_1 = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.wo = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x, bias):
        x = x + self.attn(self.norm1(x), bias)
        y = self.norm2(x)
        return x + self.wo(_tanh_gelu(self.wi_0(y)) * self.wi_1(y))


class TT5(nn.Module):
    def __init__(self, dim: int = 16, heads: int = 2):
        super().__init__()
        self.shared = nn.Embedding(13, dim)
        self.relative = nn.Embedding(_BUCKETS, heads)
        self.block = nn.ModuleList(TT5Block(dim, heads) for _ in range(2))
        self.final_norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(self, ids):
        n = torch.arange(ids.shape[1])
        bucket = torch.from_numpy(bucket_of((n[None] - n[:, None]).numpy()))
        bias = self.relative(bucket).permute(2, 0, 1)
        x = self.shared(ids)
        for block in self.block:
            x = block(x, bias)
        return F.linear(self.final_norm(x) * x.shape[-1] ** -0.5, self.shared.weight)


class T5Attention(Port):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.q, self.k, self.v, self.o = (
            nnx.Linear(dim, dim, use_bias=False, rngs=rngs) for _ in range(4)
        )
        self.heads = heads

    def __call__(self, x, bias):
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, self.heads, -1) for f in (self.q, self.k, self.v))
        if self.has("scaled"):
            q = q * q.shape[-1] ** -0.5
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if not self.has("no_bias"):
            scores = scores + bias
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.o(y.reshape(b, n, c))


class T5Block(Port):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.RMSNorm(dim, epsilon=1e-6, rngs=rngs)
        self.norm2 = nnx.RMSNorm(dim, epsilon=1e-6, rngs=rngs)
        self.attn = T5Attention(dim, heads, rngs)
        self.wi_0, self.wi_1 = (
            nnx.Linear(dim, 2 * dim, use_bias=False, rngs=rngs) for _ in range(2)
        )
        self.wo = nnx.Linear(2 * dim, dim, use_bias=False, rngs=rngs)

    def __call__(self, x, bias):
        x = x + self.attn(self.norm1(x), bias)
        y = self.norm2(x)
        gate, up = self.wi_0(y), self.wi_1(y)
        if self.has("gate_and_up"):
            gate, up = up, gate
        return x + self.wo((nnx.silu(gate) if self.has("silu") else nnx.gelu(gate)) * up)


class T5(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16, heads: int = 2):
        self.shared = nnx.Embed(13, dim, rngs=rngs)
        self.relative = nnx.Embed(_BUCKETS, heads, rngs=rngs)
        self.block = nnx.List([T5Block(dim, heads, rngs) for _ in range(2)])
        self.final_norm = nnx.RMSNorm(dim, epsilon=1e-6, rngs=rngs)

    def __call__(self, ids):
        n = np.arange(ids.shape[1])
        distance = n[None] - n[:, None]
        if self.has("query_minus_key"):
            distance = -distance
        bias = self.relative(jnp.asarray(bucket_of(distance))).transpose(2, 0, 1)
        if self.has("heads_flipped"):
            bias = bias[::-1]
        x = self.shared(ids)
        for block in self.block:
            x = block(x, bias)
        x = self.final_norm(x)
        return self.shared.attend(x if self.has("unscaled") else x * x.shape[-1] ** -0.5)


architecture("t5", TT5, T5, lambda: ids(2, 8, seed=1))
