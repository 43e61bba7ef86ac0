"""Numbers of a GPU beside files of the CPU: a part of `benchmarks.on_gpu`."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.run import machine
from tests import golden
from tests.golden import Golden
from tests.parity import compare
from tests.parity.evaluation import Evaluation, Runner
from vit_jax.layers import attention
from vit_jax.layers.initializers import trunc_normal
from vit_jax.parity.values import rms

Figures = Iterator[dict[str, Any]]

# Of each text one, and T2T's two token modules.
FIXTURES = (
    "tiny_seed003",
    "tiny_timm_vit",
    "tiny_t2t_performer",
    "tiny_t2t_transformer",
)
# Name -> (matmul precision, type of the computation and of the parameters).
PRECISIONS = {
    "float32, highest": ("highest", jnp.float32),
    "float32, default": ("default", jnp.float32),  # TF32 on GPUs
    "bfloat16": ("default", jnp.bfloat16),
}


def numbers(small: bool) -> Figures:
    """Errors beside PyTorch in float64; see `_errors` and `_bias_gradients`."""
    yield {"machine": machine()}
    for name in FIXTURES[1:2] if small else FIXTURES:
        fixture = golden.load(name)
        for form, (precision, dtype) in PRECISIONS.items():
            if small and form == "float32, default":
                continue  # on a CPU the first
            with jax.default_matmul_precision(precision):
                found = Runner(fixture, fixture.build(dtype), dtype).evaluate()
            yield {f"{name}, {form}": _errors(fixture, found)}
    yield from _bias_gradients(*((1, 5, 64) if small else (8, 197, 384)))


def _errors(fixture: Golden, found: Evaluation) -> dict[str, float]:
    """Largest errors over the rms, and that of the logits over PyTorch's own float32 error."""
    want = fixture.arrays["logits_f64"]
    error = float(np.max(np.abs(np.asarray(found.logits, np.float64) - want)))
    first, l2 = fixture.arrays["grad_first8"], fixture.arrays["grad_l2"]
    got, wanted, scales = compare.by_parameter(found.gradients, fixture, first, l2)
    gradients = [
        float(np.max(np.abs(got[name] - wanted[name]))) / scale
        for name, scale in scales.items()
        if scale and not compare.is_key_bias(name)
    ]
    return {
        "logits": error / rms(want),
        "logits, in PyTorch's float32 errors": error / fixture.noise("logits"),
        "gradients": max(gradients),
        "loss": abs(found.loss / float(fixture.arrays["loss_f64"]) - 1),
    }


def _bias_gradients(batch: int, tokens: int, dim: int) -> Figures:
    """Error over the rms of the gradient of the bias of q, k and v, beside float32 and plain.

    Of cuDNN's attention in bfloat16 over an odd number of tokens, with what a padded token adds;
    on a CPU XLA stands in for cuDNN.
    """
    x = jax.random.normal(jax.random.key(0), (batch, tokens, dim))
    towards = jax.random.normal(jax.random.key(1), x.shape)

    def gradient(form: str, dtype: Any, spread: str = "jit") -> np.ndarray:
        graph, params = nnx.split(_attention(dim, form, dtype))

        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, params)(x).astype(jnp.float32) * towards)

        differentiate = jax.grad(loss)
        if spread == "jit":
            found = jax.jit(differentiate)(params, x)
        else:
            found = jax.pmap(differentiate, in_axes=(None, 0), devices=jax.devices()[:1])(
                params, x[None]
            )
        return np.asarray(found["qkv"]["bias"][...], np.float64).reshape(-1)

    with jax.default_matmul_precision("highest"):
        want = gradient("auto", jnp.float32)
    forms = {
        "plain": ("auto", jnp.bfloat16),
        "fused": ("fused", jnp.bfloat16),
        "fused, pmap": ("fused", jnp.bfloat16, "pmap"),
    }
    # That of the keys is zero but for rounding: it gets the scale of the queries'.
    scales = [rms(want[:dim]), rms(want[:dim]), rms(want[2 * dim :])]
    for name, arguments in forms.items():
        with _attention_of_this_device():
            errors = np.abs(gradient(*arguments) - want).reshape(3, dim).max(axis=1) / scales
        found = dict(zip("qkv", errors.tolist(), strict=True))
        yield {f"bias of q, k, v, {tokens} tokens, {name}": found}


def _attention(dim: int, form: str, dtype: Any) -> nnx.Module:
    module = attention.Attention(
        dim,
        dim // 64,
        qkv_bias=True,
        qk_scale=None,
        qk_norm=False,
        norm_eps=1e-6,
        attn_drop_rate=0.0,
        proj_drop_rate=0.0,
        kernel_init=trunc_normal(0.02),
        bias_init=nnx.initializers.normal(0.5),  # a token of padding gets it, too
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    module.form = form
    return module


def _attention_of_this_device() -> contextlib.AbstractContextManager[Any]:
    if jax.default_backend() == "gpu":
        return contextlib.nullcontext()
    stand_in = functools.partial(attention.fused_attention, implementation="xla")
    return mock.patch.object(attention, "fused_attention", stand_in)
