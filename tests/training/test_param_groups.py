"""Layers, heads and frozen parts of every model family, by the names of its state dict."""

import functools
import re

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.families import FAMILIES
from tests.tiers import mostly_slow
from vit_jax.config import OptimizerConfig
from vit_jax.models.registry import abstract_model, create_model
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.param_groups import layer_ids, parameter_groups
from vit_jax.training.state import initial_state
from vit_jax.weights.state_dict import names_by_path, torch_shapes, trained_names

FAMILIES = {
    **FAMILIES,
    "encoder": ("vit_encoder", {"img_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}),
    "modular": ("vit_modular", {"img_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}),
}
# No two blocks of the dense one are of one width.
FORMS = mostly_slow(
    [(f, scan) for f in FAMILIES for scan in (False, True) if not (scan and f == "t2t dense")],
    fast=[
        ("distilled", False),
        ("classifier", True),
        ("t2t performer", True),
        ("t2t dense", False),
        ("encoder", False),
        ("modular", False),
    ],
)
HEADS = {
    "distilled": {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"},
    "classifier": {"logits_layer.weight", "logits_layer.bias"},
    "encoder": {"linear_layer.weight", "linear_layer.bias"},
    "modular": {"classification.linear2.weight", "classification.linear2.bias"},
}


@functools.cache
def abstract(family: str, **fields):
    name, own = FAMILIES[family]
    return abstract_model(name, **{"num_classes": 5, **own, **fields})


def by_name(model, values, default=1.0) -> dict[str, float]:
    """Values by path, opened to the names of the state dict."""
    found = {}
    trained = set(trained_names(model))
    for path, names in names_by_path(model).items():
        of_path = np.broadcast_to(values.get(path, default), len(names))
        found |= dict(zip(names, of_path.tolist(), strict=True))
    return {name: value for name, value in found.items() if name in trained}


# BEiT's rule for the names of each source, written out: https://arxiv.org/abs/2106.08254.
LAYER = re.compile(
    r"(?:blocks|transformer_layers|transformer_encoder\.layers|transformer_layer)\.(\d+)\."
)
STEM = re.compile(
    r"patch_embed\.|cls_token$|dist_token$|pos_embed$|reg_token$|tokens_to_token\.|"
    r"patch_embedding_layer\.|cls_token_embedding$|positon_embedding_table$|pacth_emb\.|"
    r"cls_token_emb$|pos_emb\.|weight$|bias$"  # the encoder's patches bear no further name
)


@pytest.mark.parametrize(("family", "scan"), FORMS)
def test_layers_are_counted_from_the_patches_to_the_head(family, scan):
    model = abstract(family, **({"scan_layers": True} if scan else {}))
    ids = by_name(model, layer_ids(model), None)
    depth = max(int(m[1]) for name in ids if (m := LAYER.match(name))) + 1
    assert depth == (4 if family == "t2t dense" else 3)  # with the transition
    wanted = {}
    for name in ids:
        match = LAYER.match(name)
        wanted[name] = int(match[1]) + 1 if match else 0 if STEM.match(name) else depth + 1
    assert ids == wanted
    assert set(ids.values()) == set(range(depth + 2))


@pytest.mark.parametrize(("family", "scan"), FORMS)
def test_factors_fall_with_the_layer_and_spare_the_head(family, scan):
    model = abstract(family, **({"scan_layers": True} if scan else {}))
    config = OptimizerConfig(learning_rate=1.0, layer_decay=0.5, backbone_factor=0.1)
    factors = by_name(model, parameter_groups(config, model).factors)
    ids = by_name(model, layer_ids(model), None)
    heads = HEADS.get(family, {"head.weight", "head.bias"})
    assert heads <= factors.keys()
    for name, factor in factors.items():
        wanted = 0.5 ** (max(ids.values()) - ids[name]) * (1 if name in heads else 0.1)
        assert factor == pytest.approx(wanted, rel=1e-12), name


def test_layers_that_share_their_weights_count_once():
    model = abstract("modular", share_layers=True)
    assert set(by_name(model, layer_ids(model), None).values()) == {0, 1, 2}


def test_there_are_no_groups_by_default():
    groups = parameter_groups(OptimizerConfig(learning_rate=1.0), abstract("vit"))
    assert groups.trained is nnx.Param
    assert not groups.factors
    assert not groups.stacked


def trained_by(config: OptimizerConfig, model) -> set[str]:
    groups = parameter_groups(config, model)
    _, trained, _ = nnx.split(model, groups.trained, ...)
    names = names_by_path(model)
    return {name for path, _ in nnx.to_flat_state(trained) for name in names[path]}


@pytest.mark.parametrize(("family", "scan"), FORMS)
def test_a_linear_probe_trains_the_head_alone(family, scan):
    model = abstract(family, **({"scan_layers": True} if scan else {}))
    found = trained_by(OptimizerConfig(learning_rate=1.0, frozen=("backbone",)), model)
    assert found == HEADS.get(family, {"head.weight", "head.bias"})


def test_parts_are_frozen_by_beginnings_and_globs():
    model = abstract("vit", depth=12)
    config = OptimizerConfig(
        learning_rate=1.0, frozen=("pos_embed", "patch_embed", "blocks.1", "blocks.?.mlp.*.bias")
    )
    names = set(trained_names(model))
    frozen = names - trained_by(config, model)
    assert frozen == {
        name
        for name in names
        if name == "pos_embed"
        or name.startswith(("patch_embed.", "blocks.1."))
        or re.fullmatch(r"blocks\.\d\.mlp\.\w+\.bias", name)
    }
    assert "blocks.10.mlp.fc1.bias" not in frozen


@pytest.mark.parametrize(
    ("family", "fields", "settings", "message"),
    [
        ("vit", {}, {"frozen": ("head", "bloks")}, r"'bloks' names no parameter.*blocks\.\*\.attn"),
        ("vit", {}, {"frozen": ("blocks.1",), "scan": True}, r"'blocks\.1\..*'blocks\.0\..*scan"),
        ("vit", {}, {"frozen": ("*",)}, "takes all parameters"),
        ("vit", {"num_classes": 0}, {"frozen": ("backbone",)}, "frozen='backbone' tells"),
        ("vit", {"num_classes": 0}, {"backbone_factor": 0.1}, "backbone_factor tells"),
        ("t2t performer", {}, {"frozen": ("tokens_to_token.attention1.w",)}, "names no parameter"),
    ],
)
def test_a_mistake_is_told(family, fields, settings, message):
    scan = settings.pop("scan", False)
    config = OptimizerConfig(learning_rate=1.0, **settings)
    with pytest.raises(ValueError, match=message) as error:
        parameter_groups(config, abstract(family, scan_layers=scan, **fields))
    assert str(error.value).startswith("config.optimizer")
    assert "\n" not in str(error.value)


def test_what_is_frozen_has_no_moments_and_no_average():
    def init(config: OptimizerConfig):
        model = abstract("vit")
        groups = parameter_groups(config, model)
        name, fields = FAMILIES["vit"]
        optimizer = make_optimizer(config, lambda count: 0.1, groups)
        return jax.eval_shape(
            lambda: initial_state(
                create_model(name, rngs=nnx.Rngs(0), num_classes=5, **fields),
                optimizer,
                groups.trained,
                average=True,
            )
        )

    state = init(OptimizerConfig(learning_rate=1.0, frozen=("backbone",)))
    head = {(8, 5), (5,)}
    for tree in (state.params, state.ema):
        assert {leaf.shape for leaf in jax.tree.leaves(tree)} == head
    assert {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} == head | {()}
    shapes = torch_shapes(abstract("vit"))
    assert len(jax.tree.leaves(state.frozen)) == len(shapes) - 2
