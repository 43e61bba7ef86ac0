"""The token performer and its linear attention."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests import golden
from tests.layers.primitives import SETTINGS, abstract, assert_equals_fixture, load, types
from tests.models import calls
from tests.models.families import rms
from tests.tiers import mostly_slow
from vit_jax.layers.attention import Attention
from vit_jax.layers.initializers import zeros
from vit_jax.layers.performer import (
    EPS,
    LinearAttention,
    TokenPerformer,
    linear_attention,
    random_features,
)
from vit_jax.layers.variables import Frozen

attend = jax.jit(linear_attention, static_argnames="eps")
FIXTURES = ["prim_token_performer", "prim_token_performer_147_64", "prim_token_performer_eps"]


def performer(name: str, dtype: Any, **fields: Any) -> TokenPerformer:
    kwargs = golden.load(name).spec["kwargs"]
    fields |= {"kernel_ratio": kwargs["kernel_ratio"], "drop_rate": 0.1}
    return abstract(TokenPerformer, kwargs["dim"], kwargs["in_dim"], **types(dtype), **fields)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.usefixtures("x64")
def test_fixture_float64(name: str) -> None:
    assert_equals_fixture(name, performer(name, jnp.float64), jnp.float64)


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_float32(name: str) -> None:
    assert_equals_fixture(name, performer(name, jnp.float32), jnp.float32)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eps", mostly_slow([0.0, 1e-7], [0.0]))
def test_the_fixture_sees_the_denominators_epsilon(eps: float) -> None:
    name = "prim_token_performer_eps"
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        assert_equals_fixture(name, performer(name, jnp.float64, eps=eps), jnp.float64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", FIXTURES)
def test_linear_attention_of_stored_queries_keys_and_values(name: str) -> None:
    """The attention alone, between two stored steps of the layer."""
    fixture = golden.load(name)
    q, k, v, want = (jnp.asarray(fixture.arrays[part]) for part in ("q", "k", "v", "y"))
    got = attend(q, k, v, jnp.asarray(fixture.params["w"], q.dtype), eps=1e-8)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * rms(want))


def by_the_formula(q, k, v, w, eps):
    """With the matrix of all queries and keys."""
    q_features, k_features = (
        np.exp(x @ w.T - 0.5 * np.square(x).sum(-1, keepdims=True)) / math.sqrt(len(w))
        for x in (q, k)
    )
    weights = q_features @ k_features.swapaxes(-1, -2)
    return weights @ v / (weights.sum(-1, keepdims=True) + eps)


def draw(*shapes: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [scale * generator.normal(size=shape) for shape in shapes]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.3])
def test_linear_attention_is_its_formula(eps: float) -> None:
    """Any leading axes; as many queries, keys, features and widths as one likes."""
    arrays = draw((2, 3, 5, 6), (2, 3, 9, 6), (2, 3, 9, 4), (7, 6))
    want = by_the_formula(*arrays, eps)
    got = attend(*map(jnp.asarray, arrays), eps=eps)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * rms(want))


@pytest.mark.usefixtures("x64")
def test_linear_attention_estimates_softmax_attention() -> None:
    """The features' products are exp(q . k) in the mean: here of 100,000 directions."""
    q, k, v = draw((6, 3), (8, 3), (8, 3), scale=0.4)
    (w,) = draw((100_000, 3), seed=1)
    scores = np.exp(q @ k.T)
    want = scores / scores.sum(-1, keepdims=True) @ v
    got = attend(*map(jnp.asarray, (q, k, v, w)), eps=0.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=0.02 * rms(v))


def test_exponents_beyond_float32() -> None:
    """Features of e^150 (float32 ends at e^88), and of e^-150, where eps outweighs them."""
    q, k, v = draw((2, 4, 6), (2, 5, 6), (2, 5, 3))
    (w,) = draw((8, 6), seed=1)
    w *= math.sqrt(300) / np.linalg.norm(w, axis=-1, keepdims=True)
    for shift in (k + w[:1], k):  # at a direction, and not
        want = by_the_formula(q, shift, v, w, 1e-8)
        arrays = (x.astype(np.float32) for x in (q, shift, v, w))
        got = np.asarray(attend(*arrays, eps=1e-8))
        # An exponent of some hundreds is known to 2^-24 of itself: 1e-4 in the feature.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * rms(v))
    far = [x.astype(np.float32) for x in (100 * q, 100 * k, v, w / 7)]
    value, grads = jax.jit(
        jax.value_and_grad(
            lambda q, k, v, w: linear_attention(q, k, v, w, eps=1e-8).sum(), argnums=(0, 1, 2)
        )
    )(*far)
    assert value == 0  # the features vanish beside eps
    assert all(np.isfinite(grad).all() for grad in grads)


