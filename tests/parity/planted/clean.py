"""Correct ports: every architecture, and parts that a comparison could mistake for faults."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from tests.parity.planted.base import ARCHITECTURES, CLEAN, build, carry, clean, normal, redraw
from tests.parity.planted.base import Clean as _Clean
from tests.parity.ports import Jax, Torch, Unbiased

RNGS = nnx.Rngs(0)
TOKENS = normal(2, 6, 8)
IMAGES = normal(2, 8, 12, 3)
Made = tuple[nnx.Module, torch.nn.Module, Any]


def register_architectures() -> None:
    for name in ARCHITECTURES:
        settings = ARCHITECTURES[name].settings
        CLEAN[name] = _Clean(name, functools.partial(build, name), settings)
    for name in ("llama", "gpt", "swin", "convnext", "resnet", "unet"):
        settings = {**ARCHITECTURES[name].settings, "precisions": ("bfloat16",)}
        title = f"{name} in bfloat16"
        CLEAN[title] = _Clean(title, functools.partial(build, name), settings)


def made(
    parts: Mapping[str, tuple[torch.nn.Module, nnx.Module]],
    theirs: Callable[[Any, Any], Any],
    ours: Callable[[Any, Any], Any],
    inputs: Any = TOKENS,
) -> Made:
    """Both sides of equal parts, and what each does with them."""
    reference = redraw(Torch({name: part for name, (part, _) in parts.items()}, theirs))
    model = Jax(ours, **{name: part for name, (_, part) in parts.items()})
    carry(model, reference)
    model.eval()
    return model, reference, inputs


def linear(in_dim: int = 8, out_dim: int = 8) -> tuple[torch.nn.Module, nnx.Module]:
    return torch.nn.Linear(in_dim, out_dim), nnx.Linear(in_dim, out_dim, rngs=RNGS)


def layer_norm(dim: int = 8) -> tuple[torch.nn.Module, nnx.Module]:
    return torch.nn.LayerNorm(dim), nnx.LayerNorm(dim, epsilon=1e-5, rngs=RNGS)


def conv(in_dim: int = 3, out_dim: int = 8, size: int = 3, **settings: Any) -> tuple[Any, Any]:
    """`padding` and `stride` as PyTorch's."""
    ours = nnx.Conv(
        in_dim,
        out_dim,
        (size, size),
        settings.get("stride", 1),
        padding=settings.get("padding", 0),
        kernel_dilation=settings.get("dilation", 1),
        feature_group_count=settings.get("groups", 1),
        rngs=RNGS,
    )
    return torch.nn.Conv2d(in_dim, out_dim, size, **settings), ours


# ---------------------------------------------------------------------------- attention


def _heads(y: Any) -> list[Any]:
    """(B, N, 24) to q, k, v of (B, N, 2, 4); on both sides."""
    parts = (y[..., 8 * i : 8 * i + 8] for i in range(3))
    return [part.reshape(*y.shape[:2], 2, 4) for part in parts]


def _attention(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Made:
    """Both are given q, k, v: PyTorch's (B, heads, N, d), ours (B, N, heads, d)."""

    def torch_call(m, x):
        q, k, v = (part.transpose(1, 2) for part in _heads(m.qkv(x)))
        return m.proj(theirs(q, k, v).transpose(1, 2).reshape(x.shape))

    def jax_call(m, x):
        return m.proj(ours(*_heads(m.qkv(x))).reshape(x.shape))

    return made({"qkv": linear(8, 24), "proj": linear()}, torch_call, jax_call)


@clean("dot_product_attention")
def _():
    return _attention(F.scaled_dot_product_attention, jax.nn.dot_product_attention)


@clean("dot_product_attention, causal")
def _():
    return _attention(
        functools.partial(F.scaled_dot_product_attention, is_causal=True),
        functools.partial(jax.nn.dot_product_attention, is_causal=True),
    )


@clean("dot_product_attention, mask and bias")
def _():
    mask, bias = normal(6, 6, seed=3) > -1, normal(6, 6, seed=4)

    def theirs(q, k, v):
        added = torch.from_numpy(np.where(mask, bias, -np.inf)).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, added)

    def ours(q, k, v):
        added = jnp.asarray(bias, q.dtype)[None, None]
        return jax.nn.dot_product_attention(q, k, v, bias=added, mask=jnp.asarray(mask)[None, None])

    return _attention(theirs, ours)


