"""Llama and GPT-NeoX: PyTorch modules and their ports, with rotary positions of both layouts."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, ids


class TRMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _angles(n: int, d: int, like: torch.Tensor, base: float = 1e4):
    frequency = base ** (-torch.arange(0, d, 2, dtype=like.dtype) / d)
    angle = torch.arange(n, dtype=like.dtype)[:, None] * frequency
    return angle.cos(), angle.sin()


def _by_halves(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _interleaved(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


class TLlamaAttention(nn.Module):
    def __init__(self, dim: int, heads: int, groups: int):
        super().__init__()
        d = dim // heads
        self.q_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(dim, groups * d, bias=False) for _ in range(2))
        self.d, self.share = d, heads // groups

    def forward(self, x):
        b, n, c = x.shape
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (p.view(b, n, -1, self.d).transpose(1, 2) for p in parts)
        cos, sin = _angles(n, self.d, x)
        q, k = _by_halves(q, cos, sin), _by_halves(k, cos, sin)
        k, v = (p.repeat_interleave(self.share, 1) for p in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, c))


class TLlamaMLP(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TLlamaLayer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = TRMSNorm(dim), TRMSNorm(dim)
        self.self_attn = TLlamaAttention(dim, 4, 2)
        self.mlp = TLlamaMLP(dim)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class TLlama(nn.Module):
    def __init__(self, dim: int = 16):
        super().__init__()
        self.embed_tokens = nn.Embedding(13, dim)
        self.layers = nn.ModuleList(TLlamaLayer(dim) for _ in range(2))
        self.norm = TRMSNorm(dim)
        self.lm_head = nn.Linear(dim, 13, bias=False)

    def forward(self, x):
        x = self.embed_tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class RMSNorm(Port):
    def __init__(self, dim: int):
        self.weight = nnx.Param(jnp.ones(dim))

    def __call__(self, x):
        eps = 1e-5 if self.has("eps_1e-5") else 1e-6
        weight = self.weight[...]
        if self.has("one_plus"):
            weight = 1 + weight
        if self.has("centred"):
            x = x - x.mean(-1, keepdims=True)
        square = jnp.square(x).mean(-1, keepdims=True)
        if self.has("eps_outside"):
            return weight * x / (jnp.sqrt(square) + eps)
        return weight * x * jax.lax.rsqrt(square + eps)


def rotate(x, base: float = 1e4, offset: int = 0, interleaved: bool = False, sign: int = 1):
    """Of (B, N, heads, d)."""
    n, d = x.shape[1], x.shape[-1]
    angle = sign * (jnp.arange(n)[:, None] + offset) * base ** (-jnp.arange(0, d, 2) / d)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


class LlamaAttention(Port):
    def __init__(self, dim: int, heads: int, groups: int, rngs: nnx.Rngs):
        d = dim // heads
        self.q_proj, self.o_proj = (
            nnx.Linear(dim, dim, use_bias=False, rngs=rngs) for _ in range(2)
        )
        self.k_proj, self.v_proj = (
            nnx.Linear(dim, groups * d, use_bias=False, rngs=rngs) for _ in range(2)
        )
        self.d, self.share = d, heads // groups

    def __call__(self, x):
        b, n, c = x.shape
        q, k, v = (f(x).reshape(b, n, -1, self.d) for f in (self.q_proj, self.k_proj, self.v_proj))
        settings = {
            "base": 5e5 if self.has("base_5e5") else 1e4,
            "interleaved": self.has("interleaved"),
            "sign": -1 if self.has("backwards") else 1,
        }
        q = rotate(q, **settings, offset=1 if self.has("query_from_one") else 0)
        if not self.has("key_unrotated"):
            k = rotate(k, **settings, offset=1 if self.has("key_from_one") else 0)
        if self.has("tiled"):
            k, v = (jnp.tile(p, (1, 1, self.share, 1)) for p in (k, v))
        else:
            k, v = (jnp.repeat(p, self.share, axis=2) for p in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.d**-0.5
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.o_proj(y.reshape(b, n, c))


class LlamaMLP(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.gate_proj, self.up_proj = (
            nnx.Linear(dim, 2 * dim, use_bias=False, rngs=rngs) for _ in range(2)
        )
        self.down_proj = nnx.Linear(2 * dim, dim, use_bias=False, rngs=rngs)

    def __call__(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.has("silu_of_up"):
            gate, up = up, gate
        if self.has("no_up"):
            return self.down_proj(nnx.silu(gate))
        return self.down_proj((nnx.gelu(gate) if self.has("gelu") else nnx.silu(gate)) * up)


class LlamaLayer(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim), RMSNorm(dim)
        self.self_attn = LlamaAttention(dim, 4, 2, rngs)
        self.mlp = LlamaMLP(dim, rngs)

    def __call__(self, x):
        y = x + self.self_attn(self.input_layernorm(x))
        z = self.post_attention_layernorm(x if self.has("norm_of_input") else y)
        return y + self.mlp(z)


class Llama(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.embed_tokens = nnx.Embed(13, dim, rngs=rngs)
        self.layers = nnx.List([LlamaLayer(dim, rngs) for _ in range(2)])
        self.norm = RMSNorm(dim)
        self.lm_head = nnx.Linear(dim, 13, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.embed_tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


architecture("llama", TLlama, Llama, lambda: ids(2, 8, seed=2))


# ---------------------------------------------------------------------------- GPT-NeoX

_ROTARY = 4  # of the 8 channels of a head


class TNeoXAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.query_key_value(x).view(b, n, self.heads, 3 * (c // self.heads))
        q, k, v = qkv.transpose(1, 2).chunk(3, -1)
        cos, sin = _angles(n, _ROTARY, x)
        q, k = (
            torch.cat((_interleaved(p[..., :_ROTARY], cos, sin), p[..., _ROTARY:]), -1)
            for p in (q, k)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dense(y.transpose(1, 2).reshape(b, n, c))


class TNeoXLayer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(dim)
        self.post_attention_layernorm = nn.LayerNorm(dim)
        self.attention = TNeoXAttention(dim, 2)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        y = self.attention(self.input_layernorm(x))
        return x + y + self.down(F.gelu(self.up(self.post_attention_layernorm(x))))


class TNeoX(nn.Module):
    def __init__(self, dim: int = 16):
        super().__init__()
        self.embed_in = nn.Embedding(13, dim)
        self.layers = nn.ModuleList(TNeoXLayer(dim) for _ in range(2))
        self.final_layer_norm = nn.LayerNorm(dim)
        self.embed_out = nn.Linear(dim, 13, bias=False)

    def forward(self, x):
        x = self.embed_in(x)
        for layer in self.layers:
            x = layer(x)
        return self.embed_out(self.final_layer_norm(x))


class NeoXAttention(Port):
    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.query_key_value = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.dense = nnx.Linear(dim, dim, rngs=rngs)
        self.heads = heads

    def __call__(self, x):
        b, n, c = x.shape
        qkv = self.query_key_value(x)
        if self.has("three_first"):
            q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.heads, -1), 2, 0)
        else:
            q, k, v = jnp.split(qkv.reshape(b, n, self.heads, -1), 3, -1)
        size = q.shape[-1] if self.has("whole") else _ROTARY
        settings = {
            "interleaved": not self.has("halves"),
            "base": 1e3 if self.has("base_1e3") else 1e4,
        }
        q, k = (
            jnp.concatenate((rotate(p[..., :size], **settings), p[..., size:]), -1) for p in (q, k)
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.dense(y.reshape(b, n, c))


class NeoXLayer(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.input_layernorm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.post_attention_layernorm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.attention = NeoXAttention(dim, 2, rngs)
        self.up = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.down = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x):
        y = x + self.attention(self.input_layernorm(x))
        z = self.post_attention_layernorm(y if self.has("in_sequence") else x)
        return y + self.down(nnx.gelu(self.up(z), approximate=self.has("tanh")))


class NeoX(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 16):
        self.embed_in = nnx.Embed(13, dim, rngs=rngs)
        self.layers = nnx.List([NeoXLayer(dim, rngs) for _ in range(2)])
        self.final_layer_norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.embed_out = nnx.Linear(dim, 13, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.embed_in(x)
        for layer in self.layers:
            x = layer(x)
        return self.embed_out(self.final_layer_norm(x))


architecture("neox", TNeoX, NeoX, lambda: ids(2, 8, seed=3))
