"""Forms of the same numbers for one platform."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.layers.linear import Linear, WideLinear
from vit_jax.layers.target import compiler_options, end_fusion, tracing_for
from vit_jax.models.registry import abstract_model

SHAPES = [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5)]


@pytest.mark.parametrize("kind", [Linear, WideLinear])
def test_linear_is_the_same_on_every_platform(kind):
    layer, generator = kind(5, 7, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]

    def loss(layer, x):
        outputs = layer(x)
        return jnp.sin(outputs).sum(), outputs

    def run(layer, arrays, platform):
        with tracing_for(platform):
            differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
            return [differentiate(layer, x) for x in arrays]

    found, wanted = (jax.jit(run, static_argnums=2)(layer, arrays, on) for on in ("cpu", "tpu"))
    chex.assert_trees_all_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert [outputs.shape for (_, outputs), _ in found] == [(*shape[:-1], 7) for shape in SHAPES]


def _lines(depth: int, platform: str) -> int:
    """Of the compiled gradient of a model."""
    model = abstract_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=depth,
        num_heads=2,
        num_classes=3,
    )
    graph, state = nnx.split(model)

    def loss(state, x):
        with tracing_for(platform):
            return nnx.merge(graph, state)(x).sum()

    gradient = jax.jit(jax.grad(loss), compiler_options=compiler_options(platform))
    return len(
        gradient.lower(state, np.zeros((2, 16, 16, 3), np.float32)).compile().as_text().splitlines()
    )


def test_gradients_of_residual_branches_are_summed_once():
    """The program grows as the depth does (1.8 times); without the barriers it was 2.2 times."""
    assert _lines(6, "cpu") < 2 * _lines(3, "cpu")


def test_only_a_cpu_gets_rows_barriers_and_options():
    layer, x = Linear(5, 7, rngs=nnx.Rngs(0)), jnp.zeros((2, 3, 5))

    def traced(platform):
        with tracing_for(platform):
            return str(jax.make_jaxpr(lambda x: end_fusion(layer(x)))(x))

    assert "f32[6,5]" in traced("cpu")  # the tokens of both images
    assert "optimization_barrier" in traced("cpu")
    for platform in ("tpu", "gpu"):
        assert "f32[6,5]" not in traced(platform)
        assert "optimization_barrier" not in traced(platform)
        assert compiler_options(platform) is None
