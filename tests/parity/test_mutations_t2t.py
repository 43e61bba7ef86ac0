"""Errors that a port of T2T-ViT is likely to hold, each of which must fail the golden check.

The performer's epsilon moves logits by 1e-10 only: tests/layers/test_performer.py drops it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import golden
from tests.golden import Golden
from tests.parity.test_mutations import (
    Mutation,
    Patch,
    attention_scale,
    check,
    class_token_after_positions,
    id_of,
    layer_norm_epsilon,
    query_key_value_order,
    tanh_gelu,
    with_weights,
)
from tests.tiers import mostly_slow
from vit_jax.layers.block import Block
from vit_jax.layers.mlp import gelu
from vit_jax.layers.performer import TokenPerformer, linear_attention
from vit_jax.layers.squeeze_excite import SqueezeExcite
from vit_jax.layers.unfold import SoftSplit
from vit_jax.models.t2t_vit_dense import DenseBlock, Transition

pytestmark = pytest.mark.usefixtures("x64")


def key_query_swap(fixture: Golden, patch: Patch) -> nnx.Module:
    def swap(stacked: np.ndarray) -> np.ndarray:
        key, query, value = np.split(stacked, 3)
        return np.concatenate([query, key, value])

    return with_weights(fixture, "kqv.weight", swap)


def value_first(fixture: Golden, patch: Patch) -> nnx.Module:
    return with_weights(fixture, "kqv.weight", lambda w: np.concatenate(np.split(w, 3)[::-1]))


def scale_from_the_output_dim(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build()
    tokens = model.tokens_to_token
    for layer in (tokens.attention1, tokens.attention2):
        layer.attn.scale = fixture.spec["kwargs"]["token_dim"] ** -0.5
    return model


def channels_last_features(fixture: Golden, patch: Patch) -> nnx.Module:
    """Features in the order (kh, kw, C)."""
    call = SoftSplit.__call__

    def channels_last(self: SoftSplit, images: jax.Array) -> jax.Array:
        x = call(self, images)
        windows = x.reshape(*x.shape[:2], images.shape[-1], *self.kernel_size)
        return jnp.moveaxis(windows, 2, -1).reshape(x.shape)

    patch.setattr(SoftSplit, "__call__", channels_last)
    return fixture.build()


def columns_before_rows(fixture: Golden, patch: Patch) -> nnx.Module:
    """Windows column by column; on the square image the number of tokens stays."""
    call = SoftSplit.__call__
    patch.setattr(SoftSplit, "__call__", lambda self, x: call(self, x.swapaxes(1, 2)))
    return fixture.build()


class NormOfPixels(nnx.Module):
    """A LayerNorm over the pixels that are there; a zero is one of the padding."""

    def __init__(self, norm: nnx.LayerNorm):
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        there = x != 0
        mean = x.mean(axis=-1, where=there, keepdims=True)
        variance = x.var(axis=-1, where=there, keepdims=True)
        normed = jnp.where(there, (x - mean) / jnp.sqrt(variance + self.norm.epsilon), 0)
        scale, bias = (v[...].reshape(1, 1, -1) for v in (self.norm.scale, self.norm.bias))
        return normed * scale + bias


def padding_outside_the_norm(fixture: Golden, patch: Patch) -> nnx.Module:
    model = fixture.build()
    layer = model.tokens_to_token.attention1
    layer.norm1 = NormOfPixels(layer.norm1)
    return model


def skip_from_the_input(fixture: Golden, patch: Patch) -> nnx.Module:
    """From as many features of the input as the output has."""

    def call(self: TokenPerformer, x: jax.Array, *, key: None = None) -> jax.Array:
        k, q, v = jnp.split(self.kqv(self.norm1(x)), 3, axis=-1)
        attended = linear_attention(q, k, v, self.w[...], eps=self.eps)
        x = x[..., : v.shape[-1]] + self.proj(attended)
        return x + self.mlp_fc2(gelu(self.mlp_fc1(self.norm2(x))))

    patch.setattr(TokenPerformer, "__call__", call)
    return fixture.build()


def gate_without_the_class_token(fixture: Golden, patch: Patch) -> nnx.Module:
    def call(self: SqueezeExcite, x: jax.Array) -> jax.Array:
        mean = x[:, 1:].mean(axis=1, keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean))))

    patch.setattr(SqueezeExcite, "__call__", call)
    return fixture.build()


def transition_without_gelu(fixture: Golden, patch: Patch) -> nnx.Module:
    patch.setattr(Transition, "__call__", lambda self, x, **_: self.linear(x))
    return fixture.build()


def growth_of_the_output(fixture: Golden, patch: Patch) -> nnx.Module:
    """New features appended to what the block makes of its input, not to the input."""

    def call(self: DenseBlock, x: jax.Array, **settings) -> jax.Array:
        new = Block.__call__(self, x, **settings)
        return jnp.concatenate([new, self.dense_linear(new)], axis=-1)

    patch.setattr(DenseBlock, "__call__", call)
    return fixture.build()


PERFORMER, TRANSFORMER = "tiny_t2t_performer", "tiny_t2t_transformer"
MUTATIONS: list[tuple[Mutation, str]] = [
    (key_query_swap, PERFORMER),
    (value_first, PERFORMER),
    (tanh_gelu, PERFORMER),
    (layer_norm_epsilon, PERFORMER),
    (layer_norm_epsilon, TRANSFORMER),
    (layer_norm_epsilon, "tiny_t2t_convolution"),
    (scale_from_the_output_dim, TRANSFORMER),
    (query_key_value_order, TRANSFORMER),
    (attention_scale, PERFORMER),
    (channels_last_features, PERFORMER),
    (columns_before_rows, PERFORMER),
    (padding_outside_the_norm, PERFORMER),
    (skip_from_the_input, PERFORMER),
    (class_token_after_positions, PERFORMER),
    (gate_without_the_class_token, "tiny_t2t_se"),
    (transition_without_gelu, "tiny_t2t_dense"),
    (growth_of_the_output, "tiny_t2t_dense"),
    (tanh_gelu, "tiny_t2t_ghost"),
]
# The rest show for more operations that the check sees what these show.
FAST = [
    (value_first, PERFORMER),
    (layer_norm_epsilon, "tiny_t2t_convolution"),
    (scale_from_the_output_dim, TRANSFORMER),
    (gate_without_the_class_token, "tiny_t2t_se"),
]


@pytest.mark.parametrize(("mutate", "name"), mostly_slow(MUTATIONS, FAST), ids=id_of)
def test_mutation_fails_parity(mutate: Mutation, name: str, monkeypatch: Patch) -> None:
    fixture = golden.load(name)
    with pytest.raises(AssertionError, match=r"assert_trees_all_close failed"):
        check(fixture, mutate(fixture, monkeypatch))


@pytest.mark.parametrize("name", mostly_slow(sorted({n for _, n in MUTATIONS}), [PERFORMER]))
def test_unmutated_model_passes(name: str) -> None:
    """The check that the mutations fail is one that the model itself passes, dropout set or not."""
    fixture = golden.load(name)
    check(fixture, fixture.build())
    check(fixture, fixture.build(drop_rate=0.1))