def _by_hand(q: Any, k: Any, v: Any, edit: Callable[[Any], Any]) -> Any:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", edit(scores), v)


@clean("masks of -inf and of bool")
def _():
    lower = np.tril(np.ones((6, 6), bool))

    def theirs(q, k, v):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(torch.from_numpy(~lower), -math.inf).softmax(-1) @ v

    return _attention(
        theirs, lambda q, k, v: _by_hand(q, k, v, lambda s: jax.nn.softmax(s, where=lower))
    )


@clean("mask of -1e4 for -inf")
def _():
    lower = np.tril(np.ones((6, 6), bool))
    return _attention(
        functools.partial(F.scaled_dot_product_attention, is_causal=True),
        lambda q, k, v: _by_hand(
            q, k, v, lambda s: jax.nn.softmax(s + jnp.where(lower, 0.0, -1e4))
        ),
    )


@clean("softmax in float32 on both sides")
def _():
    def theirs(q, k, v):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v

    def softmax(scores):
        return jax.nn.softmax(scores.astype(jnp.float32)).astype(scores.dtype)

    return _attention(theirs, lambda q, k, v: _by_hand(q, k, v, softmax))


class TSelf(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.attn(x, x, x, need_weights=False)[0])


class Self(nnx.Module):
    def __init__(self):
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=RNGS)
        self.fc = nnx.Linear(8, 8, rngs=RNGS)

    def __call__(self, x):
        return self.fc(self.attn(x))


@clean("nnx.MultiHeadAttention")
def _():
    reference, model = redraw(TSelf()), Self()
    arrays = {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
    parts = zip(
        (model.attn.query, model.attn.key, model.attn.value),
        np.split(arrays["attn.in_proj_weight"], 3),
        np.split(arrays["attn.in_proj_bias"], 3),
        strict=True,
    )
    for module, weight, bias in parts:
        module.kernel.set_value(jnp.asarray(weight.T.reshape(8, 2, 4)))
        module.bias.set_value(jnp.asarray(bias.reshape(2, 4)))
    model.attn.out.kernel.set_value(jnp.asarray(arrays["attn.out_proj.weight"].T.reshape(2, 4, 8)))
    model.attn.out.bias.set_value(jnp.asarray(arrays["attn.out_proj.bias"]))
    model.fc.kernel.set_value(jnp.asarray(arrays["fc.weight"].T))
    model.fc.bias.set_value(jnp.asarray(arrays["fc.bias"]))
    return model, reference, TOKENS


@clean("rotary tables in float32 on both sides")
def _():
    frequency = (1e4 ** (-np.arange(0, 4, 2) / 4)).astype(np.float32)

    def torch_turn(x):  # (B, heads, N, d)
        angle = torch.arange(6, dtype=torch.float32)[:, None] * torch.from_numpy(frequency)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def turn(x):  # (B, N, heads, d)
        angle = jnp.arange(6, dtype=jnp.float32)[:, None] * frequency
        cos, sin = (f(angle).astype(x.dtype)[:, None] for f in (jnp.cos, jnp.sin))
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), -1)

    return _attention(
        lambda q, k, v: F.scaled_dot_product_attention(torch_turn(q), torch_turn(k), v),
        lambda q, k, v: _by_hand(turn(q), turn(k), v, jax.nn.softmax),
    )


# ---------------------------------------------------------------------------- norms


class TWide(torch.nn.Module):
    """A norm that computes in float32 whatever it is given."""

    def __init__(self, centred: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))
        self.centred = centred

    def forward(self, x):
        y = x.float()
        if self.centred:
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Wide(nnx.Module):
    def __init__(self, centred: bool):
        self.weight = nnx.Param(jnp.ones(8))
        self.centred = centred

    def __call__(self, x):
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
        return self.weight[...] * y.astype(x.dtype)


@clean("RMSNorm in float32 on both sides")
def _():
    parts = {"norm": (TWide(False), Wide(False)), "fc": linear()}
    call = lambda m, x: x + m.fc(m.norm(x))  # noqa: E731
    return made(parts, call, call)


@clean("LayerNorm in float32 on both sides")
def _():
    parts = {"norm": (TWide(True), Wide(True)), "fc": linear()}
    call = lambda m, x: x + m.fc(m.norm(x))  # noqa: E731
    return made(parts, call, call)


