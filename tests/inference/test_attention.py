"""What a model attends to: PyTorch's maps and rollout, and the model's own outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.families import build, images
from tests.parity.live import randomised
from tests.reference.vit import Attention, VisionTransformer
from tests.weights.designs import make
from vit_jax.inspect.attention import (
    attention_maps,
    attention_rollout,
    class_attention,
    token_attention_maps,
)
from vit_jax.inspect.recorder import plain, recast
from vit_jax.layers.performer import TokenPerformer, linear_attention
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model
from vit_jax.parity.sides import ModelSide

FIELDS = {
    "img_size": (8, 12),
    "patch_size": 4,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "qk_norm": True,
    "reg_tokens": 1,
    "num_classes": 5,
}


def torch_rollout(reference: VisionTransformer, pixels: np.ndarray) -> np.ndarray:
    """Abnar & Zuidema's product, written as in the paper, over hooked weights."""
    weights: list[torch.Tensor] = []
    hooks = [
        module.attn_drop.register_forward_hook(lambda *call: weights.append(call[-1].detach()))
        for module in reference.modules()
        if isinstance(module, Attention)
    ]
    with torch.no_grad():
        reference(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    for hook in hooks:
        hook.remove()
    assert len(weights) == 2
    rollout = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype).expand(len(pixels), -1, -1)
    for layer in weights:
        mixed = 0.5 * layer.mean(dim=1) + 0.5 * torch.eye(layer.shape[-1], dtype=layer.dtype)
        rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
    return rollout.numpy()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rollout_is_pytorchs(dtype: str) -> None:
    """To 1e-12 in float64 and 1e-6 in float32, of entries up to one."""
    torch.manual_seed(0)
    reference = randomised(VisionTransformer(**FIELDS)).to(getattr(torch, dtype)).eval()
    pixels = np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        model = abstract_model("vit_tiny_patch16_224", **FIELDS, dtype=dtype, param_dtype=dtype)
        vit_jax.load_state_dict(model, reference.state_dict())

        @jax.jit
        def found(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            rollout = attention_rollout(attention_maps(model, x))
            return rollout, class_attention(rollout, model)

        rollout, over_image = found(pixels)
        assert rollout.dtype == dtype
    want = torch_rollout(reference, pixels)
    assert want.std() > 0.03  # no uniform weights
    np.testing.assert_allclose(rollout, want, rtol=0, atol=1e-12 if dtype == "float64" else 1e-6)
    np.testing.assert_array_equal(over_image.reshape(2, 6), np.asarray(rollout)[:, 0, 2:])


ATTENDING = ["vit", "classifier", "t2t ghost"]


def own_call(module: nnx.Module, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a layer gives, and what its weights times its values come to there."""
    weights = module.attention_weights(tokens)
    name = type(module).__name__
    if name == "GhostAttention":
        v = module._heads(module.v(tokens), module.cheap_operation_v)
        mixed = jnp.matmul(weights, v)
        return module(tokens), module.proj(mixed.transpose(0, 2, 1, 3).reshape(tokens.shape))
    stacked = module.in_proj if name == "MultiheadAttention" else module.qkv
    heads = weights.shape[1]
    v = jnp.split(stacked(tokens), 3, axis=-1)[2]  # (B, N, D)
    split = v.reshape(*v.shape[:2], heads, -1).transpose(0, 2, 1, 3)
    mixed = jnp.matmul(weights, split).transpose(0, 2, 1, 3).reshape(v.shape)
    if name == "TokenAttention":
        return module(tokens), v + module.proj(mixed)
    project = module.out_proj if name == "MultiheadAttention" else module.proj
    return module(tokens), project(mixed)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("family", ATTENDING)
def test_weights_times_values_are_the_layers_output(family: str) -> None:
    model = build(family, jnp.float64)
    layer = [
        module
        for _, module in nnx.iter_modules(model)
        if hasattr(module, "attention_weights") and not isinstance(module, TokenPerformer)
    ][-1]
    linear = getattr(layer, "qkv", None) or getattr(layer, "in_proj", None) or layer.q
    tokens = np.random.default_rng(2).normal(size=(2, 5, linear.kernel.shape[0]))
    got, want, sums = jax.jit(
        lambda x: (*own_call(layer, x), layer.attention_weights(x).sum(axis=-1))
    )(tokens)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(sums, 1, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_implied_weights_of_the_performer_are_what_it_does() -> None:
    model = build("t2t performer", jnp.float64, img_size=(16, 12), depth=1)
    batch = np.asarray(images(jnp.float64)).repeat(2, axis=1)
    maps = jax.jit(lambda x: token_attention_maps(model, x))(batch)
    assert [weights.shape for weights in maps.values()] == [(2, 1, 12, 12), (2, 1, 4, 4)]
    for weights in maps.values():
        assert (np.asarray(weights) > 0).all()
        # With weights as large as these, eps takes a part of some rows.
        sums = np.asarray(weights).sum(axis=-1)
        assert sums.max() <= 1 + 1e-12
        assert np.median(sums) > 0.99
    layer = model.tokens_to_token.attention2

    @jax.jit
    def outputs(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, q, v = layer.keys_queries_values(tokens)
        implied = jnp.matmul(layer.attention_weights(tokens)[:, 0], v)
        return implied, linear_attention(q, k, v, layer.w[...], eps=layer.eps)

    got, want = outputs(np.random.default_rng(2).normal(size=(2, 7, 36)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


def shapes_of_maps(model: VisionModel) -> dict[str, tuple[int, ...]]:
    """In their order, which `jax.jit` would sort."""
    shapes: dict[str, tuple[int, ...]] = {}
    jax.eval_shape(
        lambda x: shapes.update({name: m.shape for name, m in attention_maps(model, x).items()}),
        images(),
    )
    return shapes


def test_maps_by_name_whatever_the_form_and_mode() -> None:
    plainly = build("vit")
    scanned = build("vit", scan_layers=True, remat="blocks", drop_rate=0.5)  # in train mode
    want, got = jax.jit(lambda x: [attention_maps(model, x) for model in (plainly, scanned)])(
        images()
    )
    assert list(shapes_of_maps(plainly)) == [f"blocks.{number}.attn" for number in range(3)]
    assert got.keys() == want.keys()
    for name, weights in want.items():
        np.testing.assert_allclose(got[name], weights, rtol=0, atol=1e-5)
    assert not scanned.deterministic
    assert type(scanned) is type(plain(scanned))  # no class was changed


def test_the_plain_copy_of_a_model_inside_of_a_users_module() -> None:
    """Recast too; the module itself and what parity asks of it stay as they are."""

    class Users(nnx.Module):
        def __init__(self) -> None:
            self.inner = build("vit", remat="blocks", depth=1)

    users = Users()
    copy = plain(users)
    assert (copy.inner.config.remat, users.inner.config.remat) == ("none", "blocks")
    assert recast(users, jnp.bfloat16).inner.config.dtype == "bfloat16"
    assert not ModelSide(users, jnp.float32).is_plain
    assert ModelSide(copy, jnp.float32).is_plain


def test_layers_that_are_shared_or_attend_across_the_batch() -> None:
    shared = make("modular", share_layers=True)
    first = "transformer_layer.0.self_attn"
    shapes = {first: (2, 3, 7, 7), f"{first}#1": (2, 3, 7, 7)}
    assert shapes_of_maps(shared) == shapes
    with pytest.raises(ValueError, match="attends across the batch"):
        shapes_of_maps(make("encoder", batch_first=False))


def weights_of(*layers: list) -> list[np.ndarray]:
    return [np.asarray(layer, np.float32)[None] for layer in layers]


def test_fusion_residual_and_discarding_by_hand() -> None:
    heads = [[[0.8, 0.2], [0.4, 0.6]], [[0.4, 0.6], [0.2, 0.8]]]
    blocks = weights_of(heads, [[[1.0, 0.0], [1.0, 0.0]]], [[[0.5, 0.5], [0.0, 1.0]]])

    @jax.jit
    def found(maps: jax.Array, first: jax.Array, last: jax.Array) -> list[jax.Array]:
        return [
            *(attention_rollout([maps], head_fusion=f, residual=0) for f in ("mean", "max", "min")),
            attention_rollout([maps], discard_ratio=0.25),
            attention_rollout({"a": first, "b": last}, residual=0),
            attention_rollout([last, first], residual=0),
        ]

    wanted = [
        [[0.6, 0.4], [0.3, 0.7]],
        [[0.8 / 1.4, 0.6 / 1.4], [0.4 / 1.2, 0.8 / 1.2]],
        [[0.4 / 0.6, 0.2 / 0.6], [0.2 / 0.8, 0.6 / 0.8]],
        # 0.3, the smallest of four, is gone; half of the rest and half of the identity.
        [[0.8, 0.2], [0.0, 1.0]],
        # The last block stands left.
        [[1, 0], [1, 0]],
        [[0.5, 0.5], [0.5, 0.5]],
    ]
    for got, want in zip(found(*blocks), wanted, strict=True):
        np.testing.assert_allclose(got[0], want, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, r"at least one block.*got shapes \[\]"),
        ([np.ones((1, 2, 3, 3)), np.ones((1, 2, 4, 4))], {}, r"the same B and\s+N in all"),
        ([np.ones((1, 3, 3))], {}, r"\(B, heads, N, N\)"),
        ([np.ones((1, 2, 3, 3))], {"head_fusion": "sum"}, "one of mean, max, min, got 'sum'"),
        ([np.ones((1, 2, 3, 3))], {"discard_ratio": 1.0}, "discard_ratio must be at least 0"),
        ([np.ones((1, 2, 3, 3))], {"residual": -0.1}, "residual must be at least 0"),
        ([np.ones((1, 2, 3, 3))], {"residual": 0, "discard_ratio": 0.5}, "needs a residual"),
    ],
)
def test_what_cannot_be_rolled_out(layers, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attention_rollout(layers, **options)


def test_whose_attention_over_the_image() -> None:
    attention = np.arange(2 * 8 * 8, dtype=np.float32).reshape(2, 8, 8)
    model = build("distilled", depth=1)
    got = class_attention(attention, model, query="distillation")
    np.testing.assert_array_equal(got, attention[:, 1, 2:].reshape(2, 2, 3))
    got = class_attention(attention, model, query="mean")
    want = attention[:, 2:, 2:].mean(axis=1).reshape(2, 2, 3)
    np.testing.assert_allclose(got, want)
    with pytest.raises(ValueError, match=r"no 'register' token.*class, distillation, mean"):
        class_attention(attention, model, query="register")
    pooled = build("vit", class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="no 'class' token to ask: query is one of mean"):
        class_attention(attention[:, :6, :6], pooled)
    with pytest.raises(ValueError, match=r"2 tokens and 2x3 patches, got \(2, 7, 7\)"):
        class_attention(attention[:, :7, :7], model)


def test_a_model_whose_tokens_no_attention_makes() -> None:
    model = build("t2t convolution")
    with pytest.raises(ValueError, match="makes its tokens without attention"):
        jax.eval_shape(lambda x: token_attention_maps(model, x), images())
