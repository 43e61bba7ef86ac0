"""One layer against its fixture of stored PyTorch outputs and gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vit_jax
from tests import golden
from tests.golden import weights
from tests.parity import compare

# What the layers take beside their sizes.
SETTINGS: dict[str, Any] = {"kernel_init": nnx.initializers.zeros, "rngs": nnx.Rngs(0)}


def types(dtype: Any, param_dtype: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "param_dtype": dtype if param_dtype is None else param_dtype}


def abstract(kind: Callable[..., nnx.Module], *sizes: int, **fields: Any) -> Any:
    """A layer without arrays, for weights to be loaded."""
    return nnx.eval_shape(lambda: kind(*sizes, **{**SETTINGS, "rngs": nnx.Rngs(0)}, **fields))


def load(name: str, layer: nnx.Module, dtype: Any) -> tuple[golden.Golden, jax.Array]:
    """Gives the layer the fixture's weights; returns the fixture and its input."""
    fixture = golden.load(name)
    vit_jax.load_state_dict(layer, fixture.params)
    source = fixture.spec["input"]
    return fixture, jnp.asarray(weights.make_input(source["shape"], source["seed"]), dtype)


def assert_equals_fixture(name: str, layer: nnx.Module, dtype: Any) -> None:
    """Output and gradients: float64 to 1e-12 of their rms, float32 within ten noise floors."""
    fixture, x = load(name, layer, dtype)
    spec, arrays = fixture.spec, fixture.arrays
    direction = weights.make_param("cotangent", arrays["output_f64"].shape, spec["param_seed"])
    direction = jnp.asarray(direction, dtype)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def differentiate(params, x):
        def value(params, x):
            output = nnx.merge(graph, params, rest)(x)
            return (output * direction).sum(), output

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, x)

    (_, output), (grads, input_grad) = differentiate(params, x)
    named = vit_jax.state_dict(nnx.merge(graph, grads, rest))
    names = spec["grad_names"]
    assert set(names) == set(named) - set(spec["non_trainable"])
    got = {"output": output, "input_grad": input_grad}
    want = {"output": arrays["output_f64"], "input_grad": arrays["input_grad"]}
    exact = dtype == jnp.float64
    noise = spec["noise_f32_vs_f64"]
    scales = {k: compare.rms(v) if exact else noise[k]["max_abs"] for k, v in want.items()}
    for index, key in enumerate(names):
        size, l2 = named[key].size, arrays["grad_l2"][index]
        got[key], want[key] = compare.first8(named[key]), arrays["grad_first8"][index]
        got[f"{key} l2"], want[f"{key} l2"] = compare.norm(named[key]), l2
        scales[key] = l2 / np.sqrt(size) if exact else noise["grad_first8"]["max_abs"]
        scales[f"{key} l2"] = l2 if exact else noise["grad_l2"]["max_abs"]
    tolerance = compare.FLOAT64 if exact else compare.NOISE_FLOORS
    compare.assert_close(got, want, scales, tolerance)
