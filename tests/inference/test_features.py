"""Outputs of layers by name."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.families import build, images
from vit_jax.inspect.features import layer_outputs


def test_by_pytorchs_names_and_by_those_of_the_attributes() -> None:
    model = build("t2t performer", depth=2)
    wanted = ["blocks.*", "tokens_to_token.attention1.mlp_fc2"]
    order: list[str] = []

    @jax.jit
    def found(x: jax.Array) -> tuple[Any, ...]:
        every, blocks = layer_outputs(model, x), layer_outputs(model, x, wanted)
        order.extend(blocks)
        assert model.deterministic is False
        in_eval_mode = nnx.clone(model)
        in_eval_mode.eval()
        return every, blocks, in_eval_mode.forward_intermediates(x), in_eval_mode(x)

    every, blocks, intermediates, logits = found(images())
    assert {"blocks.1.mlp.fc1", "tokens_to_token.attention1.mlp.2", "norm", "head"} <= set(every)
    assert order == ["tokens_to_token.attention1.mlp.2", "blocks.0", "blocks.1"]
    for name, want in zip(order[1:], intermediates, strict=True):
        np.testing.assert_array_equal(blocks[name], want)
    np.testing.assert_allclose(every["head"], logits, rtol=0, atol=1e-4)


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    model = build("vit", depth=1)
    with pytest.raises(ValueError, match=r"named 'block\.0'; it has patch_embed.*blocks\.0\.attn"):
        jax.eval_shape(lambda x: layer_outputs(model, x, ["norm", "block.0"]), images())
