"""Seed 001's modular ViT: what it does beyond the tests that all families share."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models import calls
from tests.models.families import with_weights
from tests.models.test_bad_input import not_refused, unchecked_shapes  # noqa: F401 - a fixture
from tests.models.test_encoder_vit import RATES
from tests.models.test_initialisation import assert_initialised_as, assert_layers_differ
from tests.models.train_mode import assert_all_differ, assert_drops_as, dropped_units
from tests.reference.modular_vit import ModularViT
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model

SMALL = {
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 12,
    "head_hidden_dim": 6,
    "max_tokens": 10,
    "num_classes": 5,
}


def build(**fields: Any) -> Any:
    """A small model in eval mode."""
    model = with_weights("vit_modular", **{**SMALL, **fields})
    model.eval()
    return model


def images(batch: int = 2, height: int = 8, width: int = 12) -> jax.Array:
    generator = np.random.default_rng(0)
    return jnp.asarray(generator.normal(size=(batch, height, width, 3)), jnp.float32)


def differentiate(model: nnx.Module) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits, and the gradient of their squares."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        logits = nnx.merge(graph, params, rest)(images())
        return jnp.square(logits).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(logits), vit_jax.state_dict(nnx.merge(graph, grads, rest))


@functools.cache
def of_shared_layers() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return differentiate(build(share_layers=True))


def assert_gradients_are(got: dict[str, np.ndarray], want: dict[str, Any]) -> None:
    for name in want:
        scale = max(np.abs(want[name]).max(), 1e-3)
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.xdist_group("modular")
def test_shared_layers_are_equal_layers_whose_gradients_add_up() -> None:
    shared, own = build(share_layers=True), build()
    weights = vit_jax.state_dict(shared)
    names = {
        name: name.replace(f"layer.{name.split('.')[1]}.", "layer.0.")
        if name.startswith("transformer_layer")
        else name
        for name in vit_jax.state_dict(own)
    }
    vit_jax.load_state_dict(own, {name: weights[first] for name, first in names.items()})
    (logits, got), (own_logits, own_gradients) = of_shared_layers(), differentiate(own)
    np.testing.assert_allclose(logits, own_logits, rtol=1e-6)
    want: dict[str, Any] = dict.fromkeys(weights, 0.0)
    for name, gradient in own_gradients.items():
        want[names[name]] += gradient
    assert_gradients_are(got, want)


@pytest.mark.xdist_group("modular")
@pytest.mark.parametrize("remat", mostly_slow(["blocks", "dots"], ["dots"]))
def test_shared_layers_rematerialised(remat: str) -> None:
    (logits, want), again = of_shared_layers(), build(share_layers=True, remat=remat)
    same_logits, got = differentiate(again)
    np.testing.assert_allclose(logits, same_logits, rtol=1e-6)
    assert_gradients_are(got, want)


def test_shared_layers_cannot_be_scanned() -> None:
    with pytest.raises(ValueError, match=r"scan_layers=True.*share_layers=True.*one of them"):
        build(share_layers=True, scan_layers=True)


def test_shared_layers_drop_other_units_in_every_call() -> None:
    model = build(share_layers=True, drop_rate=0.5)
    model.train()
    masks = dropped_units(model, images())
    # Of each of three calls: attention weights, after it, inside the feed-forward, after it.
    assert [mask.shape for mask in masks] == 3 * [(2, 2, 7, 7), (2, 7, 8), (2, 7, 12), (2, 7, 8)]
    assert_all_differ(masks)


def in_parts(model: Any, batch: jax.Array) -> tuple[jax.Array, ...]:
    """Features, logits, the head of other patch tokens, and what its last linear takes."""
    features = model.forward_features(batch)
    later = features.at[:, 1:].set(0.0)
    hidden = model.forward_head(features, pre_logits=True)
    return features, model.forward_head(features), model.forward_head(later), hidden


def test_the_norm_takes_the_class_token_alone() -> None:
    """It belongs to the head: features are the last layer's."""
    model = build()
    features, logits, of_class_token, _ = calls.compiled(in_parts, model, images())
    np.testing.assert_array_equal(of_class_token, logits)
    model.ln.scale.set_value(2 * model.ln.scale[...])
    same_features, others, *_ = calls.compiled(in_parts, model, images())
    np.testing.assert_array_equal(same_features, features)
    assert not np.allclose(others, logits)


def test_a_new_classifier_keeps_the_first_linear_of_the_head() -> None:
    model = build()
    before = vit_jax.state_dict(model)
    _, logits, _, hidden = calls.compiled(in_parts, model, images())
    chex.assert_shape(hidden, (2, 6))
    np.testing.assert_allclose(
        logits,
        np.asarray(hidden) @ before["classification.linear2.weight"].T
        + before["classification.linear2.bias"],
        rtol=1e-5,
        atol=1e-5,
    )
    model.reset_classifier(9, rngs=nnx.Rngs(1))
    after = vit_jax.state_dict(model)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {"classification.linear2.weight", "classification.linear2.bias"}
    assert jax.eval_shape(model, images()).shape == (2, 9)


MISTAKES = [
    ({"share_layers": 1}, r"share_layers must be True or False, got 1"),
    ({"head_hidden_dim": 0}, r"head_hidden_dim must be an int of at least 1, got 0"),
    ({"mlp_dim": 0}, r"mlp_dim must be an int of at least 1, got 0"),
    ({"max_tokens": True}, r"max_tokens must be an int of at least 1, got True"),
    ({"num_heads": 3}, r"embed_dim must be divisible by num_heads, got 8 and 3"),
    ({"img_size": (8, 10)}, r"img_size must be divisible by patch_size: 8x10"),
    ({"depth": -1, "share_layers": True}, r"depth must be an int of at least 0, got -1"),
]


@pytest.mark.usefixtures("unchecked_shapes")
def test_fields_that_do_not_fit() -> None:
    assert not_refused(build, MISTAKES) == []


@pytest.mark.parametrize("share_layers", [False, True])
def test_initial_values(share_layers: bool) -> None:
    """PyTorch's defaults; positions zero, the class token normal."""
    torch.manual_seed(0)
    fields = {"embed_dim": 128, "depth": 2, "mlp_dim": 256}
    fields |= {"num_classes": 200, "head_hidden_dim": 200}
    reference = ModularViT(**fields)
    if share_layers:
        reference.transformer_layer = reference.transformer_layer[:1]
    weights = assert_initialised_as(
        reference, "vit_modular", **{**fields, "share_layers": share_layers, "max_tokens": 5000}
    )
    if not share_layers:
        assert_layers_differ(weights, "layer.0.", "layer.1.")


@pytest.mark.parametrize(("share_layers", "arrays"), [(False, 106), (True, 26)])
def test_the_registered_sizes(share_layers: bool, arrays: int) -> None:
    """Those of labml's CIFAR-10 experiment."""
    model = abstract_model("vit_modular", share_layers=share_layers)
    shapes = [v.shape for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    with torch.device("meta"):
        reference = list(ModularViT(share_layers=share_layers).parameters())
    assert len(shapes) == len(reference) == arrays
    want = sum(parameter.numel() for parameter in reference)
    assert sum(int(np.prod(shape)) for shape in shapes) == want
    assert model.img_size == (32, 32)


@pytest.mark.parametrize("places", mostly_slow(RATES, ["attention weights", "all other places"]))
def test_drops_where_labml_does(places: str) -> None:
    fields = {**SMALL, "depth": 1, **RATES[places]}
    assert_drops_as(ModularViT(**fields), "vit_modular", (8, 8), **fields)
