"""Faults that ports are known for, each planted in a model of one of the designs.

A fault changes one thing: the model's code, for a while, or the model itself. It says which module
the comparison has to name and what it has to call the fault.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.live import randomised
from tests.weights import designs
from vit_jax.layers import (
    attention,
    block,
    performer,
    prenorm_layer,
    squeeze_excite,
    token_transformer,
    unfold,
)
from vit_jax.layers.position_resize import resize_pos_embed
from vit_jax.models import classifier_vit, t2t_vit, t2t_vit_dense, vit

Patch = pytest.MonkeyPatch


@dataclasses.dataclass
class Pair:
    """A model and the PyTorch module that it should equal, with the same random weights."""

    model: Any
    reference: torch.nn.Module

    def at(self, path: str) -> Any:
        return functools.reduce(
            lambda node, part: node[int(part)] if part.isdigit() else getattr(node, part),
            path.split("."),
            self.model,
        )

    def change(self, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        """Changes an array of the model by PyTorch's name."""
        weights = vit_jax.state_dict(self.model)
        vit_jax.load_state_dict(self.model, {**weights, name: function(weights[name].copy())})


def pair(design: str, seed: int = 0, **fields: Any) -> Pair:
    """In eval mode, float32; `fields` are those of the model alone."""
    torch.manual_seed(seed)
    # T2T makes one token of 16x16 pixels.
    shared = {"img_size": (32, 48)} if design.startswith("t2t") else {"img_size": (16, 16)}
    reference = randomised(designs.reference(design, **shared).float())
    model = designs.make(design, **shared, **fields)
    vit_jax.load_state_dict(model, reference.state_dict())
    model.eval()
    return Pair(model, reference)


