"""More correct ports: operations, and how modules are called."""

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

import vit_jax.parity
from tests.parity.planted.base import clean, ids, redraw
from tests.parity.planted.clean import IMAGES, RNGS, conv, layer_norm, linear, made

# ---------------------------------------------------------------------------- maps


@clean("transposed convolution")
def _():
    up = (
        torch.nn.ConvTranspose2d(8, 6, 4, 2, 1),
        nnx.ConvTranspose(8, 6, (4, 4), 2, padding="SAME", transpose_kernel=True, rngs=RNGS),
    )
    call = lambda m, x: m.up(m.conv(x))  # noqa: E731
    return made({"conv": conv(), "up": up}, call, call, IMAGES)


@clean("depthwise and dilated convolutions")
def _():
    parts = {
        "first": conv(padding=2, dilation=2),
        "second": conv(8, 16, padding=1, groups=8),
        "third": conv(16, 8, padding=1, stride=2, groups=2),
    }
    call = lambda m, x: m.third(m.second(m.first(x)))  # noqa: E731
    return made(parts, call, call, IMAGES)


@clean("adaptive pooling")
def _():
    def ours(m, x):
        y = m.conv(x)
        b, h, w, c = y.shape
        return y.reshape(b, 2, h // 2, 3, w // 3, c).mean((2, 4))

    return made(
        {"conv": conv(padding=1)},
        lambda m, x: F.adaptive_avg_pool2d(m.conv(x), (2, 3)),
        ours,
        IMAGES,
    )


@clean("pooling without padding counted")
def _():
    return made(
        {"conv": conv()},
        lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, 1, count_include_pad=False),
        lambda m, x: nnx.avg_pool(
            m.conv(x), (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False
        ),
        IMAGES,
    )


@clean("resized up and down")
def _():
    def theirs(m, x):
        y = F.interpolate(m.conv(x), (11, 14), mode="bilinear", align_corners=False)
        return F.interpolate(y, (4, 6), mode="bilinear", antialias=True)

    def ours(m, x):
        y = jax.image.resize(m.conv(x), (2, 11, 14, 8), "bilinear")
        return jax.image.resize(y, (2, 4, 6, 8), "bilinear")

    return made({"conv": conv()}, theirs, ours, IMAGES)


@clean("pixels shuffled both ways")
def _():
    def ours(m, x):
        b, h, w, c = x.shape
        y = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        y = m.conv(y.reshape(b, h // 2, w // 2, 4 * c))
        y = y.reshape(b, h // 2, w // 2, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return y.reshape(b, h, w, 2)

    return made(
        {"conv": conv(12, 8, padding=1)},
        lambda m, x: F.pixel_shuffle(m.conv(F.pixel_unshuffle(x, 2)), 2),
        ours,
        IMAGES,
    )


@clean("convolution of three axes")
def _():
    part = (
        torch.nn.Conv3d(1, 4, 3, padding=1),
        nnx.Conv(1, 4, (3, 3, 3), padding=1, rngs=RNGS),
    )
    # An input of three axes, folded into a volume.
    return made(
        {"conv": part, "fc": linear(4, 5)},
        lambda m, x: m.fc(m.conv(x.reshape(2, 1, 3, 4, 4)).mean((2, 3, 4))),
        lambda m, x: m.fc(m.conv(x.reshape(2, 3, 4, 4, 1)).mean((1, 2, 3))),
    )


# ---------------------------------------------------------------------------- operations


@clean("sorted, gathered and summed up")
def _():
    def theirs(m, x):
        y = m.fc(x)
        order = y.mean(-1).argsort(-1)
        y = y.gather(1, order[..., None].expand_as(y)).cumsum(1)
        return m.head(y.flip(1))

    def ours(m, x):
        y = m.fc(x)
        order = y.mean(-1).argsort(-1)
        y = jnp.cumsum(jnp.take_along_axis(y, order[..., None], 1), axis=1)
        return m.head(y[:, ::-1])

    return made({"fc": linear(), "head": linear()}, theirs, ours)


@clean("einsum over four axes")
def _():
    def call(m, x, xp):
        y = m.fc(x).reshape(2, 6, 2, 4)
        z = xp.einsum("bnhd,bmhe->bhde", y, y)
        return m.head(xp.einsum("bnhd,bhde->bnhe", y, z).reshape(2, 6, 8))

    return made(
        {"fc": linear(), "head": linear()},
        lambda m, x: call(m, x, torch),
        lambda m, x: call(m, x, jnp),
    )


@clean("Fourier mixing")
def _():
    return made(
        {"norm": layer_norm(), "fc": linear()},
        lambda m, x: m.fc(m.norm(x + torch.fft.fft2(x, dim=(1, 2)).real)),
        lambda m, x: m.fc(m.norm(x + jnp.fft.fft2(x, axes=(1, 2)).real)),
    )


@clean("experts chosen by their scores")
def _():
    def theirs(m, x):
        score = m.router(x).softmax(-1)
        best, which = score.topk(2, -1)
        kept = torch.zeros_like(score).scatter(-1, which, best / best.sum(-1, keepdim=True))
        outs = torch.stack((m.a(x), m.b(x), m.c(x)), -1)
        return (outs * kept[..., None, :]).sum(-1)

    def ours(m, x):
        score = jax.nn.softmax(m.router(x))
        best, which = jax.lax.top_k(score, 2)
        best = best / best.sum(-1, keepdims=True)
        kept = (jax.nn.one_hot(which, 3, dtype=x.dtype) * best[..., None]).sum(-2)
        outs = jnp.stack((m.a(x), m.b(x), m.c(x)), -1)
        return (outs * kept[..., None, :]).sum(-1)

    parts = {"router": linear(8, 3), "a": linear(), "b": linear(), "c": linear()}
    return made(parts, theirs, ours)


@clean("logarithms, PReLU and a clamp")
def _():
    return made(
        {"fc": linear(), "act": (torch.nn.PReLU(), _PReLU())},
        lambda m, x: F.log_softmax(m.act(m.fc(x)).clamp(-0.5, 1.0), -1),
        lambda m, x: jax.nn.log_softmax(jnp.clip(m.act(m.fc(x)), -0.5, 1.0)),
    )


@clean("hard sigmoid")
def _():
    """PyTorch's own derivative of it has a sixth that is rounded to float32, in float64 too."""
    return made(
        {"fc": linear()},
        lambda m, x: x * F.hardsigmoid(m.fc(x)),
        lambda m, x: x * jax.nn.hard_sigmoid(m.fc(x)),
    )


class _PReLU(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.full((1,), 0.25))

    def __call__(self, x):
        return jnp.where(x >= 0, x, self.weight[...] * x)


# ---------------------------------------------------------------------------- calls


@clean("a module called twice")
def _():
    return made(
        {"fc": linear(), "norm": layer_norm()},
        lambda m, x: m.fc(F.silu(m.fc(m.norm(x)))) + m.norm(2 * x),
        lambda m, x: m.fc(nnx.silu(m.fc(m.norm(x)))) + m.norm(2 * x),
    )


@clean("modules in a sequence")
def _():
    parts = {
        "layers": (
            torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 8)),
            nnx.List(
                [
                    nnx.Linear(8, 8, rngs=RNGS),
                    _Gelu(),
                    nnx.Linear(8, 8, rngs=RNGS),
                ]
            ),
        )
    }

    def ours(m, x):
        for layer in m.layers:
            x = layer(x)
        return x

    return made(parts, lambda m, x: m.layers(x), ours)


class _Gelu(nnx.Module):
    def __call__(self, x):
        return nnx.gelu(x, approximate=False)


@clean("the sequence before the batch")
def _():
    def theirs(m, x):
        y = m.norm(x.transpose(0, 1))
        return (y + m.fc(y)).transpose(0, 1)

    def ours(m, x):
        y = m.norm(x)
        return y + m.fc(y)

    return made({"norm": layer_norm(), "fc": linear()}, theirs, ours)


@clean("an Identity on a value used twice")
def _():
    parts = {"fc": linear(), "skip": (torch.nn.Identity(), _Identity())}

    def call(m, x):
        y = m.fc(x)
        return m.skip(y) * y + m.skip(x)

    return made(parts, call, call)


class _Identity(nnx.Module):
    def __call__(self, x):
        return x


class TTied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(13, 8), torch.nn.Linear(8, 13, bias=False)
        self.norm = torch.nn.LayerNorm(8)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.embed(x)).cumsum(1))


class Tied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(13, 8, rngs=RNGS)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=RNGS)

    def __call__(self, x):
        return self.embed.attend(jnp.cumsum(self.norm(self.embed(x)), 1))


@clean("a head tied to the embedding")
def _():
    reference, model = redraw(TTied()), Tied()
    arrays = {n: t.detach().numpy() for n, t in reference.state_dict().items()}
    del arrays["head.weight"]
    vit_jax.load_state_dict(model, arrays)
    return model, reference, ids(2, 6)


@clean("trained", optimizer=vit_jax.parity.OptimizerSpec(steps=2))
def _():
    return made(
        {"fc": linear(), "head": linear(8, 5)},
        lambda m, x: m.head(F.silu(m.fc(x))).mean(1),
        lambda m, x: m.head(nnx.silu(m.fc(x))).mean(1),
    )
