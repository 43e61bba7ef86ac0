"""Outputs of layers by name."""

import jax
import numpy as np
import pytest

from tests.models.families import build, images
from vit_jax.inference.features import layer_outputs


def test_by_pytorchs_names_and_by_those_of_the_attributes() -> None:
    model, batch = build("t2t performer"), images()
    every = jax.jit(lambda x: layer_outputs(model, x))(batch)
    assert {"blocks.2.mlp.fc1", "tokens_to_token.attention1.mlp.2", "norm", "head"} <= set(every)
    blocks = layer_outputs(model, batch, ["blocks.*", "tokens_to_token.attention1.mlp_fc2"])
    assert list(blocks) == ["tokens_to_token.attention1.mlp.2", "blocks.0", "blocks.1", "blocks.2"]
    assert model.deterministic is False
    model.eval()
    for output, want in zip(
        list(blocks.values())[1:], model.forward_intermediates(batch), strict=True
    ):
        np.testing.assert_array_equal(output, want)
    np.testing.assert_allclose(every["head"], model(batch), rtol=0, atol=1e-4)


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    model = build("vit", depth=1)
    with pytest.raises(ValueError, match=r"named 'block\.0'; it has patch_embed.*blocks\.0\.attn"):
        layer_outputs(model, images(), ["norm", "block.0"])
