"""Features, heads and their replacement."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.models.families import DESIGNS, build, images

# 2x3 patches and the prefix; T2T makes one token of 8x12 pixels.
TOKENS = {"vit": 7, "distilled": 8, "deit3": 7, "classifier": 7}
# Dense: 8 + 4, half of it, + 4 + 4.
WIDTHS = {"t2t dense": 14}


@pytest.mark.parametrize("family", DESIGNS)
def test_the_call_is_features_then_head(family: str) -> None:
    model = build(family)
    model.eval()
    features = model.forward_features(images())
    chex.assert_shape(features, (2, TOKENS.get(family, 2), WIDTHS.get(family, 8)))
    np.testing.assert_array_equal(model.forward_head(features), model(images()))


@pytest.mark.parametrize("family", DESIGNS)
def test_pre_logits_are_the_input_of_the_last_linear(family: str) -> None:
    model = build(family)
    model.eval()
    features = model.forward_features(images())
    hidden = np.asarray(model.forward_head(features, pre_logits=True))
    weights = vit_jax.state_dict(model)
    if family == "distilled":  # timm: the mean of both tokens
        np.testing.assert_allclose(hidden, (features[:, 0] + features[:, 1]) / 2, rtol=1e-6)
        return
    head = "logits_layer" if family == "classifier" else "head"
    logits = hidden @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
    np.testing.assert_allclose(logits, model(images()), rtol=1e-5, atol=1e-5)


def test_distilled_returns_both_in_train_and_the_mean_in_eval_mode() -> None:
    model = build("distilled")
    cls, dist = model(images())
    chex.assert_shape((cls, dist), (2, 5))
    assert not np.allclose(cls, dist)
    model.eval()
    np.testing.assert_allclose(model(images()), (cls + dist) / 2, rtol=1e-6)
    model.train()
    assert isinstance(model(images()), tuple)


@pytest.mark.parametrize("family", DESIGNS)
def test_reset_classifier(family: str) -> None:
    model = build(family)
    model.eval()
    before, weights = model.forward_features(images()), vit_jax.state_dict(model)
    model.reset_classifier(num_classes=9, rngs=nnx.Rngs(5))
    chex.assert_shape(model(images()), (2, 9))
    np.testing.assert_array_equal(model.forward_features(images()), before)
    after = vit_jax.state_dict(model)
    changed = {name for name in after if not np.array_equal(after[name], weights[name])}
    heads = ("head", "logits_layer")
    assert changed
    assert all(name.startswith(heads) for name in changed)
    assert after.keys() == weights.keys()
    assert {after[name].shape[0] for name in changed} == {9}
    if family == "distilled":
        assert {"head.weight", "head_dist.weight"} <= changed


@pytest.mark.parametrize("family", DESIGNS)
def test_no_classes_give_features(family: str) -> None:
    model = build(family)
    model.eval()
    features = model.forward_features(images())
    want = model.forward_head(features, pre_logits=True)
    model.reset_classifier(num_classes=0, rngs=nnx.Rngs(5))
    np.testing.assert_allclose(model(images()), want, rtol=1e-6)
    assert not any("head." in n or "logits_layer" in n for n in vit_jax.state_dict(model))
    fresh = build(family, num_classes=0)
    fresh.eval()
    assert vit_jax.state_dict(fresh).keys() == vit_jax.state_dict(model).keys()
    chex.assert_shape(fresh(images()), want.shape)
    model.reset_classifier(num_classes=3, rngs=nnx.Rngs(5))  # and back
    chex.assert_shape(model(images()), (2, 3))


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("family", DESIGNS)
def test_a_replaced_head_keeps_the_dtypes(family: str) -> None:
    model = build(family, "bfloat16", param_dtype=jnp.float16)
    model.reset_classifier(num_classes=4, rngs=nnx.Rngs(0))
    model.eval()
    assert jax.eval_shape(model, images()).dtype == jnp.bfloat16
    assert {array.dtype.name for array in vit_jax.state_dict(model).values()} == {"float16"}


def test_a_class_token_for_each_slot() -> None:
    """`class_token_batch`: the answer depends on the slot, and another batch size is an error."""
    model = build("classifier", class_token_batch=2)
    model.eval()
    same = jnp.broadcast_to(images(batch=1), (2, 8, 12, 3))
    first, second = model(same)
    assert not np.allclose(first, second)
    with pytest.raises(ValueError, match=r"class_token_batch.*batches of 2.*got 3"):
        model(images(batch=3))
    shared = build("classifier")
    shared.eval()
    first, second = shared(same)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_sequences_are_welcome_where_tuples_are() -> None:
    """Lists come out of JSON and of command lines."""
    model = build("classifier", mlp_head_units=[12, 10], img_size=[8, 12], patch_size=[4, 4])
    chex.assert_shape(model(images()), (2, 5))
