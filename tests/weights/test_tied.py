"""Tied layers: each array once, by its first name; PyTorch's further names where they are equal."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.reference.modular_vit import ModularViT
from tests.weights.designs import redraw
from vit_jax.models.registry import abstract_model

FIELDS = {
    "embed_dim": 8,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 12,
    "head_hidden_dim": 6,
    "max_tokens": 10,
    "num_classes": 5,
    "share_layers": True,
}
FIRST, SECOND = "transformer_layer.0.", "transformer_layer.1."
BIAS = "feed_forward.layer1.bias"


def create(**fields: Any) -> nnx.Module:
    return nnx.clone(_created(**fields))


@functools.cache
def _created(**fields: Any) -> nnx.Module:
    return redraw(abstract_model("vit_modular", **{**FIELDS, **fields}))


def pytorch_weights() -> dict[str, torch.Tensor]:
    """With every alias: 16 arrays of the layer under three numbers each, and 10 more."""
    torch.manual_seed(0)
    weights = ModularViT(**FIELDS).state_dict()
    assert len(weights) == 58
    return weights


def assert_holds(model: nnx.Module, weights: dict[str, torch.Tensor]) -> None:
    stored = vit_jax.state_dict(model)
    assert stored.keys() == {name for name in weights if ".1." not in name and ".2." not in name}
    assert len(stored) == 26
    for name, array in stored.items():
        np.testing.assert_array_equal(array, weights[name].numpy())


@pytest.mark.parametrize(
    "missing",
    ["", ".1.", ".2.", "1.self_attn.query"],
    ids=["all aliases", "none of layer 1", "none of layer 2", "some of layer 1"],
)
def test_aliases_are_accepted_where_they_are(missing: str) -> None:
    weights, model = pytorch_weights(), create()
    there = {name: array for name, array in weights.items() if not missing or missing not in name}
    vit_jax.load_state_dict(model, there)
    assert_holds(model, weights)


def test_an_abstract_model_takes_them_too() -> None:
    weights = pytorch_weights()
    model = abstract_model("vit_modular", **FIELDS)
    vit_jax.load_state_dict(model, weights)
    assert_holds(model, weights)


def test_weight_files_hold_each_array_once(tmp_path) -> None:
    weights, model = pytorch_weights(), create()
    vit_jax.load_state_dict(model, weights)
    vit_jax.save_pretrained(model, tmp_path / "weights.safetensors")
    other = create()
    vit_jax.load_pretrained(other, tmp_path / "weights.safetensors")
    assert_holds(other, weights)


@pytest.mark.parametrize("change", [lambda a: a + 1e-3, lambda a: a[:3], lambda a: a * np.nan])
def test_an_alias_that_differs_is_named_and_nothing_changes(change) -> None:
    weights, model = pytorch_weights(), create()
    before = vit_jax.state_dict(model)
    weights[SECOND + BIAS] = change(weights[SECOND + BIAS])
    with pytest.raises(ValueError, match=r"not tied") as error:
        vit_jax.load_state_dict(model, weights)
    (line,) = str(error.value).splitlines()[1:]
    assert SECOND + BIAS in line
    assert FIRST + BIAS in line
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_any_name_is_enough() -> None:
    """Files that hold a tied array once hold it under whichever name they please."""
    weights, model = pytorch_weights(), create()
    fewer = {name: array for name, array in weights.items() if name != FIRST + BIAS}
    vit_jax.load_state_dict(model, fewer)
    assert_holds(model, weights)
    there = {name: array for name, array in weights.items() if BIAS not in name}
    with pytest.raises(ValueError, match=rf"missing: {FIRST}{BIAS}$"):
        vit_jax.load_state_dict(model, there)


def test_there_are_as_many_aliases_as_layers() -> None:
    weights = pytorch_weights()
    with pytest.raises(ValueError, match=r"unexpected: transformer_layer\.2\."):
        vit_jax.load_state_dict(create(depth=2), weights)


def test_layers_of_their_own_have_no_aliases() -> None:
    """The shared layer's 26 arrays do not fill a model whose layers are its own."""
    weights = pytorch_weights()
    model = create(share_layers=False)
    vit_jax.load_state_dict(model, weights)
    assert vit_jax.state_dict(model).keys() == weights.keys()
    with pytest.raises(ValueError, match=r"missing: transformer_layer\.1\."):
        vit_jax.load_state_dict(model, vit_jax.state_dict(create()))
    weights[SECOND + BIAS] = weights[SECOND + BIAS] + 1
    vit_jax.load_state_dict(model, weights)
    np.testing.assert_array_equal(
        vit_jax.state_dict(model)[SECOND + BIAS], weights[SECOND + BIAS].numpy()
    )
