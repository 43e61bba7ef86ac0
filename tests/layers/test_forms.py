"""Forms of the same numbers for one platform."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.layers.forms import compiler_options, eval_graph, set_form
from vit_jax.layers.linear import Linear, WideLinear
from vit_jax.layers.stack import PlainLayers, collect_outputs, run_layers, stack_layers
from vit_jax.models.registry import abstract_model

SHAPES = [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5)]


@pytest.mark.parametrize("kind", [Linear, WideLinear])
def test_linear_is_the_same_on_every_platform(kind):
    layer, generator = kind(5, 7, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]

    def loss(layer, x):
        outputs = layer(x)
        return jnp.sin(outputs).sum(), outputs

    @jax.jit
    def run(layer, arrays):
        differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return [differentiate(layer, x) for x in arrays]

    def run_on(platform):
        set_form(layer, platform)
        return [
            (value, nnx.state(gradient), of_x) for value, (gradient, of_x) in run(layer, arrays)
        ]

    found, wanted = run_on("cpu"), run_on("tpu")
    chex.assert_trees_all_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert [outputs.shape for (_, outputs), *_ in found] == [(*shape[:-1], 7) for shape in SHAPES]


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
    graph, state = eval_graph(model, platform), nnx.state(model)

    def loss(state, x):
        return nnx.merge(graph, state)(x).sum()

    gradient = jax.jit(jax.grad(loss), compiler_options=compiler_options(platform))
    return len(
        gradient.lower(state, np.zeros((2, 16, 16, 3), np.float32)).compile().as_text().splitlines()
    )


def test_gradients_of_residual_branches_are_summed_once():
    """The program grows as the depth does (1.8 times); without the barriers it was 2.2 times."""
    assert _lines(6, "cpu") < 2 * _lines(3, "cpu")


class _Layer(nnx.Module):
    def __init__(self):
        self.linear = Linear(5, 5, rngs=nnx.Rngs(0))

    def __call__(self, x, *, drop_path_rate, key):
        return self.linear(x)


def test_only_a_cpu_gets_rows_barriers_and_options():
    model, x = PlainLayers([_Layer()]), jnp.zeros((2, 3, 5))

    def traced(model):
        def run(x):
            return run_layers(model, x, drop_path_rates=[0.0], key=None, remat="none")

        return str(jax.make_jaxpr(run)(x))

    set_form(model, "cpu")
    assert "f32[6,5]" in traced(model)  # the tokens of both images
    assert "optimization_barrier" in traced(model)
    for platform in ("tpu", "gpu"):
        set_form(model, platform)
        assert "f32[6,5]" not in traced(model)
        assert "optimization_barrier" not in traced(model)
        assert "layout_constraint" not in traced(model)
        assert compiler_options(platform) is None


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_the_order_in_memory_changes_no_number(scan, remat):
    """Of a run on a GPU, also where each device computes its part by itself."""
    stack = stack_layers([_Layer(), _Layer()], scan)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))

    def loss(x):
        rates, layers = [0.0, 0.0], nnx.merge(graph, state)
        same: dict[str, Any] = {"drop_path_rates": rates, "key": None, "remat": remat}
        found = collect_outputs(layers, x, [0, 1], **same)
        y = run_layers(layers, x, **same)
        return jnp.sin(y).sum() + sum(jnp.cos(z).sum() for z in found.values())

    differentiate = jax.value_and_grad(loss)
    rows = jax.sharding.PartitionSpec("data")

    def by_device(x):
        value, of_x = jax.shard_map(
            lambda x: jax.tree.map(lambda leaf: leaf[None], differentiate(x)),
            mesh=mesh,
            in_specs=rows,
            out_specs=rows,
            check_vma=False,
        )(x)
        return value[0], of_x[0]

    found = []
    for row_major in (False, True):
        set_form(stack, "gpu", row_major=row_major)
        graph, state = nnx.split(stack)
        compute = jax.jit(lambda x: (differentiate(x), by_device(x)))
        found.append(compute(x))
        assert ("layout_constraint" in str(jax.make_jaxpr(compute)(x))) == row_major
    chex.assert_trees_all_close(*found, rtol=1e-6, atol=1e-6)


def test_a_users_model_keeps_the_plain_form():
    model = abstract_model("vit_tiny_patch16_224", img_size=16, depth=1)
    plain = nnx.graphdef(model.eval() or model)
    assert eval_graph(model, "cpu") != plain
    assert eval_graph(model, "gpu") == plain
    assert eval_graph(model, "tpu") == plain
    assert nnx.graphdef(model) == plain
