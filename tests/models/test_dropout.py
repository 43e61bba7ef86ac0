"""Dropout, attention dropout and stochastic depth: rates, scaling, keys, train and eval mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.models import calls
from tests.models.families import FAMILIES, build, drops, images, shallow
from tests.models.train_mode import assert_all_differ, dropped_units
from tests.tiers import mostly_slow
from vit_jax.layers.attention import Attention
from vit_jax.layers.dropout import Dropout, drop_path, drop_path_rates

KEY = jax.random.key(0)


def logits(model: nnx.Module, seed: int | None = None) -> np.ndarray:
    """All outputs, (outputs, images, classes)."""
    key = None if seed is None else calls.dropout_key(seed)
    return np.stack(jax.tree.leaves(calls.logits(model, images(batch=8), key)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    n = 100_000
    x = np.full(n, 3, np.float32)
    dropped = np.asarray(jax.jit(Dropout(rate))(x, KEY))
    assert set(np.unique(dropped)) == {0.0, np.float32(3) / np.float32(1 - rate)}
    standard_error = np.sqrt(rate * (1 - rate) / n)
    assert abs(np.mean(dropped == 0) - rate) < 5 * standard_error
    assert abs(dropped.mean() / 3 - 1) < 5 * standard_error / (1 - rate)


def test_drop_path_drops_whole_examples_and_keeps_the_mean() -> None:
    n, rate = 20_000, 0.3
    x = np.random.default_rng(0).normal(size=(n, 2, 3)).astype(np.float32) + 2
    dropped = np.asarray(jax.jit(drop_path, static_argnums=1)(x, rate, KEY))
    gone = np.all(dropped == 0, axis=(1, 2))
    np.testing.assert_allclose(dropped[~gone], x[~gone] / (1 - rate), rtol=1e-6)
    standard_error = np.sqrt(rate * (1 - rate) / n)
    assert abs(gone.mean() - rate) < 5 * standard_error


def test_attention_dropout_acts_on_the_weights() -> None:
    """With values of one, an output is the sum of the weights that are left: one in the mean."""
    tokens, rate = 64, 0.25
    attention = Attention(
        2,
        1,
        qkv_bias=True,
        qk_scale=None,
        qk_norm=False,
        norm_eps=1e-6,
        attn_drop_rate=rate,
        proj_drop_rate=0.0,
        kernel_init=nnx.initializers.zeros,
        bias_init=nnx.initializers.zeros,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    attention.qkv.bias.set_value(jnp.ones(6))
    attention.proj.kernel.set_value(jnp.eye(2))
    x = jnp.zeros((300, tokens, 2))
    whole, dropped = jax.jit(lambda x: (attention(x), attention(x, key=calls.dropout_key(0))))(x)
    np.testing.assert_allclose(whole, 1.0, rtol=1e-6)
    sums = np.asarray(dropped)[..., 0]
    variance = rate / (1 - rate) / tokens  # of `tokens` weights of 1 / tokens
    assert abs(sums.mean() - 1) < 5 * np.sqrt(variance / sums.size)
    assert sums.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_linear_decay_rule(depth: int) -> None:
    want = torch.linspace(0, 0.3, depth, dtype=torch.float64).numpy()
    np.testing.assert_allclose(drop_path_rates(0.3, depth), want, rtol=1e-12)


def test_blocks_are_dropped_by_the_linear_decay_rule() -> None:
    """Of three blocks at a last rate of one half: none, a quarter, a half."""
    model = build("vit", drop_path_rate=0.5)
    assert model.drop_path_rates == pytest.approx((0.0, 0.25, 0.5))
    # A dropped example leaves a branch out: the last block then is the identity on it.
    n = 2000
    x = np.random.default_rng(0).normal(size=(n, 3, 8)).astype(np.float32)

    @jax.jit
    def run(x):
        """Each block alone."""
        key, pairs = calls.dropout_key(7), zip(model.blocks, model.drop_path_rates, strict=True)
        return [block(x, drop_path_rate=rate, key=key) for block, rate in pairs]

    for out, rate in zip(run(x), model.drop_path_rates, strict=True):
        untouched = np.mean(np.all(np.asarray(out) == x, axis=(1, 2)))
        both = rate**2
        assert abs(untouched - both) <= 5 * np.sqrt(both * (1 - both) / n)


RATES = [(family, field) for family in FAMILIES for field in drops(family)]
FAST = [*[("vit", field) for field in drops("vit")], ("t2t transformer", "token_drop_rate")]


@functools.cache
def without_dropout(family: str) -> np.ndarray:
    model = build(family, **shallow(family))
    model.eval()
    return logits(model)


@pytest.mark.parametrize(("family", "field"), mostly_slow(RATES, FAST))
def test_each_rate_is_used_in_train_mode(family: str, field: str) -> None:
    model = build(family, **shallow(family), **{field: 0.5})
    with pytest.raises(ValueError, match=r"dropout in train mode.*rngs"):
        logits(model)
    first, again, other = logits(model, 0), logits(model, 0), logits(model, 1)
    np.testing.assert_array_equal(first, again)
    assert np.all(first != other, axis=-1).any()
    assert not np.array_equal(first[0], without_dropout(family)[0])
    model.eval()
    model.train()
    np.testing.assert_array_equal(logits(model, 0), first)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["vit", "t2t transformer"]))
def test_no_rate_is_used_in_eval_mode(family: str) -> None:
    model = build(family, **shallow(family), **drops(family))
    model.eval()
    np.testing.assert_array_equal(logits(model), without_dropout(family))
    np.testing.assert_array_equal(logits(model, 0), without_dropout(family))


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, ["vit", "distilled"]))
def test_train_mode_without_rates_needs_no_rngs(family: str) -> None:
    trained = logits(build(family, **shallow(family))).mean(axis=0)
    np.testing.assert_allclose(trained, without_dropout(family)[0], rtol=1e-6, atol=1e-6)


def test_head_dropout_leaves_the_features_alone() -> None:
    model = build("vit", head_drop_rate=0.5)
    features = calls.features(model, images(), calls.dropout_key(0))
    model.eval()
    np.testing.assert_array_equal(features, calls.features(model, images()))


def test_dropouts_of_a_call_are_independent() -> None:
    """One key for all would drop the same units in every layer."""
    model = build("vit", drop_rate=0.5, depth=2)
    masks = dropped_units(model, images())
    same_shape = [mask for mask in masks if mask.shape == masks[0].shape]
    assert len(same_shape) == 5  # positions, then attention and MLP of two blocks
    assert_all_differ(same_shape)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
@pytest.mark.parametrize(
    "field", ["drop_rate", "attn_drop_rate", "drop_path_rate", "head_drop_rate"]
)
def test_impossible_rates_are_errors(field: str, rate: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be at least 0 and below 1.*{rate}"):
        build("vit", **{field: rate})
