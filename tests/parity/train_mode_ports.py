"""A network with BatchNorm and dropout, and its ports to Linen and to Equinox, in either mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen

from vit_jax.parity import from_equinox, from_linen

eqx: Any = pytest.importorskip("equinox")

IMAGES = np.random.default_rng(0).normal(size=(4, 5, 6, 3))
N = 4 * 5 * 6


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(6)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        return self.head(x.mean((2, 3)))


class Unbiased(linen.Module):
    """Written by hand, with PyTorch's running variance."""

    use_running_average: bool
    momentum: float = 0.9
    use_fast_variance: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1]
        scale, bias = (
            self.param(name, make, (size,))
            for name, make in (
                ("scale", linen.initializers.ones),
                ("bias", linen.initializers.zeros),
            )
        )
        kept = [self.variable("batch_stats", name, jnp.zeros, (size,)) for name in ("mean", "var")]
        mean, var = (variable.value for variable in kept)
        if not self.use_running_average:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new = (mean, var * N / (N - 1))
            for variable, value in zip(kept, new, strict=True):
                variable.value = self.momentum * variable.value + (1 - self.momentum) * value
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


class LinenNet(linen.Module):
    kind: Any = linen.BatchNorm
    momentum: float = 0.9
    rate: float = 0.5

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = linen.Conv(6, (3, 3), padding=1, name="conv")(x)
        settings = {"momentum": self.momentum, "use_fast_variance": False, "name": "bn"}
        x = linen.relu(self.kind(use_running_average=not train, **settings)(x))
        x = linen.Dropout(self.rate, name="drop")(x, deterministic=not train)
        return linen.Dense(5, name="head")(x.mean((1, 2)))


class EquinoxUnbiased(eqx.nn.BatchNorm):
    def __call__(self, x: Any, state: Any, **keywords: Any) -> Any:
        assert self.batch_state_index is not None
        _, old = state.get(self.batch_state_index)
        y, state = super().__call__(x, state, **keywords)
        mean, var = state.get(self.batch_state_index)
        kept = self.momentum * old
        return y, state.set(self.batch_state_index, (mean, kept + (var - kept) * N / (N - 1)))


class EquinoxNet(eqx.Module):
    conv: Any
    bn: Any
    drop: Any
    head: Any

    def __init__(self, kind: Any = eqx.nn.BatchNorm, rate: float = 0.5, **norm: Any):
        key = jax.random.key(0)
        self.conv = eqx.nn.Conv2d(3, 6, 3, padding=1, key=key)
        self.bn = kind(6, "batch", **{"momentum": 0.9, "mode": "batch", **norm})
        self.drop = eqx.nn.Dropout(rate)
        self.head = eqx.nn.Linear(6, 5, key=key)

    def __call__(self, x: jax.Array, state: Any) -> Any:
        x, state = self.bn(self.conv(x), state)
        return self.head(self.drop(jax.nn.relu(x)).mean((1, 2))), state


def linen_port(reference: torch.nn.Module, train: bool = True, **fields: Any) -> Any:
    module = LinenNet(**fields)
    variables = module.init(jax.random.key(0), IMAGES.astype("float32"), train=False)
    return from_linen(module, variables, train=train).load(reference.state_dict())


def equinox_port(reference: torch.nn.Module, train: bool = True, **fields: Any) -> Any:
    module, state = eqx.nn.make_with_state(EquinoxNet)(**fields)
    module = eqx.nn.inference_mode(module, not train)
    return from_equinox(module, state=state).load(reference.state_dict())


PORTS = {"linen": linen_port, "equinox": equinox_port}
UNBIASED = {"linen": Unbiased, "equinox": EquinoxUnbiased}


def reference() -> TorchNet:
    torch.manual_seed(0)
    return TorchNet()
