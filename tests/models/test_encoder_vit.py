"""Seed 000's walkthrough ViT: what it does beyond the tests that all families share."""

from typing import Any

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
from tests.models.test_initialisation import assert_initialised_as, assert_layers_differ
from tests.models.train_mode import assert_drops_as
from tests.reference.encoder_vit import EncoderViT
from tests.tiers import mostly_slow
from vit_jax.models.registry import abstract_model

SMALL = {
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 12,
    "max_tokens": 10,
    "num_classes": 5,
}


def build(name: str = "vit_encoder", **fields: Any) -> Any:
    """A small model in eval mode."""
    model = with_weights(name, **{**SMALL, **fields})
    model.eval()
    return model


def images(batch: int = 2, height: int = 8, width: int = 12, seed: int = 0) -> jax.Array:
    generator = np.random.default_rng(seed)
    return jnp.asarray(generator.normal(size=(batch, height, width, 3)), jnp.float32)


def test_across_the_batch_the_logits_do_not_see_the_images() -> None:
    """`batch_first=False`, the text's code: a class token meets only the other class tokens."""
    model = build(batch_first=False, class_token_batch=2)
    first, second = images(seed=1), images(seed=2)
    mixed = jnp.concatenate([first[:1], second[1:]])
    np.testing.assert_array_equal(calls.logits(model, first), calls.logits(model, second))
    gradient = jax.jit(jax.grad(lambda x: jnp.square(model(x)).sum()))(first)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
    # The other tokens do see the other images, at their own place.
    tokens, changed = (np.asarray(calls.features(model, batch)) for batch in (first, mixed))
    np.testing.assert_array_equal(tokens[:, 0], changed[:, 0])
    assert np.all(tokens[0, 1:] != changed[0, 1:], axis=-1).all()


def test_over_tokens_the_logits_see_their_own_image_alone() -> None:
    model = build()
    first, second = images(seed=1), images(seed=2)
    logits = calls.logits(model, first)
    mixed = calls.logits(model, jnp.concatenate([first[:1], second[1:]]))
    np.testing.assert_allclose(mixed[0], logits[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(mixed[1], logits[1], atol=1e-2)


TABLES = {
    "vit_encoder": "positon_embedding_table",
    "vit_modular": "pos_emb.positional_encodings",
}


ANY_SIZES = [(name, size) for name in TABLES for size in ((8, 8), (4, 36), (12, 4), (4, 4))]


@pytest.mark.parametrize(
    ("name", "size"),
    mostly_slow(ANY_SIZES, [*ANY_SIZES[:2], ("vit_modular", (12, 4))]),
)
def test_any_size_that_the_table_holds(name: str, size: tuple[int, int]) -> None:
    """As the model that was made for this size and holds only the rows that it needs."""
    model = build(name, img_size=(8, 12), depth=1)
    tokens = size[0] * size[1] // 16 + 1
    other = build(name, img_size=size, max_tokens=tokens, depth=1)
    weights = vit_jax.state_dict(model)
    table = weights[TABLES[name]]
    vit_jax.load_state_dict(other, {**weights, TABLES[name]: table[:tokens]})
    batch = images(2, *size)
    assert jax.eval_shape(model.forward_features, batch).shape == (2, tokens, 8)
    np.testing.assert_array_equal(calls.logits(model, batch), calls.logits(other, batch))


@pytest.mark.parametrize("name", ["vit_encoder", "vit_modular"])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((10, 12), r"divisible by patch_size, 4x4, got 10x12"),
        ((8, 13), r"divisible by patch_size, 4x4, got 8x13"),
        ((0, 8), r"divisible by patch_size, 4x4, got 0x8"),
        ((8, 20), r"at most 10 tokens \(max_tokens.*got 8x20 pixels: 11 tokens"),
    ],
)
def test_sizes_that_do_not_fit(name: str, size: tuple[int, int], message: str) -> None:
    model = build(name)
    with pytest.raises(ValueError, match=message):
        model(images(2, *size))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.forward_features, images(2, *size))


