"""A causal convolution over sequences, a quantised autoencoder and an MLP: modules and ports."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, normal


class TCausalBlock(nn.Module):
    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(dim, 2 * dim, 3, dilation=dilation)
        self.depthwise = nn.Conv1d(dim, dim, 4, groups=dim)
        self.out = nn.Linear(dim, dim)
        self.dilation = dilation

    def forward(self, x):
        y = self.conv(F.pad(x.transpose(1, 2), (2 * self.dilation, 0)))
        value, gate = y.chunk(2, 1)
        y = value.tanh() * gate.sigmoid()
        y = self.depthwise(F.pad(y, (3, 0))).transpose(1, 2)
        return x + self.out(y)


class TCausal(nn.Module):
    def __init__(self, dim: int = 8):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(dim))
        self.embed = nn.Linear(6, dim)
        self.blocks = nn.ModuleList(TCausalBlock(dim, dilation) for dilation in (1, 2))
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.embed(x)
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x = x + self.mix * (before - x)
        for block in self.blocks:
            x = block(x)
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.head(x.cumsum(1) / count)


class CausalBlock(Port):
    def __init__(self, dim: int, dilation: int, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            dim, 2 * dim, (3,), kernel_dilation=dilation, padding="VALID", rngs=rngs
        )
        self.depthwise = nnx.Conv(
            dim, dim, (4,), feature_group_count=dim, padding="VALID", rngs=rngs
        )
        self.out = nnx.Linear(dim, dim, rngs=rngs)
        self.dilation = dilation

    def __call__(self, x):
        size = 2 * self.dilation
        around = (size // 2, size // 2) if self.has("centred") else (size, 0)
        y = self.conv(jnp.pad(x, ((0, 0), around, (0, 0))))
        value, gate = jnp.split(y, 2, -1)
        if self.has("gate_first"):
            value, gate = gate, value
        y = jnp.tanh(value) * nnx.sigmoid(gate)
        around = (0, 3) if self.has("looks_ahead") else (3, 0)
        y = self.depthwise(jnp.pad(y, ((0, 0), around, (0, 0))))
        y = self.out(y)
        return x - y if self.has("subtracted") else x + y


class Causal(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 8):
        self.mix = nnx.Param(jnp.zeros(dim))
        self.embed = nnx.Linear(6, dim, rngs=rngs)
        self.blocks = nnx.List([CausalBlock(dim, dilation, rngs) for dilation in (1, 2)])
        self.head = nnx.Linear(dim, 5, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        before = jnp.roll(x, 1, axis=1)
        if not self.has("wraps"):
            before = before.at[:, 0].set(0)
        x = x + self.mix[...] * (before - x)
        for block in self.blocks:
            x = block(x)
        total = jnp.cumsum(x[:, ::-1], 1)[:, ::-1] if self.has("reversed") else jnp.cumsum(x, 1)
        if self.has("exclusive"):
            total = total - x
        return self.head(total / jnp.arange(1, x.shape[1] + 1)[:, None])


architecture("causal", TCausal, Causal, lambda: normal(2, 9, 6))


# ---------------------------------------------------------------------------- quantised


class TQuantised(nn.Module):
    """Its code is the nearest of a book, and its gradient passes straight through."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, dim), nn.Linear(dim, 5)
        self.gate = nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.zeros(1))
        self.codebook = nn.Parameter(torch.zeros(7, dim))

    def forward(self, x):
        x = F.gelu(self.encoder(x), approximate="tanh")
        x = x * (self.gate(x) * self.temperature.exp()).softmax(-1)
        code = self.codebook[torch.cdist(x, self.codebook).argmin(-1)]
        code = x + (code - x).detach()
        return self.decoder(code.clamp(-0.2, 0.2) + x.detach())


@jax.custom_vjp
def _gelu(x):
    return nnx.gelu(x)


def _gelu_backward(x, g):
    slope = jax.vmap(jax.grad(lambda y: nnx.gelu(y, approximate=False)))(x.ravel())
    return (g * slope.reshape(x.shape),)


_gelu.defvjp(lambda x: (nnx.gelu(x), x), _gelu_backward)


class Quantised(Port):
    def __init__(self, rngs: nnx.Rngs, dim: int = 8):
        self.encoder, self.decoder = nnx.Linear(6, dim, rngs=rngs), nnx.Linear(dim, 5, rngs=rngs)
        self.gate = nnx.Linear(dim, dim, rngs=rngs)
        self.temperature = nnx.Param(jnp.zeros(1))
        self.codebook = nnx.Param(jnp.zeros((7, dim)))

    def __call__(self, x):
        stop = jax.lax.stop_gradient
        x = self.encoder(x)
        x = _gelu(x) if self.has("erf_slope") else nnx.gelu(x)
        warmth = jnp.exp(self.temperature[...])
        weights = jax.nn.softmax(self.gate(x) * (stop(warmth) if self.has("cold") else warmth))
        x = x * (stop(weights) if self.has("gate_stopped") else weights)
        distance = jnp.square(x[..., None, :] - self.codebook[...]).sum(-1)
        code = self.codebook[...][distance.argmin(-1)]
        if not self.has("not_straight"):
            code = x + stop(code - x)
        kept = x if self.has("not_detached") else stop(x)
        clipped = jnp.clip(code, -0.2, 0.2)
        if self.has("straight_clip"):
            clipped = code + stop(clipped - code)
        return self.decoder(clipped + kept)


architecture("quantised", TQuantised, Quantised, lambda: normal(3, 4, 6))


# ---------------------------------------------------------------------------- an MLP to train


class TClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 5)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return self.fc2(F.silu(self.norm(self.fc1(x))))


class Classifier(Port):
    def __init__(self, rngs: nnx.Rngs):
        self.fc1, self.fc2 = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.fc2(nnx.silu(self.norm(self.fc1(x))))


architecture("classifier", TClassifier, Classifier, lambda: normal(4, 6))
