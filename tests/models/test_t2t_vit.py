"""T2T-ViT: its names and sizes, initial values, dropouts, and what is trained of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.families import build, images, named
from tests.models.test_initialisation import assert_initialised_as
from tests.models.train_mode import assert_drops_as
from tests.reference.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE
from tests.tiers import mostly_slow
from vit_jax.config import OptimizerConfig
from vit_jax.layers.variables import Frozen
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.training.optimizer import make_optimizer

# name: (parameters with the frozen ones, reference, fields of the release)
MODELS: dict[str, tuple[int, type[torch.nn.Module], dict[str, Any]]] = {
    "t2t_vit_7": (4_310_222, T2TViT, {"embed_dim": 256, "depth": 7, "num_heads": 4}),
    "t2t_vit_10": (5_889_230, T2TViT, {"embed_dim": 256, "depth": 10, "num_heads": 4}),
    "t2t_vit_12": (6_941_902, T2TViT, {"embed_dim": 256, "depth": 12, "num_heads": 4}),
    "t2t_vit_14": (21_545_550, T2TViT, {"embed_dim": 384, "depth": 14, "num_heads": 6}),
    "t2t_vit_19": (39_177_422, T2TViT, {"embed_dim": 448, "depth": 19, "num_heads": 7}),
    "t2t_vit_24": (64_105_934, T2TViT, {"embed_dim": 512, "depth": 24, "num_heads": 8}),
    "t2t_vit_t_14": (21_541_070, T2TViT, {"embed_dim": 384, "depth": 14, "num_heads": 6}),
    "t2t_vit_t_19": (39_172_942, T2TViT, {"embed_dim": 448, "depth": 19, "num_heads": 7}),
    "t2t_vit_t_24": (64_101_454, T2TViT, {"embed_dim": 512, "depth": 24, "num_heads": 8}),
    "t2t_vit_14_resnext": (21_545_550, T2TViT, {"embed_dim": 384, "depth": 14, "num_heads": 32}),
    "t2t_vit_14_wide": (25_156_302, T2TViT, {"embed_dim": 768, "depth": 4, "num_heads": 12}),
    "t2t_vit_14_se": (21_803_598, T2TViTSE, {"embed_dim": 384, "depth": 14, "num_heads": 6}),
    "t2t_vit_dense": (
        23_647_062,
        T2TViTDense,
        {"embed_dim": 128, "growth_rate": 64, "block_config": (3, 6, 6, 4), "num_heads": 8},
    ),
    "t2t_vit_16_ghost": (16_253_262, T2TViTGhost, {"embed_dim": 384, "depth": 16, "num_heads": 6}),
}


def release_fields(name: str) -> dict[str, Any]:
    tokens_type = "transformer" if name.startswith("t2t_vit_t_") else "performer"
    narrow = name in ("t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "t2t_vit_dense")
    mlp_ratio = 2.0 if narrow else 3.0
    return {**MODELS[name][2], "tokens_type": tokens_type, "mlp_ratio": mlp_ratio}


def test_the_names_are_those_of_the_release() -> None:
    assert vit_jax.list_models("t2t*") == sorted(MODELS)


def one_block(name: str) -> dict[str, Any]:
    """A stage of one block each where there are stages."""
    return {"block_config": (1, 1, 1, 1)} if name == "t2t_vit_dense" else {"depth": 1}


def parameters(model: nnx.Module) -> int:
    """With the frozen ones."""
    return sum(v.size for _, v in nnx.to_flat_state(nnx.state(model, (nnx.Param, Frozen))))


def assert_arrays(model: nnx.Module, reference: torch.nn.Module) -> None:
    """Trained and frozen ones have the reference's shapes, in any order of arrays and axes."""
    for types, trained in ((nnx.Param, True), (Frozen, False)):
        shapes = [variable.shape for _, variable in nnx.to_flat_state(nnx.state(model, types))]
        want = [p.shape for p in reference.parameters() if p.requires_grad == trained]
        assert sorted(sorted(shape) for shape in shapes) == sorted(sorted(shape) for shape in want)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_fields_and_preprocessing_are_the_releases(name: str) -> None:
    """The release's fields, each array of the model with one block, and at full depth the count."""
    count, kind, _ = MODELS[name]
    fields = release_fields(name)
    ours = model_fields(name)
    assert {field: ours[field] for field in fields} == fields
    assert (ours["token_dim"], ours["norm_eps"], ours["qkv_bias"]) == (64, 1e-5, False)
    assert (ours["qk_scale"], ours["img_size"], ours["in_chans"]) == (None, 224, 3)
    # The release's only dropout that no field of its own turns off: the performers' 0.1.
    assert (ours["drop_rate"], ours["token_drop_rate"]) == (0.0, None)

    model = abstract_model(name, **one_block(name))
    with torch.device("meta"):
        assert_arrays(model, kind(**{**fields, **one_block(name)}))
    if name == "t2t_vit_dense":  # each of its blocks has a width of its own
        assert parameters(abstract_model(name)) == count
    else:
        stem = parameters(abstract_model(name, depth=0))
        assert stem + fields["depth"] * (parameters(model) - stem) == count
    assert model.spec.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.spec.preprocessing.std == (0.229, 0.224, 0.225)
    assert model.spec.preprocessing.crop_fraction == 0.9
    assert model.spec.preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize("name", mostly_slow(MODELS, ["t2t_vit_14_wide"]))