def test_no_matrix_of_queries_and_keys_is_formed() -> None:
    tokens, dim = 300, 8
    shape = jax.ShapeDtypeStruct((2, tokens, dim), jnp.float32)
    w = jax.ShapeDtypeStruct((dim, dim), jnp.float32)

    def value(q, k, v, w):
        return linear_attention(q, k, v, w, eps=1e-8).sum()

    jaxpr = jax.make_jaxpr(jax.grad(value, argnums=(0, 1, 2)))(shape, shape, shape, w)
    sizes = [math.prod(var.aval.shape) for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars]
    assert max(sizes) == 2 * tokens * dim


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_and_sums_are_wide(dtype: str) -> None:
    """Of the same half-precision inputs: float32's result, rounded once.

    Features of up to e^16 / sqrt(32): an exponent of 16 rounded to bfloat16 is off by up to 3e-2,
    and the feature by as much.
    """
    w = random_features(jax.random.key(0), 32, 64, jnp.float32)
    factors = np.linspace(0.6, 1.1, 128)[:, None]
    rows = np.asarray(w)[np.arange(128) % 32]
    (v,) = draw((128, 16))
    q, k, v = (jnp.asarray(x, dtype) for x in (factors[::-1] * rows, factors * rows, v))
    want = attend(*(x.astype(jnp.float32) for x in (q, k, v)), w, eps=1e-8)
    got = attend(q, k, v, w, eps=1e-8)
    assert got.dtype == jnp.dtype(dtype)
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=step, atol=1e-5)


def drawn(std: float) -> Callable[..., jax.Array]:
    """An initialiser without a compilation for each shape."""
    generator = np.random.default_rng(0)
    return lambda key, shape, dtype: jnp.asarray(std * generator.normal(size=shape), dtype)


def at_real_magnitudes(dtype: Any) -> tuple[TokenPerformer, jax.Array]:
    """A layer, and tokens of which each has a key and a query that equal a random feature.

    That gives the largest feature there is, e^(m / 2) / sqrt(m): 1.6e6 for the 32 of T2T.
    """
    dim, out_dim = 147, 64
    layer = TokenPerformer(
        dim,
        out_dim,
        drop_rate=0.0,
        kernel_init=drawn(0.02),
        rngs=nnx.Rngs(0),
        **types(dtype, jnp.float32),
    )
    # The normalised form of a unit vector has one value above and the rest below its mean.
    above, below = math.sqrt(dim - 1), -1 / math.sqrt(dim - 1)
    w = np.asarray(layer.w[...])
    rows = w[np.arange(dim) % len(w)] / (above - below)
    values = np.random.default_rng(0).normal(size=(dim, out_dim)) / (above - below)
    kernel = np.concatenate([rows, rows, values], axis=1)
    layer.kqv.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    layer.kqv.bias.set_value(jnp.asarray(-below * kernel.sum(axis=0), jnp.float32))
    return layer, jnp.asarray(np.eye(dim)[None], dtype)


@functools.cache
def differentiated(dtype: Any) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """The largest feature of a key, the outputs, and gradients."""
    layer, x = at_real_magnitudes(dtype)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    direction = np.random.default_rng(1).normal(size=(1, 147, 64)).astype(np.float32)

    def value(params):
        layer = nnx.merge(graph, params, rest)
        output = layer(x)
        found = layer.kqv(layer.norm1(x)), output
        return (output.astype(jnp.float32) * direction).sum(), found

    grads, (kqv, output) = jax.jit(jax.grad(value, has_aux=True))(params)
    key, w = np.split(np.asarray(kqv), 3, axis=-1)[0], np.asarray(layer.w[...])
    features = np.exp(key @ w.T - 0.5 * np.square(key).sum(-1, keepdims=True)) / math.sqrt(len(w))
    named = vit_jax.state_dict(nnx.merge(graph, grads, rest))
    return features.max(), np.asarray(output), named


@pytest.mark.usefixtures("promoting")
@pytest.mark.xdist_group("performer at real magnitudes")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_at_real_magnitudes(dtype: str) -> None:
    """Finite and within 3e-2 of float32, gradients included."""
    largest, want, want_grads = differentiated(jnp.float32)
    assert 1.5e6 < largest < 1.7e6
    _, got, grads = differentiated(jnp.dtype(dtype))
    assert got.dtype == jnp.dtype(dtype)
    assert np.abs(got.astype(np.float32) - want).max() < 3e-2 * rms(want)
    for name, grad in want_grads.items():
        assert rms(grads[name] - grad) < 3e-2 * rms(grad), name