Plant = Callable[[Pair, Patch], None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of one design.

    Attributes:
      plant: puts it into the pair's model.
      stage: the module that has to be named.
      name: the diagnosis.
      fields: of the model alone.
    """

    design: str
    plant: Plant
    stage: str
    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


FAULTS: dict[str, Fault] = {}


def fault(design: str, stage: str, name: str, **fields: Any) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        FAULTS[f"{plant.__name__} {design}"] = Fault(design, plant, stage, name, fields)
        return plant

    return register


# ---------------------------------------------------------------------------- activations


@fault("vit", "blocks.0.mlp", "gelu")
@fault("t2t performer", "tokens_to_token.attention1", "gelu")
@fault("t2t ghost", "tokens_to_token.attention1", "gelu")
@fault("t2t dense", "tokens_to_token.attention1", "gelu")
@fault("classifier", "transformer_layers.0.ffn.0", "gelu")
def tanh_gelu(pair: Pair, patch: Patch) -> None:
    exact = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate=True: exact(x, approximate=True))


@fault("encoder", "transformer_encoder.layers.0", "activation")
def gelu_for_relu(pair: Pair, patch: Patch) -> None:
    patch.setattr(jax.nn, "relu", lambda x: jax.nn.gelu(x, approximate=False))


@fault("t2t dense", "blocks.1", "activation")
def transition_without_gelu(pair: Pair, patch: Patch) -> None:
    patch.setattr(t2t_vit_dense.Transition, "__call__", lambda self, x, **_: self.linear(x))


# ---------------------------------------------------------------------------- normalisation


def _epsilon(pair: Pair, epsilon: float) -> None:
    for _, module in nnx.iter_modules(pair.model):
        if isinstance(module, nnx.LayerNorm):
            module.epsilon = epsilon


@fault("vit", "blocks.0.norm1", "layer_norm_eps")
def epsilon_of_t2t(pair: Pair, patch: Patch) -> None:
    _epsilon(pair, 1e-5)


@fault("t2t performer", "tokens_to_token.attention1.norm1", "layer_norm_eps")
@fault("t2t transformer", "tokens_to_token.attention1.norm1", "layer_norm_eps")
@fault("encoder", "transformer_encoder.layers.0.norm1", "layer_norm_eps")
@fault("modular", "transformer_layer.0.norm_self_attn", "layer_norm_eps")
def epsilon_of_flax(pair: Pair, patch: Patch) -> None:
    _epsilon(pair, 1e-6)


@fault("vit", "blocks.1.norm2", "layer_norm_eps")
def epsilon_of_one(pair: Pair, patch: Patch) -> None:
    pair.at("blocks.1.norm2").epsilon = 1e-12


class Identity(nnx.Module):
    def __call__(self, x):
        return x


@fault("vit", "norm", "missing_norm")
def no_last_norm(pair: Pair, patch: Patch) -> None:
    def forward_features(self, images, *, rngs=None):
        x = self.pos_drop(self._embed(images), None)
        for layer in self.blocks:
            x = layer(x)
        return x

    patch.setattr(vit.VisionTransformer, "forward_features", forward_features)


@fault("t2t se", "blocks.0.norm2", "missing_norm")
def no_norm_in_a_block(pair: Pair, patch: Patch) -> None:
    def call(self, x, *, drop_path_rate=0.0, key=None):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(x)

    patch.setattr(block.Block, "__call__", call)


# ---------------------------------------------------------------------------- attention


def _swapped(order: tuple[int, int, int]) -> Callable:
    def split_heads(qkv, num_heads):
        batch, tokens, triple = qkv.shape
        x = qkv.reshape(batch, tokens, 3, num_heads, triple // (3 * num_heads))
        return x.transpose(2, 0, 3, 1, 4)[jnp.array(order)]

    return split_heads


@fault("vit", "blocks.0.attn", "qkv_order")
@fault("classifier", "transformer_layers.0.attn", "qkv_order")
@fault("encoder", "transformer_encoder.layers.0.self_attn", "qkv_order")
def value_before_key(pair: Pair, patch: Patch) -> None:
    patch.setattr(attention, "split_heads", _swapped((0, 2, 1)))


@fault("t2t transformer", "tokens_to_token.attention1.attn", "qkv_order")
def key_query_value(pair: Pair, patch: Patch) -> None:
    # Keys first gives the transposed scores.
    patch.setattr(token_transformer, "split_heads", _swapped((1, 0, 2)))


@fault("t2t performer", "tokens_to_token.attention1", "qkv_order")
def query_key_value_in_a_performer(pair: Pair, patch: Patch) -> None:
    exact = performer.linear_attention
    patch.setattr(
        performer,
        "linear_attention",
        lambda q, k, v, w, *, eps: exact(k, q, v, w, eps=eps),
    )


@fault("vit", "blocks.0.attn.qkv", "qkv_order")
def stacked_weights_in_another_order(pair: Pair, patch: Patch) -> None:
    pair.change("blocks.0.attn.qkv.weight", lambda w: np.concatenate(np.split(w, 3)[::-1]))


@fault("t2t se", "blocks.0.attn", "attention_scale")
@fault("modular", "transformer_layer.0.self_attn", "attention_scale")
def scale_of_the_whole_width(pair: Pair, patch: Patch) -> None:
    for _, module in nnx.iter_modules(pair.model):
        if hasattr(module, "scale") and isinstance(module.scale, float):
            module.scale = pair.model.config.embed_dim**-0.5


@fault("t2t transformer", "tokens_to_token.attention1.attn", "attention_scale")
def scale_of_the_output(pair: Pair, patch: Patch) -> None:
    for layer in (pair.at("tokens_to_token.attention1"), pair.at("tokens_to_token.attention2")):
        layer.attn.scale = pair.at("tokens_to_token.attention1").norm2.num_features ** -0.5


@fault("vit", "blocks.0.attn", "softmax")
def softmax_over_queries(pair: Pair, patch: Patch) -> None:
    exact = jax.nn.softmax
    patch.setattr(jax.nn, "softmax", lambda x, axis=-1: exact(x, axis=-2))


@fault("vit", "blocks.0.attn", "head_layout")
def heads_not_put_back(pair: Pair, patch: Patch) -> None:
    def merge_heads(x):
        batch, heads, tokens, head_dim = x.shape
        return x.reshape(batch, tokens, heads * head_dim)

    patch.setattr(attention, "merge_heads", merge_heads)


@fault("t2t performer", "tokens_to_token.attention1", "performer_eps")
def no_epsilon_in_the_performer(pair: Pair, patch: Patch) -> None:
    for layer in (pair.at("tokens_to_token.attention1"), pair.at("tokens_to_token.attention2")):
        layer.eps = 1e-4


@fault("t2t performer", "tokens_to_token.attention1", "skip_connection")
def skip_from_the_keys(pair: Pair, patch: Patch) -> None:
    def call(self, x, *, key=None):
        k, q, v = jnp.split(self.kqv(self.norm1(x)), 3, axis=-1)
        attended = performer.linear_attention(q, k, v, self.w[...], eps=self.eps)
        x = k + self.drop(self.proj(attended), None)
        branch = self.mlp_fc2(performer.gelu(self.mlp_fc1(self.norm2(x))))
        return x + self.drop(branch, None)

    patch.setattr(performer.TokenPerformer, "__call__", call)


# ---------------------------------------------------------------------------- arrays


@fault("vit", "blocks.1.attn.proj", "transposed_kernel")
def transposed_kernel(pair: Pair, patch: Patch) -> None:
    pair.change("blocks.1.attn.proj.weight", np.transpose)


@fault("vit", "blocks.0.mlp.fc1", "missing_bias")
def missing_bias(pair: Pair, patch: Patch) -> None:
    pair.change("blocks.0.mlp.fc1.bias", np.zeros_like)


@fault("encoder", "transformer_encoder.layers.0.linear1", "missing_bias")
def linear_without_bias(pair: Pair, patch: Patch) -> None:
    linear = pair.at("transformer_encoder.layers.0.linear1")
    linear.bias, linear.use_bias = None, False


@fault("vit", "patch_embed.proj", "patch_order")
def patch_channels_last(pair: Pair, patch: Patch) -> None:
    pair.change("patch_embed.proj.weight", lambda w: w.transpose(0, 2, 3, 1).reshape(w.shape))


@fault("t2t performer", "tokens_to_token.soft_split0", "patch_order")
@fault("t2t se", "tokens_to_token.soft_split0", "patch_order")
def soft_split_channels_last(pair: Pair, patch: Patch) -> None:
    call = unfold.SoftSplit.__call__

    def channels_last(self, images):
        x = call(self, images)
        windows = x.reshape(*x.shape[:2], images.shape[-1], *self.kernel_size)
        return jnp.moveaxis(windows, 2, -1).reshape(x.shape)

    patch.setattr(unfold.SoftSplit, "__call__", channels_last)


@fault("classifier", "create_patch_layer", "patch_order")
def patches_channels_last(pair: Pair, patch: Patch) -> None:
    call = classifier_vit.CreatePatches.__call__

    def channels_last(self, images):
        x = call(self, images)
        patches = x.reshape(*x.shape[:2], images.shape[-1], *self.patch_size)
        return jnp.moveaxis(patches, 2, -1).reshape(x.shape)

    patch.setattr(classifier_vit.CreatePatches, "__call__", channels_last)


# ---------------------------------------------------------------------------- tokens and heads


@fault("vit", "", "class_token_position")
def class_token_without_position(pair: Pair, patch: Patch) -> None:
    def embed(self, images):
        patches = self.patch_embed(images.astype(self.dtype))
        positions = self.pos_embed[...].astype(self.dtype)
        token = jnp.broadcast_to(
            self.cls_token[...].astype(self.dtype), (patches.shape[0], 1, patches.shape[2])
        )
        return jnp.concatenate([token, patches + positions[:, 1:]], axis=1)

    patch.setattr(vit.VisionTransformer, "_embed", embed)


@fault("classifier", "patch_embedding_layer", "class_token_position")
def class_row_of_positions_lost(pair: Pair, patch: Patch) -> None:
    def add_positions(self, tokens):
        positions = self.position_emb.embedding[...].astype(self.dtype)
        tokens = tokens + jnp.expand_dims(positions[1:], 0)
        token = jnp.broadcast_to(
            self.class_parameter[...].astype(self.dtype), (tokens.shape[0], 1, tokens.shape[2])
        )
        return jnp.concatenate([token, tokens], axis=1)

    patch.setattr(classifier_vit.PatchEmbedding, "add_positions", add_positions)


@fault("t2t performer", "", "positions")
def no_positions(pair: Pair, patch: Patch) -> None:
    # The sinusoid table, computed wrongly: not carried over.
    def forward_features(self, images, *, rngs=None):
        x = self.tokens_to_token(images.astype(self.dtype))
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[2]))
        x = self.pos_drop(jnp.concatenate([token.astype(x.dtype), x], axis=1), None)
        for layer in self.blocks:
            x = layer(x)
        return self.norm(x)

    patch.setattr(t2t_vit.TokensToTokenModel, "forward_features", forward_features)


@fault("distilled", "", "averaged_heads")
def class_head_alone(pair: Pair, patch: Patch) -> None:
    exact = vit.VisionTransformer.forward_head

    def forward_head(self, tokens, pre_logits=False, *, rngs=None):
        self.deterministic = False
        cls, dist = exact(self, tokens)
        return cls + 0 * dist

    patch.setattr(vit.VisionTransformer, "forward_head", forward_head)


@fault("vit", "", "pooling")
def mean_for_the_class_token(pair: Pair, patch: Patch) -> None:
    patch.setattr(vit.VisionTransformer, "_pool", lambda self, x: x.mean(axis=1))


@fault("t2t se", "blocks.0.attn.se_layer", "pooling")
def gate_without_the_class_token(pair: Pair, patch: Patch) -> None:
    def call(self, x):
        mean = x[:, 1:].mean(axis=1, keepdims=True)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(mean))))

    patch.setattr(squeeze_excite.SqueezeExcite, "__call__", call)


@fault("vit", "pos_embed", "resize_kernel")
def positions_resized_by_another_kernel(pair: Pair, patch: Patch) -> None:
    dim = pair.model.config.embed_dim
    rows, columns = pair.model.patch_embed.grid_size
    table = np.random.default_rng(0).normal(size=(1, 1 + (rows - 1) * (columns - 1), dim))
    tables = {
        method: resize_pos_embed(
            table,
            (rows - 1, columns - 1),
            (rows, columns),
            num_prefix_tokens=1,
            method=method,
        )
        for method in ("bicubic", "timm")
    }
    pair.change("pos_embed", lambda _: tables["timm"])
    with torch.no_grad():
        pair.reference.pos_embed.copy_(torch.tensor(tables["bicubic"]))


# ---------------------------------------------------------------------------- structure


@fault("vit", "blocks.0", "skip_connection")
def no_skip_around_the_mlp(pair: Pair, patch: Patch) -> None:
    def call(self, x, *, drop_path_rate=0.0, key=None):
        x = x + self.attn(self.norm1(x))
        return self.mlp(self.norm2(x))

    patch.setattr(block.Block, "__call__", call)


@fault("modular", "transformer_layer.0", "skip_connection")
def skip_from_the_normalised(pair: Pair, patch: Patch) -> None:
    def call(self, x, *, drop_path_rate=0.0, key=None):
        normed = self.norm_self_attn(x)
        x = normed + self.self_attn(normed)
        return x + self.feed_forward(self.norm_ff(x))

    patch.setattr(prenorm_layer.TransformerLayer, "__call__", call)


@fault("vit", "pos_drop", "dropout", drop_rate=0.1)
@fault("t2t performer", "tokens_to_token.attention1.drop", "dropout", token_drop_rate=0.1)
def dropout_left_on(pair: Pair, patch: Patch) -> None:
    pair.model.train()


# ---------------------------------------------------------------------------- derivatives


@fault("vit", "blocks.2.mlp", "derivative_of_activation")
def derivative_of_the_tanh_form(pair: Pair, patch: Patch) -> None:
    exact = jax.nn.gelu

    def gelu(x, approximate=True):
        near = exact(x, approximate=True)
        return near + jax.lax.stop_gradient(exact(x, approximate=False) - near)

    patch.setattr(jax.nn, "gelu", gelu)


@fault("t2t performer", "tokens_to_token.attention2", "derivative_of_performer")
def values_cut_off(pair: Pair, patch: Patch) -> None:
    exact = performer.linear_attention
    patch.setattr(
        performer,
        "linear_attention",
        lambda q, k, v, w, *, eps: exact(jax.lax.stop_gradient(q), k, v, w, eps=eps),
    )
