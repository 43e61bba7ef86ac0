"""Seed 001's modular ViT: what it does beyond the tests that all families share."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.test_bad_input import unchecked_shapes  # noqa: F401 - a fixture
from tests.models.test_initialisation import assert_initialised_as
from tests.models.train_mode import assert_drops_as
from tests.reference.modular_vit import ModularViT
from vit_jax.layers.dropout import Dropout

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
    """A small model in eval mode, its weights moved off their initial values."""
    model = vit_jax.create_model("vit_modular", rngs=nnx.Rngs(0), **{**SMALL, **fields})
    generator = np.random.default_rng(0)
    weights = vit_jax.state_dict(model)
    vit_jax.load_state_dict(
        model, {n: weights[n] + 0.3 * generator.normal(size=weights[n].shape) for n in weights}
    )
    model.eval()
    return model


def images(batch: int = 2, height: int = 8, width: int = 12) -> jax.Array:
    generator = np.random.default_rng(0)
    return jnp.asarray(generator.normal(size=(batch, height, width, 3)), jnp.float32)


def gradients(model: nnx.Module, **call: Any) -> dict[str, np.ndarray]:
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params):
        return jnp.square(nnx.merge(graph, params, rest)(images(), **call)).sum()

    return vit_jax.state_dict(nnx.merge(graph, jax.grad(run)(params), rest))


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
    np.testing.assert_allclose(shared(images()), own(images()), rtol=1e-6)
    want: dict[str, Any] = dict.fromkeys(weights, 0.0)
    for name, gradient in gradients(own).items():
        want[names[name]] += gradient
    got = gradients(shared)
    for name in want:
        scale = max(np.abs(want[name]).max(), 1e-3)
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("remat", ["blocks", "dots"])
def test_shared_layers_rematerialised(remat: str) -> None:
    plain, again = build(share_layers=True), build(share_layers=True, remat=remat)
    np.testing.assert_allclose(plain(images()), again(images()), rtol=1e-6)
    want, got = gradients(plain), gradients(again)
    for name in want:
        scale = max(np.abs(want[name]).max(), 1e-3)
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_shared_layers_cannot_be_scanned() -> None:
    with pytest.raises(ValueError, match=r"scan_layers=True.*share_layers=True.*one of them"):
        build(share_layers=True, scan_layers=True)


def test_shared_layers_drop_other_units_in_every_call() -> None:
    model = build(share_layers=True, drop_rate=0.5)
    model.train()
    masks: list[np.ndarray] = []
    call = Dropout.__call__

    def recording(self, x, key=None):
        out = call(self, x, key)
        if key is not None and self.rate:
            masks.append(np.asarray(out == 0))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dropout, "__call__", recording)
        model(images(), rngs=nnx.Rngs(dropout=0))
    # Of each of three calls: attention weights, after it, inside the feed-forward, after it.
    assert [mask.shape for mask in masks] == 3 * [(2, 2, 7, 7), (2, 7, 8), (2, 7, 12), (2, 7, 8)]
    for index, mask in enumerate(masks):
        assert not any(np.array_equal(mask, other) for other in masks[:index])


def test_the_norm_takes_the_class_token_alone() -> None:
    """It belongs to the head: features are the last layer's."""
    model = build()
    features, logits = model.forward_features(images()), model(images())
    model.ln.scale[...] = 2 * model.ln.scale[...]
    np.testing.assert_array_equal(model.forward_features(images()), features)
    assert not np.allclose(model(images()), logits)
    later = features.at[:, 1:].set(0.0)
    np.testing.assert_array_equal(model.forward_head(later), model.forward_head(features))


def test_a_new_classifier_keeps_the_first_linear_of_the_head() -> None:
    model = build()
    before = vit_jax.state_dict(model)
    hidden = model.forward_head(model.forward_features(images()), pre_logits=True)
    chex.assert_shape(hidden, (2, 6))
    np.testing.assert_allclose(
        model(images()),
        np.asarray(hidden) @ before["classification.linear2.weight"].T
        + before["classification.linear2.bias"],
        rtol=1e-5,
        atol=1e-5,
    )
    model.reset_classifier(9, rngs=nnx.Rngs(1))
    after = vit_jax.state_dict(model)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {"classification.linear2.weight", "classification.linear2.bias"}
    chex.assert_shape(model(images()), (2, 9))


