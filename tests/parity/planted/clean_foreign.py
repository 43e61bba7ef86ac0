"""Correct ports of Linen and of Equinox."""

import importlib
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.ad_checkpoint import checkpoint_name

import vit_jax.parity
from tests.parity.planted.base import clean, redraw
from tests.parity.planted.clean import IMAGES, TOKENS


def _sequential(**parts: torch.nn.Module) -> torch.nn.Module:
    return redraw(torch.nn.Sequential(OrderedDict(parts)))


def _arrays(module: torch.nn.Module) -> dict[str, Any]:
    return {name: jnp.asarray(t.detach().numpy()) for name, t in module.state_dict().items()}


@clean("Linen MLP", needs="linen")
def _():
    linen = importlib.import_module("flax.linen")

    class Mlp(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.LayerNorm(epsilon=1e-5, name="norm")(linen.Dense(8, name="fc1")(x))
            return linen.Dense(5, name="fc2")(linen.silu(x))

    reference = _sequential(
        fc1=torch.nn.Linear(8, 8),
        norm=torch.nn.LayerNorm(8),
        act=torch.nn.SiLU(),
        fc2=torch.nn.Linear(8, 5),
    )
    a = _arrays(reference)
    params = {
        "fc1": {"kernel": a["fc1.weight"].T, "bias": a["fc1.bias"]},
        "norm": {"scale": a["norm.weight"], "bias": a["norm.bias"]},
        "fc2": {"kernel": a["fc2.weight"].T, "bias": a["fc2.bias"]},
    }
    return vit_jax.parity.from_linen(Mlp(), {"params": params}), reference, TOKENS


@clean("Linen convolutions and BatchNorm", needs="linen")
def _():
    linen = importlib.import_module("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(8, (3, 3), 2, padding=1, name="conv")(x)
            x = linen.BatchNorm(use_running_average=True, epsilon=1e-5, name="norm")(x)
            return linen.Dense(5, name="head")(linen.relu(x).mean((1, 2)))

    reference = _sequential(
        conv=torch.nn.Conv2d(3, 8, 3, 2, 1),
        norm=torch.nn.BatchNorm2d(8),
        act=torch.nn.ReLU(),
        pool=torch.nn.AdaptiveAvgPool2d(1),
        flat=torch.nn.Flatten(),
        head=torch.nn.Linear(8, 5),
    )
    a = _arrays(reference)
    params = {
        "conv": {"kernel": a["conv.weight"].transpose(2, 3, 1, 0), "bias": a["conv.bias"]},
        "norm": {"scale": a["norm.weight"], "bias": a["norm.bias"]},
        "head": {"kernel": a["head.weight"].T, "bias": a["head.bias"]},
    }
    stats = {"norm": {"mean": a["norm.running_mean"], "var": a["norm.running_var"]}}
    variables = {"params": params, "batch_stats": stats}
    return vit_jax.parity.from_linen(Net(), variables), reference, IMAGES


@clean("Equinox MLP", needs="equinox")
def _():
    eqx = importlib.import_module("equinox")

    class Mlp(eqx.Module):
        fc1: Any
        norm: Any
        fc2: Any

        def __call__(self, x):  # (N, D)
            y = jax.vmap(lambda token: self.norm(self.fc1(token)))(x)
            return jax.vmap(self.fc2)(jax.nn.silu(y))

    reference = _sequential(
        fc1=torch.nn.Linear(8, 8),
        norm=torch.nn.LayerNorm(8),
        act=torch.nn.SiLU(),
        fc2=torch.nn.Linear(8, 5),
    )
    a, key = _arrays(reference), jax.random.key(0)
    model = Mlp(eqx.nn.Linear(8, 8, key=key), eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 5, key=key))
    model = eqx.tree_at(
        lambda m: (
            [getattr(m, p).weight for p in ("fc1", "norm", "fc2")]
            + [getattr(m, p).bias for p in ("fc1", "norm", "fc2")]
        ),
        model,
        [a[f"{part}.{leaf}"] for leaf in ("weight", "bias") for part in ("fc1", "norm", "fc2")],
    )
    return vit_jax.parity.from_equinox(model), reference, TOKENS


@clean("Equinox convolutions", needs="equinox")
def _():
    eqx = importlib.import_module("equinox")

    class Net(eqx.Module):
        conv: Any
        head: Any

        def __call__(self, x):  # (C, H, W)
            return self.head(jax.nn.relu(self.conv(x)).mean((1, 2)))

    reference = _sequential(
        conv=torch.nn.Conv2d(3, 8, 3, 2, 1),
        act=torch.nn.ReLU(),
        pool=torch.nn.AdaptiveAvgPool2d(1),
        flat=torch.nn.Flatten(),
        head=torch.nn.Linear(8, 5),
    )
    a, key = _arrays(reference), jax.random.key(0)
    model = Net(eqx.nn.Conv2d(3, 8, 3, 2, 1, key=key), eqx.nn.Linear(8, 5, key=key))
    model = eqx.tree_at(
        lambda m: (m.conv.weight, m.conv.bias, m.head.weight, m.head.bias),
        model,
        (
            a["conv.weight"],
            a["conv.bias"].reshape(-1, 1, 1),
            a["head.weight"],
            a["head.bias"],
        ),
    )
    return vit_jax.parity.from_equinox(model), reference, IMAGES


def _in_train_mode(library: str) -> Any:
    modes = importlib.import_module("tests.parity.train_mode_ports")
    reference = redraw(modes.reference()).train()
    return modes.PORTS[library](reference, kind=modes.UNBIASED[library]), reference, modes.IMAGES


@clean("Linen BatchNorm in train mode", needs="linen", mode="train")
def _():
    return _in_train_mode("linen")


@clean("Equinox BatchNorm in train mode", needs="equinox", mode="train")
def _():
    return _in_train_mode("equinox")


@clean("a function that names its values")
def _():
    reference = _sequential(
        fc1=torch.nn.Linear(8, 8),
        norm=torch.nn.LayerNorm(8),
        act=torch.nn.SiLU(),
        fc2=torch.nn.Linear(8, 5),
    )

    @jax.checkpoint
    def apply(p, x):
        x = checkpoint_name(x @ p["fc1.weight"].T + p["fc1.bias"], "fc1")
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        x = checkpoint_name(x * p["norm.weight"] + p["norm.bias"], "norm")
        x = checkpoint_name(jax.nn.silu(x), "act")
        return x @ p["fc2.weight"].T + p["fc2.bias"]

    return vit_jax.parity.JaxFunction(apply, _arrays(reference)), reference, TOKENS
