"""One function, many forms: jit, vmap, remat, scanned layers, half precision."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.models.families import DESIGNS, FAMILIES, build, drops, has_field, images, rms
from tests.tiers import mostly_slow

FORMS = {
    "remat blocks": {"remat": "blocks"},
    "remat dots": {"remat": "dots"},
    "scan": {"scan_layers": True},
    "scan and remat": {"scan_layers": True, "remat": "blocks"},
}


def differentiate(model: Any, batch: jax.Array) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Train-mode outputs with dropout from a fixed key, and the gradient of their squares."""
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, batch):
        def loss(params):
            # The default generator of random bits takes most of the time that XLA compiles.
            rngs = nnx.Rngs(dropout=jax.random.key(3, impl="unsafe_rbg"))
            outputs = nnx.merge(graph, params, rest)(batch, rngs=rngs)
            outputs = jnp.stack(jax.tree.leaves(outputs))
            return jnp.square(outputs).sum(), outputs

        return jax.grad(loss, has_aux=True)(params)

    grads, outputs = run(params, batch)
    return np.asarray(outputs), vit_jax.state_dict(nnx.merge(graph, grads, rest))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family", mostly_slow(DESIGNS, ["vit", "t2t performer"]))
def test_remat_and_scan_equal_the_plain_form(family: str) -> None:
    """State dict bits, outputs with and without dropout, and gradients, in float64 to 1e-13."""
    batch = images(jnp.float64, batch=6)  # so many that no block is dropped for all of them

    def everything(**form: Any):
        size = {"depth": 2} if has_field(family, "depth") else {"block_config": (1, 1)}
        model = build(family, jnp.float64, **size, **drops(family), **form)
        model.eval()
        evaluated = model(batch)
        return vit_jax.state_dict(model), evaluated, *differentiate(model, batch)

    plain = everything()
    assert rms(plain[1] - plain[2][0]) > 1e-3  # dropout was active
    for form, fields in FORMS.items():
        if not all(has_field(family, field) for field in fields):
            continue  # dense stages are of no one width, and cannot be scanned
        weights, evaluated, trained, grads = everything(**fields)
        assert weights.keys() == plain[0].keys(), form
        chex.assert_trees_all_equal(weights, plain[0])
        chex.assert_trees_all_close(evaluated, plain[1], rtol=0, atol=1e-13 * rms(plain[1]))
        chex.assert_trees_all_close(trained, plain[2], rtol=0, atol=1e-13 * rms(plain[2]))
        unit = max(rms(grad) for grad in plain[3].values())
        chex.assert_trees_all_close(grads, plain[3], rtol=0, atol=1e-13 * unit)


@pytest.mark.parametrize("family", ["t2t se", "t2t ghost"])
def test_blocks_with_other_parts_can_be_scanned(family: str) -> None:
    plain, scanned = build(family), build(family, scan_layers=True)
    weights = vit_jax.state_dict(plain)
    assert vit_jax.state_dict(scanned).keys() == weights.keys()
    chex.assert_trees_all_equal(vit_jax.state_dict(scanned), weights)
    want, got = (np.asarray(jax.jit(model)(images())) for model in (plain, scanned))
    tolerance = 20 * float(jnp.finfo(jnp.float32).eps) * rms(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", DESIGNS)
def test_jit_and_vmap_equal_the_eager_call(family: str) -> None:
    """Float32: the forms order their sums differently, by a few units in the last place."""
    model, batch = build(family), images()
    model.eval()
    eager = np.asarray(model(batch))
    tolerance = 20 * float(jnp.finfo(jnp.float32).eps) * rms(eager)
    np.testing.assert_allclose(jax.jit(model)(batch), eager, rtol=0, atol=tolerance)
    one_by_one = jax.jit(jax.vmap(lambda image: model(image[None])[0]))(batch)
    np.testing.assert_allclose(one_by_one, eager, rtol=0, atol=tolerance)
    groups = jax.jit(jax.vmap(model))(jnp.stack([batch, batch[::-1]]))
    np.testing.assert_allclose(groups, [eager, eager[::-1]], rtol=0, atol=tolerance)


@functools.cache
def of_float32(family: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return differentiate(build(family), images())


def in_one_process(family: str) -> pytest.MarkDecorator:
    """For tests that share what `of_float32` keeps."""
    return pytest.mark.xdist_group(f"forms of {family}")


@pytest.mark.parametrize("family", [pytest.param(f, marks=in_one_process(f)) for f in FAMILIES])
def test_gradients_are_finite_and_none_is_lost(family: str) -> None:
    outputs, grads = of_float32(family)
    assert np.isfinite(outputs).all()
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
        assert np.any(grad), name


# Six times as wide as the others: its worst gradient, of the four weights of a norm, is off by 22
# steps in bfloat16 and by 17 in float16, whose step is an eighth. So it is rounding.
GRADIENT_STEPS = {"t2t se": 32}


FAST_HALVES = [("vit", "bfloat16"), ("vit", "float16"), ("t2t performer", "bfloat16")]


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, marks=[in_one_process(family), *marks])
        for dtype, families in (("bfloat16", FAMILIES), ("float16", DESIGNS))
        for family in families
        for marks in [[] if (family, dtype) in FAST_HALVES else [pytest.mark.slow]]
    ],
)
def test_half_precision_compute(family: str, dtype: str) -> None:
    """Float32 parameters, half the precision: outputs and gradients within a few roundings."""
    batch = images()
    full = build(family)
    half = build(family, dtype, param_dtype=jnp.float32)
    chex.assert_trees_all_equal(vit_jax.state_dict(half), vit_jax.state_dict(full))
    outputs, grads = of_float32(family)
    half_outputs, half_grads = differentiate(half, batch)
    assert half_outputs.dtype == jnp.dtype(dtype)
    step = float(jnp.finfo(dtype).eps)
    worst = np.max(np.abs(half_outputs.astype(np.float32) - outputs)) / rms(outputs)
    assert 0 < worst < 8 * step
    for name, grad in grads.items():
        assert half_grads[name].dtype == np.float32
        error = rms(half_grads[name] - grad) / max(rms(grad), 1e-2 * rms(outputs))
        assert error < GRADIENT_STEPS.get(family, 16) * step, name


@pytest.mark.usefixtures("promoting")
def test_compute_dtype_is_used_inside() -> None:
    """A float16 model whose hidden layers ran in float32 would round at the end alone."""
    model, batch = build("vit", "float16", param_dtype=jnp.float32), images()
    model.eval()
    assert model.forward_features(batch).dtype == jnp.float16
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, batch)
    products = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert {e.invars[0].aval.dtype.name for e in products} == {"float16"}


def test_unknown_remat_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"remat.*none.*blocks.*dots.*'all'"):
        build("vit", remat="all")