def test_all_blocks_have_the_arrays_of_the_reference(name: str) -> None:
    with torch.device("meta"):
        assert_arrays(abstract_model(name), MODELS[name][1](**release_fields(name)))


SIZES = {(64, 64): 16, (96, 160): 60, (224, 224): 196, (33, 50): 2 * 3}


# The token modules alone see the size.
@pytest.mark.parametrize(
    ("name", "size"),
    mostly_slow(
        [(name, size) for name in MODELS for size in SIZES],
        [("t2t_vit_7", (96, 160)), ("t2t_vit_7", (33, 50)), ("t2t_vit_t_14", (33, 50))],
    ),
)
def test_a_training_step_takes_any_size(name: str, size: tuple[int, int]) -> None:
    """Its shapes, of a truncated model; the tests of parity hold the numbers."""
    model = abstract_model(name, img_size=size, **one_block(name))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, batch):
        model = nnx.merge(graph, params, rest)
        features = model.forward_features(batch, rngs=nnx.Rngs(0))
        return jnp.square(model.forward_head(features, rngs=nnx.Rngs(0))).mean(), features

    batch = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    grads, features = jax.eval_shape(jax.grad(loss, has_aux=True), params, rest, batch)
    assert features.shape[:2] == (2, SIZES[size] + 1)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