def test_random_features() -> None:
    """Orthogonal, of length sqrt(m), frozen, in param_dtype, different for another key."""
    w = np.asarray(random_features(jax.random.key(0), 32, 64, jnp.float32))
    np.testing.assert_allclose(w @ w.T, 32 * np.eye(32), rtol=0, atol=2e-4)
    assert not np.allclose(w, random_features(jax.random.key(1), 32, 64, jnp.float32))
    layer = TokenPerformer(9, 7, drop_rate=0.0, **SETTINGS, **types(jnp.float32, jnp.bfloat16))
    assert isinstance(layer.w, Frozen)
    assert layer.w.shape == (3, 7)
    assert layer.w.dtype == jnp.bfloat16


def test_dropouts_of_the_layer() -> None:
    """After the attention's projection and after the MLP; neither without a key."""
    name = "prim_token_performer"
    kwargs = golden.load(name).spec["kwargs"]
    dims = kwargs["dim"], kwargs["in_dim"]
    plain, half = (
        abstract(TokenPerformer, *dims, drop_rate=rate, **types(jnp.float32)) for rate in (0.0, 0.5)
    )
    _, x = load(name, plain, jnp.float32)
    load(name, half, jnp.float32)

    @jax.jit
    def run(plain, half):
        key, v = calls.dropout_key(0), jnp.split(plain.kqv(plain.norm1(x)), 3, axis=-1)[2]
        return v, plain(x), half(x), plain(x, key=key), half(x, key=key)

    def fill(variable: nnx.Variable, value: float) -> None:
        variable.set_value(jnp.full_like(variable[...], value))

    _, want, *same, _ = run(plain, half)
    for outputs in same:
        np.testing.assert_array_equal(outputs, want)
    for layer in (plain, half):  # leaves v + drop(proj(y))
        fill(layer.mlp_fc2.kernel, 0.0)
        fill(layer.mlp_fc2.bias, 0.0)
    v, *_, branch, dropped = map(np.asarray, run(plain, half))
    branch, dropped = branch - v, dropped - v
    kept = np.abs(dropped) > 1e-5
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(dropped[kept], 2 * branch[kept], rtol=0, atol=1e-5)
    for layer in (plain, half):  # leaves v + drop(the MLP's bias)
        fill(layer.proj.kernel, 0.0)
        fill(layer.proj.bias, 0.0)
        fill(layer.mlp_fc2.bias, 1.0)
    *_, dropped = map(np.asarray, run(plain, half))
    values = dropped - v
    assert 0.4 < (values > 1).mean() < 0.6
    np.testing.assert_allclose(values, 2 * (values > 1), rtol=0, atol=1e-5)


BLOCK_ATTENTION: dict[str, Any] = {
    "qkv_bias": True,
    "qk_scale": None,
    "qk_norm": False,
    "norm_eps": 1e-6,
    "attn_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
    "bias_init": zeros,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_of_a_block_in_linear_time(qk_norm: bool) -> None:
    """The arguments and weights of softmax attention, and `w`."""
    fields = {**BLOCK_ATTENTION, "qk_norm": qk_norm, "qk_scale": 0.3, **types(jnp.float64)}
    softmax, linear = (
        kind(12, 3, **fields, kernel_init=drawn(0.1), rngs=nnx.Rngs(0))
        for kind in (Attention, LinearAttention)
    )
    weights = vit_jax.state_dict(softmax)
    w = vit_jax.state_dict(linear)["w"]
    vit_jax.load_state_dict(linear, {**weights, "w": w})
    np.testing.assert_allclose(w @ w.T, 4 * np.eye(4), rtol=0, atol=1e-12)
    x = jnp.asarray(draw((2, 10, 12))[0])
    qkv, got = jax.jit(lambda x: (softmax.qkv(x), linear(x)))(x)
    q, k, v = np.split(np.asarray(qkv), 3, axis=-1)
    q, k, v = (part.reshape(2, 10, 3, 4).transpose(0, 2, 1, 3) for part in (q, k, v))
    if qk_norm:
        q, k = (
            part / np.sqrt(part.var(-1, keepdims=True) + 1e-6)
            for part in (part - part.mean(-1, keepdims=True) for part in (q, k))
        )
    mixed = by_the_formula(q * 0.3**0.5, k * 0.3**0.5, v, w, EPS)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(2, 10, 12)
    want = mixed @ weights["proj.weight"].T + weights["proj.bias"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * rms(want))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_drop_rate": 0.1}, r"attn_drop_rate must be 0, got 0\.1"),
        ({"qk_scale": 0.0}, r"qk_scale must be .*above 0.*0\.0"),
        ({"qk_scale": -1.0}, r"qk_scale must be .*above 0.*-1"),
    ],
)
def test_linear_attention_cannot_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearAttention(12, 3, **{**BLOCK_ATTENTION, **fields}, **SETTINGS, **types(jnp.float32))


def test_no_features_at_all_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"token_dim \* kernel_ratio.*at least 1, got 0"):
        TokenPerformer(9, 1, drop_rate=0.0, **SETTINGS, **types(jnp.float32))