def test_a_class_token_for_each_slot() -> None:
    model = build(class_token_batch=2)
    same = jnp.broadcast_to(images(1), (2, 8, 12, 3))
    first, second = calls.logits(model, same)
    assert not np.allclose(first, second, atol=1e-2)
    with pytest.raises(ValueError, match=r"class_token_batch.*batches of 2.*got 3"):
        model(images(3))
    first, second = calls.logits(build(), same)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


MISTAKES = [
    ({"batch_first": "no"}, r"batch_first must be True or False.*'no'"),
    ({"class_token_batch": 0}, r"class_token_batch must be an int of at least 1, got 0"),
    ({"max_tokens": 0}, r"max_tokens must be an int of at least 1, got 0"),
    ({"mlp_dim": 2.5}, r"mlp_dim must be an int of at least 1, got 2\.5"),
    ({"num_heads": 3}, r"embed_dim must be divisible by num_heads, got 8 and 3"),
    ({"img_size": 30}, r"img_size must be divisible by patch_size: 30x30"),
    ({"patchify": "stride"}, r"patchify must be one of.*'stride'"),
    ({"attn_drop_rate": 1.0}, r"attn_drop_rate must be at least 0 and below 1, got 1\.0"),
    ({"drop_rate": -1.0}, r"drop_rate must be at least 0 and below 1, got -1\.0"),
]


@pytest.mark.usefixtures("unchecked_shapes")
def test_fields_that_do_not_fit() -> None:
    assert not_refused(build, MISTAKES) == []


def test_initial_values() -> None:
    """PyTorch's: normal patches, class token and positions; the encoder layer's own rules."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {"embed_dim": 128, "depth": 2, "mlp_dim": 256}
    fields |= {"num_classes": 200, "class_token_batch": 8}
    weights = assert_initialised_as(EncoderViT(**fields), "vit_encoder", **fields)
    assert_layers_differ(weights, ".layers.0.", ".layers.1.")


def test_the_registered_sizes() -> None:
    """Trainable at 32x32, where the text's own sizes are a toy's."""
    model = abstract_model("vit_encoder")
    shapes = [v.shape for _, v in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    with torch.device("meta"):
        reference = EncoderViT()
    want = sum(parameter.numel() for parameter in reference.parameters())
    assert sum(int(np.prod(shape)) for shape in shapes) == want == 7_971_338
    assert model.img_size == (32, 32)
    assert model.spec.preprocessing.mean == model.spec.preprocessing.std == (0.5, 0.5, 0.5)


RATES = {
    "all places": {"drop_rate": 0.4},
    "attention weights": {"drop_rate": 0.0, "attn_drop_rate": 0.4},
    "all other places": {"drop_rate": 0.4, "attn_drop_rate": 0.0},
}


@pytest.mark.parametrize("places", mostly_slow(RATES, ["attention weights", "all other places"]))
def test_drops_where_pytorch_does(places: str) -> None:
    fields = {**SMALL, "depth": 1, **RATES[places]}
    assert_drops_as(EncoderViT(**fields), "vit_encoder", (8, 8), **fields)


@pytest.mark.parametrize("name", ["vit_encoder", "vit_modular"])
def test_one_rate_for_all_of_a_layer(name: str) -> None:
    """PyTorch's `dropout` and labml's: the attention weights drop at `drop_rate` unless told."""

    def graph(**rates: float) -> nnx.GraphDef:
        model = abstract_model(name, **SMALL, **rates)
        model.spec = None  # which keeps the fields as they are given
        return nnx.graphdef(model)

    assert graph() == graph(drop_rate=0.1, attn_drop_rate=0.1)
    assert graph(drop_rate=0.3) == graph(drop_rate=0.3, attn_drop_rate=0.3)
    assert graph(drop_rate=0.3) != graph(drop_rate=0.3, attn_drop_rate=0.1)
    model = with_weights(name, **{**SMALL, "depth": 1}, drop_rate=0.0)
    trained = calls.logits(model, images())  # nothing drops: no rngs are needed
    model.eval()
    np.testing.assert_array_equal(trained, calls.logits(model, images()))
