"""Features, heads and their replacement."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.models import calls
from tests.models.families import DESIGNS, build, has_field, images, named
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model

pytestmark = pytest.mark.xdist_group("heads")  # for what `answers` keeps
# The head of DeiT III is ViT's.
HEADS = mostly_slow(DESIGNS, [family for family in DESIGNS if family != "deit3"])
# 2x3 patches and the prefix; T2T makes one token of 8x12 pixels.
TOKENS = {"vit": 7, "distilled": 8, "deit3": 7, "classifier": 7}
# Dense: 8 + 4, half of it, + 4 + 4.
WIDTHS = {"t2t dense": 14}


def stripped(family: str) -> dict[str, Any]:
    """Fields by which a model is little more than its head."""
    if not has_field(family, "tokens_type"):
        return {"depth": 1}
    return {"tokens_type": "convolution"} | ({} if family == "t2t dense" else {"depth": 1})


def one_block(family: str, **fields: Any) -> Any:
    """A model in eval mode."""
    model = build(family, **stripped(family), **fields)
    model.eval()
    return model


def in_parts(model: Any, batch: jax.Array) -> tuple[jax.Array, ...]:
    """What the call, its two halves and the head without its last Linear give."""
    features = model.forward_features(batch)
    hidden = model.forward_head(features, pre_logits=True)
    return model(batch), features, model.forward_head(features), hidden


@functools.cache
def answers(family: str) -> list[np.ndarray]:
    found = calls.compiled(in_parts, one_block(family), images())
    return [np.asarray(part) for part in found]


@pytest.mark.parametrize("family", HEADS)
def test_the_call_is_features_then_head(family: str) -> None:
    """And `pre_logits` are the input of the last linear."""
    called, features, logits, hidden = answers(family)
    assert features.shape == (2, TOKENS.get(family, 2), WIDTHS.get(family, 8))
    np.testing.assert_array_equal(logits, called)
    weights = vit_jax.state_dict(one_block(family))
    if family == "distilled":  # timm: the mean of both tokens
        np.testing.assert_allclose(hidden, (features[:, 0] + features[:, 1]) / 2, rtol=1e-6)
        return
    head = "logits_layer" if family == "classifier" else "head"
    want = hidden @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
    np.testing.assert_allclose(want, called, rtol=1e-5, atol=1e-5)


def test_distilled_returns_both_in_train_and_the_mean_in_eval_mode() -> None:
    model = build("distilled", depth=1)
    cls, dist = calls.logits(model, images())
    chex.assert_shape((cls, dist), (2, 5))
    assert not np.allclose(cls, dist)
    model.eval()
    np.testing.assert_allclose(calls.logits(model, images()), (cls + dist) / 2, rtol=1e-6)
    model.train()
    assert isinstance(jax.eval_shape(model, images()), tuple)


@pytest.mark.parametrize("family", HEADS)
def test_reset_classifier(family: str) -> None:
    model = one_block(family)
    weights = vit_jax.state_dict(model)
    model.reset_classifier(num_classes=9, rngs=nnx.Rngs(5))
    assert jax.eval_shape(model, images()).shape == (2, 9)
    np.testing.assert_array_equal(calls.features(model, images()), answers(family)[1])
    after = vit_jax.state_dict(model)
    changed = {name for name in after if not np.array_equal(after[name], weights[name])}
    heads = ("head", "logits_layer")
    assert changed
    assert all(name.startswith(heads) for name in changed)
    assert after.keys() == weights.keys()
    assert {after[name].shape[0] for name in changed} == {9}
    if family == "distilled":
        assert {"head.weight", "head_dist.weight"} <= changed


@pytest.mark.parametrize("family", HEADS)
def test_no_classes_give_features(family: str) -> None:
    model = one_block(family)
    want = answers(family)[-1]
    model.reset_classifier(num_classes=0, rngs=nnx.Rngs(5))
    np.testing.assert_allclose(calls.logits(model, images()), want, rtol=1e-6)
    assert not any("head." in n or "logits_layer" in n for n in vit_jax.state_dict(model))
    fresh = one_block(family, num_classes=0)
    assert vit_jax.state_dict(fresh).keys() == vit_jax.state_dict(model).keys()
    assert jax.eval_shape(fresh, images()).shape == want.shape
    model.reset_classifier(num_classes=3, rngs=nnx.Rngs(5))  # and back
    assert jax.eval_shape(model, images()).shape == (2, 3)


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("family", HEADS)
def test_a_replaced_head_keeps_the_dtypes(family: str) -> None:
    name, fields = named(family, jnp.bfloat16, **stripped(family))
    model = abstract_model(name, **{**fields, "param_dtype": jnp.float16})
    model.reset_classifier(num_classes=4, rngs=nnx.Rngs(0))
    model.eval()
    assert jax.eval_shape(type(model).__call__, model, images()).dtype == jnp.bfloat16
    assert {array.dtype.name for array in jax.tree.leaves(nnx.state(model))} == {"float16"}


def test_a_class_token_for_each_slot() -> None:
    """`class_token_batch`: the answer depends on the slot, and another batch size is an error."""
    model = one_block("classifier", class_token_batch=2)
    same = jnp.broadcast_to(images(batch=1), (2, 8, 12, 3))
    first, second = calls.logits(model, same)
    assert not np.allclose(first, second)
    with pytest.raises(ValueError, match=r"class_token_batch.*batches of 2.*got 3"):
        model(images(batch=3))
    first, second = calls.logits(one_block("classifier"), same)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_sequences_are_welcome_where_tuples_are() -> None:
    """Lists come out of JSON and of command lines."""
    model = build("classifier", mlp_head_units=[12, 10], img_size=[8, 12], patch_size=[4, 4])
    assert jax.eval_shape(model, images()).shape == (2, 5)