@pytest.mark.parametrize("size", [(8, 8), (4, 36), (12, 4), (4, 4)])
def test_any_size_that_the_table_holds(size: tuple[int, int]) -> None:
    """As the model that was made for this size and holds only the rows that it needs."""
    model = build(img_size=(8, 12))
    tokens = size[0] * size[1] // 16 + 1
    other = build(img_size=size, max_tokens=tokens)
    weights, name = vit_jax.state_dict(model), "pos_emb.positional_encodings"
    vit_jax.load_state_dict(other, {**weights, name: weights[name][:tokens]})
    chex.assert_shape(model.forward_features(images(2, *size)), (2, tokens, 8))
    np.testing.assert_array_equal(model(images(2, *size)), other(images(2, *size)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share_layers": 1}, r"share_layers must be True or False, got 1"),
        ({"head_hidden_dim": 0}, r"head_hidden_dim must be an int of at least 1, got 0"),
        ({"mlp_dim": 0}, r"mlp_dim must be an int of at least 1, got 0"),
        ({"max_tokens": True}, r"max_tokens must be an int of at least 1, got True"),
        ({"num_heads": 3}, r"embed_dim must be divisible by num_heads, got 8 and 3"),
        ({"img_size": (8, 10)}, r"img_size must be divisible by patch_size: 8x10"),
        ({"depth": -1, "share_layers": True}, r"depth must be an int of at least 0, got -1"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**fields)


@pytest.mark.parametrize("share_layers", [False, True])
def test_initial_values(share_layers: bool) -> None:
    """PyTorch's defaults; positions zero, the class token normal."""
    torch.manual_seed(0)
    fields = {"embed_dim": 128, "depth": 2, "mlp_dim": 256}
    fields |= {"num_classes": 200, "head_hidden_dim": 200}
    reference = ModularViT(**fields)
    if share_layers:
        reference.transformer_layer = reference.transformer_layer[:1]
    assert_initialised_as(
        reference, "vit_modular", **{**fields, "share_layers": share_layers, "max_tokens": 5000}
    )


def test_layers_start_independently() -> None:
    weights = vit_jax.state_dict(vit_jax.create_model("vit_modular", rngs=nnx.Rngs(0), **SMALL))
    for name, array in weights.items():
        if name.startswith("transformer_layer.0.") and np.ptp(array) > 0:
            other = weights[name.replace("layer.0.", "layer.1.")]
            assert not np.array_equal(array, other), name


@pytest.mark.parametrize(("share_layers", "arrays"), [(False, 106), (True, 26)])
def test_the_registered_sizes(share_layers: bool, arrays: int) -> None:
    """Those of labml's CIFAR-10 experiment."""
    model = nnx.eval_shape(
        lambda: vit_jax.create_model("vit_modular", rngs=nnx.Rngs(0), share_layers=share_layers)
    )
    shapes = [v.shape for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    with torch.device("meta"):
        reference = list(ModularViT(share_layers=share_layers).parameters())
    assert len(shapes) == len(reference) == arrays
    want = sum(parameter.numel() for parameter in reference)
    assert sum(int(np.prod(shape)) for shape in shapes) == want
    assert model.img_size == (32, 32)


@pytest.mark.parametrize(
    "rates",
    [{"drop_rate": 0.4}, {"drop_rate": 0.0, "attn_drop_rate": 0.4}, {"attn_drop_rate": 0.0}],
    ids=["all places", "attention weights", "all other places"],
)
def test_drops_where_labml_does(rates: dict[str, float]) -> None:
    rates = {"drop_rate": 0.4, **rates}
    fields = {**SMALL, "depth": 1}
    assert_drops_as(ModularViT(**fields, **rates), "vit_modular", (8, 8), **fields, **rates)
