"""Forms of the soft split, each with the LayerNorm and the Linear that follow it.

    python -m benchmarks.unfold

Prints milliseconds, forward and with the gradient, for the three soft splits of T2T-ViT at 224.
"folded" computes LayerNorm and Linear as convolutions of the image, so that the windows are never
written; its variance is E[x^2] - E[x]^2, which cancels where an image is flat, so it is measured
and not used.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import medians
from vit_jax.layers.unfold import unfold, window_grid

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Geometry = tuple[int, int, int]  # kernel, stride, padding


def _grid(x: jax.Array, geometry: Geometry) -> tuple[int, int]:
    kernel, stride, padding = geometry
    return window_grid(
        (x.shape[1], x.shape[2]), (kernel, kernel), (stride, stride), (padding, padding)
    )


def _both(padding: int) -> list[tuple[int, int]]:
    return [(padding, padding), (padding, padding)]


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, [(0, 0), *_both(padding), (0, 0)])


def _library(x: jax.Array, geometry: Geometry) -> jax.Array:
    kernel, stride, padding = geometry
    y = jax.lax.conv_general_dilated_patches(
        x, (kernel, kernel), (stride, stride), _both(padding), dimension_numbers=_LAYOUT
    )
    return y.reshape(x.shape[0], -1, y.shape[-1])


def _each_element(x: jax.Array, geometry: Geometry) -> jax.Array:
    kernel, stride, padding = geometry
    rows, columns = _grid(x, geometry)
    x = _pad(x, padding)
    parts = [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return jnp.stack(parts, axis=-1).reshape(x.shape[0], rows * columns, -1)


def _gather(x: jax.Array, geometry: Geometry) -> jax.Array:
    kernel, stride, padding = geometry
    rows, columns = _grid(x, geometry)
    x = _pad(x, padding)
    within = np.arange(kernel)
    x = x[:, np.arange(rows)[:, None] * stride + within]
    x = x[:, :, :, np.arange(columns)[:, None] * stride + within]
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(x.shape[0], rows * columns, -1)


def _ours(x: jax.Array, geometry: Geometry) -> jax.Array:
    kernel, stride, padding = geometry
    return unfold(x, (kernel, kernel), (stride, stride), (padding, padding))


_FORMS = {
    "rows, then columns (ours)": _ours,
    "a slice an element": _each_element,
    "gather": _gather,
    "conv_general_dilated_patches": _library,
}


def _normed_linear(form: Callable[..., jax.Array], geometry: Geometry) -> Callable[..., jax.Array]:
    def call(x, scale, bias, kernel):
        x = form(x, geometry)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias) @ kernel

    return call


def _folded(geometry: Geometry) -> Callable[..., jax.Array]:
    size, stride, padding = geometry

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), _both(padding), dimension_numbers=_LAYOUT
        )

    def call(x, scale, bias, kernel):
        channels, features = x.shape[-1], x.shape[-1] * size * size
        weights = (scale[:, None] * kernel).reshape(channels, size, size, -1).transpose(1, 2, 0, 3)
        ones = jnp.full((size, size, 1, 1), 1 / features)
        mean = convolve(x.sum(axis=-1, keepdims=True), ones)
        variance = convolve(jnp.square(x).sum(axis=-1, keepdims=True), ones) - jnp.square(mean)
        y = convolve(x, weights) - mean * weights.sum(axis=(0, 1, 2))
        y = y * jax.lax.rsqrt(variance + 1e-5) + bias @ kernel
        return y.reshape(x.shape[0], -1, y.shape[-1])

    return call


def main(batch: int = 16, rounds: int = 9) -> None:
    generator = np.random.default_rng(0)
    for side, channels, geometry, width in (
        (224, 3, (7, 4, 2), 192),
        (56, 64, (3, 2, 1), 192),
        (28, 64, (3, 2, 1), 384),
    ):
        features = channels * geometry[0] ** 2
        x, kernel = (
            jnp.asarray(generator.normal(size=shape), jnp.float32)
            for shape in ((batch, side, side, channels), (features, width))
        )
        arguments = (x, jnp.ones(features), jnp.zeros(features), kernel)
        nets = {name: _normed_linear(form, geometry) for name, form in _FORMS.items()}
        nets["folded"] = _folded(geometry)
        calls = {}
        for name, net in nets.items():
            gradient = jax.grad(lambda *a, net=net: jnp.square(net(*a)).sum(), argnums=(0, 1, 2, 3))
            for what, function in (("forward", jax.jit(net)), ("gradient", jax.jit(gradient))):
                calls[f"{name}: {what}"] = lambda f=function, a=arguments: f(*a)
        print(f"batch {batch}, {side}x{side}x{channels}, window {geometry[0]}, ms:")
        for name, seconds in medians(calls, rounds).items():
            print(f"  {1e3 * seconds:8.1f}  {name}")


if __name__ == "__main__":
    main()