@clean("GroupNorm")
def _():
    norm = torch.nn.GroupNorm(2, 8), nnx.GroupNorm(8, 2, epsilon=1e-5, rngs=RNGS)
    call = lambda m, x: m.norm(m.conv(x))  # noqa: E731
    return made({"conv": conv(), "norm": norm}, call, call, IMAGES)


@clean("InstanceNorm")
def _():
    norm = torch.nn.InstanceNorm2d(8, affine=True), nnx.InstanceNorm(8, epsilon=1e-5, rngs=RNGS)
    call = lambda m, x: m.norm(m.conv(x))  # noqa: E731
    return made({"conv": conv(), "norm": norm}, call, call, IMAGES)


def _batch_norm_pair() -> Made:
    norm = (
        torch.nn.BatchNorm2d(8),
        Unbiased(8, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=RNGS),
    )
    return made(
        {"conv": conv(), "norm": norm},
        lambda m, x: F.relu(m.norm(m.conv(x))),
        lambda m, x: nnx.relu(m.norm(m.conv(x))),
        IMAGES,
    )


@clean("BatchNorm in eval mode")
def _():
    return _batch_norm_pair()


@clean("BatchNorm in train mode", needs="train_mode", mode="train")
def _():
    model, reference, inputs = _batch_norm_pair()
    model.train()
    return model, reference.train(), inputs


class TWeightNorm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.v = (torch.nn.Parameter(torch.ones(8, n)) for n in (1, 8))

    def forward(self, x):
        return F.linear(x, self.g * self.v / self.v.norm(dim=1, keepdim=True))


class WeightNorm(nnx.Module):
    def __init__(self):
        self.g, self.v = nnx.Param(jnp.ones((8, 1))), nnx.Param(jnp.ones((8, 8)))

    def __call__(self, x):
        weight = self.g[...] * self.v[...]
        return x @ (weight / jnp.linalg.norm(self.v[...], axis=1, keepdims=True)).T


@clean("weight norm")
def _():
    call = lambda m, x: m.fc(x)  # noqa: E731
    return made({"fc": (TWeightNorm(), WeightNorm())}, call, call)


@clean("layers without arrays")
def _():
    parts = {
        "fc": linear(),
        "norm": (
            torch.nn.LayerNorm(8, elementwise_affine=False),
            nnx.LayerNorm(8, epsilon=1e-5, use_bias=False, use_scale=False, rngs=RNGS),
        ),
        "dropout": (torch.nn.Dropout(0.3), nnx.Dropout(0.3, rngs=nnx.Rngs(0))),
    }
    call = lambda m, x: m.dropout(m.norm(m.fc(x)))  # noqa: E731
    return made(parts, call, call)


# ---------------------------------------------------------------------------- outputs and inputs


class Answer(NamedTuple):
    logits: Any
    hidden: Any
    ids: Any


@clean("NamedTuple of three")
def _():
    def theirs(m, x):
        y = m.fc(x)
        return Answer(m.head(y.tanh()), y, y.argmax(-1))

    def ours(m, x):
        y = m.fc(x)
        return Answer(m.head(jnp.tanh(y)), y, y.argmax(-1))

    return made({"fc": linear(), "head": linear(8, 5)}, theirs, ours)


@clean("dict in a dict")
def _():
    def call(m, x):
        y = m.fc(x)
        return {"logits": m.head(y), "aux": {"hidden": y, "double": 2 * y}}

    return made({"fc": linear(), "head": linear(8, 5)}, call, call)


class TTwo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.kv = torch.nn.Linear(8, 8), torch.nn.Linear(5, 8)

    def forward(self, x, context, scale=1.0):
        scores = self.q(x) @ self.kv(context).transpose(1, 2)
        return scale * scores.softmax(-1) @ context


class Two(nnx.Module):
    def __init__(self):
        self.q, self.kv = nnx.Linear(8, 8, rngs=RNGS), nnx.Linear(5, 8, rngs=RNGS)

    def __call__(self, x, context, scale=1.0):
        scores = self.q(x) @ self.kv(context).swapaxes(1, 2)
        return scale * jax.nn.softmax(scores) @ context


def _two(inputs: Any) -> Made:
    reference, model = redraw(TTwo()), Two()
    carry(model, reference)
    return model, reference, inputs


@clean("two inputs", needs="several_inputs")
def _():
    return _two((TOKENS, normal(2, 4, 5)))


@clean("keyword inputs", needs="several_inputs")
def _():
    return _two({"x": TOKENS, "context": normal(2, 4, 5)})