@pytest.mark.usefixtures("promoting")  # optax relies on it
@pytest.mark.parametrize(
    "family",
    mostly_slow(
        ["t2t performer", "t2t convolution", "t2t se", "t2t ghost"],
        ["t2t performer", "t2t convolution"],
    ),
)
def test_what_an_update_trains_and_what_decays(family: str) -> None:
    """Frozen arrays keep every bit; without gradients only weights of linear layers move."""
    model = build(family, depth=1)
    before = vit_jax.state_dict(model)
    frozen = {name for name in before if name.endswith((".w", "pos_embed"))}
    assert len(frozen) == (1 if family == "t2t convolution" else 3)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, decay_mask="matrices")
    optimizer = make_optimizer(config, lambda update: 0.1)

    @jax.jit
    def update(params, gradient):
        grads = jax.tree.map(lambda array: jnp.full_like(array, gradient), params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return jax.tree.map(jnp.add, params, updates)

    def changed(gradient: float) -> set[str]:
        after = vit_jax.state_dict(nnx.merge(graph, update(params, gradient), rest))
        return {name for name, array in before.items() if not np.array_equal(array, after[name])}

    assert changed(1.0) == set(before) - frozen
    matrices = {name for name, array in before.items() if array.ndim > 1}
    assert changed(0.0) == matrices - frozen - {"cls_token"}


WIDE = {"img_size": 64, "token_dim": 64, "embed_dim": 128, "num_heads": 2, "num_classes": 200}
CONVOLUTION = {"tokens_type": "convolution"}


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("t2t_vit_7", T2TViT, {"depth": 1, "mlp_ratio": 2.0, "qkv_bias": True}),
        ("t2t_vit_t_14", T2TViT, {"depth": 0, "tokens_type": "transformer"}),
        ("t2t_vit_7", T2TViT, {"depth": 0, **CONVOLUTION}),
        ("t2t_vit_14_se", T2TViTSE, {"depth": 1, **CONVOLUTION}),
        ("t2t_vit_dense", T2TViTDense, {"block_config": (1, 1), **CONVOLUTION}),
        ("t2t_vit_16_ghost", T2TViTGhost, {"depth": 1, "mlp_ratio": 3.0, **CONVOLUTION}),
    ],
)
def test_initial_values(name: str, kind: type[torch.nn.Module], fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fields = {**WIDE, "mlp_ratio": 2.0, **fields}
    assert_initialised_as(kind(**fields), name, **fields)


DROPPING = {
    "num_classes": 3,
    "token_dim": 4,
    "embed_dim": 8,
    "num_heads": 2,
    "drop_rate": 0.1,
    "attn_drop_rate": 0.2,
    "drop_path_rate": 0.3,
}


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("t2t_vit_7", T2TViT, {"depth": 2, "mlp_ratio": 2.0, **CONVOLUTION}),
        ("t2t_vit_14_se", T2TViTSE, {"depth": 2, "mlp_ratio": 2.0, "embed_dim": 16, **CONVOLUTION}),
        (
            "t2t_vit_dense",
            T2TViTDense,
            {"growth_rate": 4, "block_config": (2, 1), "mlp_ratio": 2.0, **CONVOLUTION},
        ),
        ("t2t_vit_16_ghost", T2TViTGhost, {"depth": 2, "mlp_ratio": 3.0, **CONVOLUTION}),
    ],
)
def test_dropouts_are_pytorchs(
    name: str, kind: type[torch.nn.Module], fields: dict[str, Any]
) -> None:
    """Wherever they sit, in dense stages with one rate a stage; the performers' own see below."""
    size, fields = (8, 12), {**DROPPING, **fields}
    assert_drops_as(kind(img_size=size, **fields), name, size, **fields)


def test_the_performers_dropout_is_active_without_any_rate() -> None:
    """As in the release; `token_drop_rate` turns it off."""
    torch.manual_seed(0)
    fields = {"num_classes": 3, "token_dim": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    size = (8, 12)
    assert_drops_as(T2TViT(img_size=size, **fields, mlp_ratio=2.0), "t2t_vit_7", size, **fields)
    model = build("t2t performer", token_drop_rate=None)
    with pytest.raises(ValueError, match=r"dropout in train mode.*rngs"):
        model(images())
    quiet = build("t2t performer", token_drop_rate=0.0)
    others = [build(f"t2t {kind}", token_drop_rate=None) for kind in ("transformer", "convolution")]
    for model in (quiet, *others):
        assert jax.eval_shape(model, images()).shape == (2, 5)


def test_channels_of_another_number() -> None:
    name, fields = named("t2t performer", in_chans=1, depth=1)
    model = abstract_model(name, **fields)
    assert model.spec.preprocessing is None
    images = jax.ShapeDtypeStruct((2, 8, 12, 1), jnp.float32)
    assert jax.eval_shape(type(model).__call__, model, images).shape == (2, 5)
