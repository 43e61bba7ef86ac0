"""State dicts fitted to models of another image size, head or number of channels."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.tiers import mostly_slow
from tests.weights.designs import logits
from vit_jax.layers.position import sinusoid_table
from vit_jax.layers.position_resize import METHODS, resize_pos_embed
from vit_jax.models.registry import abstract_model
from vit_jax.weights.adapt import adapt

_VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
_T2T: dict[str, Any] = {"embed_dim": 8, "depth": 1, "num_heads": 2, "token_dim": 6}
_DENSE = {"embed_dim": 8, "growth_rate": 4, "block_config": (1, 1), "num_heads": 2, "token_dim": 6}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "registers": ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 2}),
    "distilled": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", _VIT),
    "classifier": ("vit_classifier", {**_VIT, "mlp_dim": 8, "mlp_head_units": (6,)}),
    "encoder": ("vit_encoder", {**_VIT, "mlp_dim": 8, "max_tokens": 30}),
    "modular": ("vit_modular", {**_VIT, "mlp_dim": 8, "head_hidden_dim": 6, "max_tokens": 30}),
    "performer": ("t2t_vit_7", _T2T),
    "transformer": ("t2t_vit_t_14", _T2T),
    "convolution": ("t2t_vit_7", {**_T2T, "tokens_type": "convolution"}),
    "dense": ("t2t_vit_dense", _DENSE),
}
POSITIONS = {
    "vit": ("pos_embed", 1),
    "registers": ("pos_embed", 3),
    "distilled": ("pos_embed", 2),
    "deit3": ("pos_embed", 0),
    "classifier": ("patch_embedding_layer.position_emb.weight", 1),
}
T2T = ("performer", "transformer", "convolution", "dense")
SIZE = dict.fromkeys(T2T, 32)  # pixels; others have 16
HEADS = {
    "vit": ["head"],
    "distilled": ["head", "head_dist"],
    "classifier": ["logits_layer"],
    "encoder": ["linear_layer"],
    "modular": ["classification.linear2"],
    "performer": ["head"],
    "dense": ["head"],
}
# The weight that reads the channels, and how to see it as (out, channels, pixels).
PATCHES = {
    "vit": ("patch_embed.proj.weight", lambda w: w.reshape(8, -1, 16)),
    "classifier": (
        "patch_embedding_layer.projection_layer.weight",
        lambda w: w.reshape(8, -1, 16),
    ),
    "encoder": ("weight", lambda w: w.T.reshape(8, -1, 16)),
    "modular": ("pacth_emb.conv.weight", lambda w: w.reshape(8, -1, 16)),
    "convolution": ("tokens_to_token.soft_split0.weight", lambda w: w.reshape(6, -1, 49)),
}


@functools.cache
def _split(family: str, **fields: Any) -> tuple[nnx.GraphDef, nnx.State]:
    name, own = MODELS[family]
    settings = {"img_size": 16, "num_classes": 5, **own, **fields}
    model = abstract_model(name, **settings)
    model.eval()
    return nnx.split(model)


def abstract(family: str, **fields: Any) -> Any:
    """A small model without arrays, in eval mode."""
    return nnx.merge(*_split(family, **fields))


def build(family: str, seed: int = 0, **fields: Any) -> Any:
    """The model with weights drawn at random, but the table that is a formula.

    (No initialiser runs: they would take most of a small model's time.)
    """
    rng = np.random.default_rng(seed)
    graph, arrays = _split(family, **fields)
    arrays = jax.tree.map(
        lambda a: jax.device_put(rng.normal(0, 0.5, a.shape).astype(a.dtype)), arrays
    )
    model = nnx.merge(graph, arrays)
    if family in T2T:
        table = sinusoid_table(*model.pos_embed.shape[1:])
        model.pos_embed.set_value(jax.device_put(table[None].astype(np.float32)))
    return model


def images(*size: int, channels: int = 3) -> jax.Array:
    shape = (2, *size, channels)
    return jax.device_put(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def assert_same(state: dict[str, np.ndarray], other: dict[str, np.ndarray], but: set[str]) -> None:
    """The same names, and every array but those the very one of `other`."""
    assert state.keys() == other.keys()
    for name in state.keys() - but:
        assert state[name] is other[name], name


@pytest.mark.parametrize("family", MODELS)
def test_nothing_asked_for_is_nothing_done(family):
    weights = vit_jax.state_dict(build(family))
    adapted, report = adapt(weights, build(family, 1))
    assert report == []
    assert adapted is not weights
    assert_same(adapted, weights, set())


def test_what_is_not_asked_for_is_still_refused():
    weights = vit_jax.state_dict(build("vit"))
    model = build("vit", 1, img_size=24, num_classes=3, in_chans=1)
    entries = {"resize": "pos_embed", "head": "head.weight", "in_chans": "patch_embed.proj.weight"}
    asked = {"resize": "source", "head": "drop", "in_chans": True}
    for left_out, entry in entries.items():
        adapted, _ = adapt(weights, model, **{k: v for k, v in asked.items() if k != left_out})
        with pytest.raises(ValueError, match=f"misshapen: {entry} wanted") as error:
            vit_jax.load_state_dict(model, adapted)
        assert set(str(error.value).split()) & set(entries.values()) == {entry}
    adapted, report = adapt(weights, model, **asked)
    vit_jax.load_state_dict(model, adapted)
    assert report == [
        "pos_embed: 4x4 to 6x6 by 'timm', 1 prefix rows kept",
        "head: dropped the state dict's (5 classes), the model keeps its own of 3 classes",
        "patch_embed.proj.weight: 3 channels to 1, their sum",
    ]


@pytest.mark.parametrize("family", POSITIONS)
def test_positions_of_another_image_size(family):
    weights = vit_jax.state_dict(build(family))
    before = {name: array.copy() for name, array in weights.items()}
    model = build(family, 1, img_size=(12, 24))
    name, prefix = POSITIONS[family]
    for method in ("source", *METHODS):
        adapted, report = adapt(weights, model, resize=method)
        kernel = "timm" if method == "source" else method
        assert report == [f"{name}: 4x4 to 3x6 by '{kernel}', {prefix} prefix rows kept"]
        assert_same(adapted, weights, {name})
        table = before[name]
        want = resize_pos_embed(table, (4, 4), (3, 6), num_prefix_tokens=prefix, method=kernel)
        np.testing.assert_array_equal(adapted[name], want, err_msg=method)
    vit_jax.load_state_dict(model, adapted)
    for key, array in weights.items():
        np.testing.assert_array_equal(array, before[key])


def test_a_grid_that_is_not_square_must_be_said():
    weights = vit_jax.state_dict(build("vit", img_size=(8, 32)))  # 2x8
    square = build("vit", 1)
    # As many rows: nothing tells 2x8 from 4x4 but the word.
    adapted, report = adapt(weights, square, resize="source")
    assert report == ["pos_embed: 17 rows already, kept as of the model's 4x4 grid"]
    assert_same(adapted, weights, set())
    adapted, report = adapt(weights, square, resize="bilinear", old_grid=(2, 8))
    assert report == ["pos_embed: 2x8 to 4x4 by 'bilinear', 1 prefix rows kept"]
    want = resize_pos_embed(
        weights["pos_embed"], (2, 8), (4, 4), num_prefix_tokens=1, method="bilinear"
    )
    np.testing.assert_array_equal(adapted["pos_embed"], want)
    _, report = adapt(weights, build("vit", 1, img_size=(8, 32)), resize="source", old_grid=(2, 8))
    assert report == ["pos_embed: 2x8 already, kept"]

    weights = vit_jax.state_dict(build("vit", img_size=(8, 24)))  # 2x6
    with pytest.raises(ValueError, match=r"13 rows.*no square grid; give old_grid"):
        adapt(weights, square, resize="source")
    with pytest.raises(ValueError, match=r"grid of 3x6, got \(1, 13, 8\)"):
        adapt(weights, square, resize="source", old_grid=(3, 6))


@pytest.mark.parametrize("size", [2, 8, (6, 3)])
def test_patches_of_another_size(size):
    """As timm: the new kernel on a resized patch gives what the old one gave on the patch."""
    weights = vit_jax.state_dict(build("vit"))
    name = "patch_embed.proj.weight"
    weights[name] = weights[name].astype(np.float64)
    model = abstract("vit", patch_size=size, img_size=24)
    adapted, report = adapt(weights, model, resize="bilinear")
    rows, columns = model.patch_embed.patch_size
    assert report[1] == f"{name}: 4x4 to {rows}x{columns} by timm's least squares"
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    resized = torch.nn.functional.interpolate(
        basis, (rows, columns), mode="bicubic", antialias=True, align_corners=False
    ).reshape(16, -1)
    want = weights[name].reshape(8, 3, 16) @ np.linalg.pinv(resized.numpy().T)
    assert adapted[name].shape == (8, 3, rows, columns)
    np.testing.assert_allclose(adapted[name].reshape(8, 3, -1), want, rtol=0, atol=1e-12)
    for other in ("classifier", "encoder", "convolution"):  # whose sources have no such rule
        assert not abstract(other, img_size=32).patch_weights().is_resampled
    weights[name] = weights[name].astype(int)
    with pytest.raises(ValueError, match="patch kernel in floating point, got int64"):
        adapt(weights, model, resize="source")


@pytest.mark.parametrize("family", T2T)
def test_the_sinusoid_is_computed_for_another_size(family):
    weights = vit_jax.state_dict(build(family, img_size=32))
    model = build(family, 1, img_size=(48, 64))
    own = vit_jax.state_dict(model)["pos_embed"]
    adapted, report = adapt(weights, model, resize="source")
    assert report == ["pos_embed: the sinusoid table computed for 13 rows, of 5"]
    assert_same(adapted, weights, {"pos_embed"})
    np.testing.assert_array_equal(adapted["pos_embed"], own)
    vit_jax.load_state_dict(model, adapted)

    adapted, report = adapt(weights, model, resize="bicubic")
    assert report == ["pos_embed: 2x2 to 3x4 by 'bicubic', 1 prefix rows kept"]
    want = resize_pos_embed(
        weights["pos_embed"], (2, 2), (3, 4), num_prefix_tokens=1, method="bicubic"
    )
    np.testing.assert_array_equal(adapted["pos_embed"], want)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_the_sinusoid_in_other_types(dtype):
    """As stored: a float64 one may hold a float32 table."""
    weights = vit_jax.state_dict(build("performer", img_size=32))
    weights["pos_embed"] = weights["pos_embed"].astype(dtype)
    adapted, _ = adapt(weights, build("performer", 1, img_size=48), resize="source")
    assert adapted["pos_embed"].dtype == dtype
    want = sinusoid_table(10, 8)[None].astype(dtype)
    np.testing.assert_array_equal(adapted["pos_embed"], want)


@pytest.mark.parametrize("change", [lambda t: t + 1e-4, lambda t: t[0], lambda t: t.astype(int)])
def test_a_trained_table_is_not_taken_for_the_sinusoid(change):
    weights = vit_jax.state_dict(build("performer", img_size=32))
    weights["pos_embed"] = change(weights["pos_embed"])
    with pytest.raises(ValueError, match=r"is not the sinusoid table.*name a method: timm, bicu"):
        adapt(weights, build("performer", 1, img_size=48), resize="source")


@pytest.mark.parametrize("family", ["encoder", "modular"])
def test_numbered_positions(family):
    """The first rows serve a smaller table, with the same logits; there are no more of them."""
    large, small = build(family), build(family, 1, max_tokens=17)
    adapted, (line,) = adapt(vit_jax.state_dict(large), small, resize="source")
    assert line.endswith(": the first 17 of 30 rows kept")
    vit_jax.load_state_dict(small, adapted)
    x = images(16, 16)
    np.testing.assert_allclose(logits(small, x), logits(large, x), rtol=0, atol=1e-6)

    _, (line,) = adapt(vit_jax.state_dict(large), large, resize="timm")
    assert line.endswith(": 30 rows already, kept")
    with pytest.raises(ValueError, match=r"has 17 rows and the model 30 \(max_tokens\).*no grid"):
        adapt(vit_jax.state_dict(small), large, resize="timm")
    with pytest.raises(ValueError, match="leave old_grid out"):
        adapt(vit_jax.state_dict(large), small, resize="timm", old_grid=(4, 4))


@pytest.mark.parametrize("family", HEADS)
def test_a_dropped_head_is_the_models_own(family):
    model = build(family, 1, num_classes=3)
    own = vit_jax.state_dict(model)
    weights = vit_jax.state_dict(build(family))
    heads = {f"{head}.{leaf}" for head in HEADS[family] for leaf in ("weight", "bias")}
    for stored in (weights, {n: a for n, a in weights.items() if n not in heads}):
        adapted, report = adapt(stored, model, head="drop")
        old = "5 classes" if stored is weights else "none"
        assert report == [
            f"{head}: dropped the state dict's ({old}), the model keeps its own of 3 classes"
            for head in HEADS[family]
        ]
        vit_jax.load_state_dict(model, adapted)
        for name, array in vit_jax.state_dict(model).items():
            np.testing.assert_array_equal(array, (own if name in heads else weights)[name])


def test_a_head_dropped_for_none():
    model = build("distilled", 1, num_classes=0)
    adapted, report = adapt(vit_jax.state_dict(build("distilled")), model, head="drop")
    assert report == [
        f"{head}: dropped the state dict's (5 classes), the model keeps none, as built"
        for head in ("head", "head_dist")
    ]
    vit_jax.load_state_dict(model, adapted)


def test_a_layer_before_the_head_goes_with_it(tmp_path):
    """Where only one of the two has it, also if the file states its fields; else it is loaded."""
    vit_jax.save_pretrained(build("vit", representation_size=8), tmp_path / "w.safetensors")
    report = vit_jax.load_pretrained(build("vit"), tmp_path / "w.safetensors", head="drop")
    assert "pre_logits.fc: left out with the head, the model has none" in report.adapted
    with pytest.raises(ValueError, match="representation_size=8, this one has None"):
        vit_jax.load_pretrained(build("vit"), tmp_path / "w.safetensors")
    plain, deep = (build("vit", 1, representation_size=size) for size in (None, 8))
    of_plain, of_deep = (
        vit_jax.state_dict(build("vit")),
        vit_jax.state_dict(build("vit", representation_size=8)),
    )
    name = "pre_logits.fc"
    for model, weights, told in (
        (plain, of_deep, [f"{name}: left out with the head, the model has none"]),
        (deep, of_plain, [f"{name}: not in the state dict, the model keeps its own"]),
        (deep, of_deep, []),
    ):
        own = vit_jax.state_dict(model)
        adapted, (_, *report) = adapt(weights, model, head="drop")
        assert report == told
        vit_jax.load_state_dict(model, adapted)
        for key, array in vit_jax.state_dict(model).items():
            is_own = key.startswith("head") or key not in weights
            np.testing.assert_array_equal(array, (own if is_own else weights)[key])


@pytest.mark.parametrize("family", HEADS)
def test_a_subset_of_classes(family):
    """The chosen rows of every head, in the order in which they are chosen."""
    chosen, weights = [4, 0, 3], vit_jax.state_dict(build(family))
    model = build(family, 1, num_classes=3)
    adapted, report = adapt(weights, model, head=chosen)
    heads = [f"{head}.{leaf}" for head in HEADS[family] for leaf in ("weight", "bias")]
    assert report == [f"{name}: 3 of 5 classes kept" for name in heads]
    assert_same(adapted, weights, set(heads))
    for name in heads:
        np.testing.assert_array_equal(adapted[name], weights[name][chosen])
    vit_jax.load_state_dict(model, adapted)


@pytest.mark.parametrize(
    "family", mostly_slow([family for family in HEADS if family != "dense"], ["distilled"])
)
def test_a_subset_of_classes_gives_a_subset_of_the_logits(family):
    size, chosen = SIZE.get(family, 16), [4, 0, 3]
    full = build(family, img_size=size)
    model = build(family, 1, img_size=size, num_classes=3)
    adapted, _ = adapt(vit_jax.state_dict(full), model, head=chosen)
    vit_jax.load_state_dict(model, adapted)
    x = images(size, size)
    want = np.asarray(logits(full, x))[:, chosen]
    np.testing.assert_allclose(logits(model, x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("keep", r"head must be one of \('drop',\), got 'keep'"),
        ([0, 1], "indices of the model's 3 classes.*got 2 indices of 2 classes"),
        ([0, 1, 1], "each once, got 3 indices of 2 classes"),
        ([], "got 0 indices"),
        ([0, 1, 5], r"head\.weight of the state dict has 5 classes: .*below 5, got 5"),
        ([0, 1, -1], "a class index of head must be an int of at least 0, got -1"),
        ([0, 1, True], "a class index of head must be an int of at least 0, got True"),
    ],
)
def test_heads_that_cannot_be(head, message):
    with pytest.raises(ValueError, match=message):
        adapt(vit_jax.state_dict(build("vit")), build("vit", 1, num_classes=3), head=head)


CONVERTIBLE = ("vit", "classifier", "encoder", "modular", "performer", "convolution")


@pytest.mark.parametrize("family", mostly_slow(CONVERTIBLE, ["performer"]))
def test_one_channel_answers_as_three_equal_ones(family):
    size = SIZE.get(family, 16)
    colour, grey = build(family, img_size=size), build(family, 1, img_size=size, in_chans=1)
    x = images(size, size, channels=1)
    want = np.asarray(logits(colour, np.repeat(x, 3, axis=-1)))
    assert np.abs(want - logits(grey, x)).max() > 0.01
    adapted, (line,) = adapt(vit_jax.state_dict(colour), grey, in_chans=True)
    assert "3 channels to 1, their sum" in line
    vit_jax.load_state_dict(grey, adapted)
    np.testing.assert_allclose(logits(grey, x), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", mostly_slow(CONVERTIBLE, ["performer"]))
def test_six_channels_answer_as_two_copies_of_three(family):
    size = SIZE.get(family, 16)
    three, six = build(family, img_size=size), build(family, 1, img_size=size, in_chans=6)
    adapted, (line,) = adapt(vit_jax.state_dict(three), six, in_chans=True)
    assert "3 channels to 6, repeated" in line
    vit_jax.load_state_dict(six, adapted)
    x = images(size, size)
    doubled = np.concatenate([x, x], axis=-1)
    np.testing.assert_allclose(logits(six, doubled), logits(three, x), rtol=0, atol=2e-5)


def _timm_adapt_input_conv(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """timm 1.0.31, models/_manipulate.py, of 3 channels."""
    dtype, weight = weight.dtype, weight.float()
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True).to(dtype)
    weight = weight.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans]
    return (weight * (3 / float(in_chans))).to(dtype)


@pytest.mark.parametrize("family", PATCHES)
def test_channels_as_timm(family):
    """Every bit, in half precision too; a Linear over unfolded patches as the convolution."""
    weights = vit_jax.state_dict(build(family))
    name, view = PATCHES[family]
    for channels, dtype in itertools.product((1, 2, 4, 6, 7), (np.float32, np.float16)):
        stored = weights | {name: weights[name].astype(dtype)}
        three = torch.from_numpy(view(stored[name]).copy())[..., None]
        want = _timm_adapt_input_conv(three, channels)[..., 0].numpy()
        model = build(family, 1, in_chans=channels)
        adapted, _ = adapt(stored, model, in_chans=True)
        assert_same(adapted, stored, {name})
        assert adapted[name].dtype == dtype
        np.testing.assert_array_equal(view(adapted[name]), want, err_msg=f"{channels} {dtype}")
        vit_jax.load_state_dict(model, adapted)


def test_channels_in_float64_are_not_rounded():
    weights = vit_jax.state_dict(build("vit"))
    weight = np.random.default_rng(0).normal(size=(8, 3, 4, 4))
    weights["patch_embed.proj.weight"] = weight
    adapted, _ = adapt(weights, build("vit", 1, in_chans=1), in_chans=True)
    np.testing.assert_allclose(
        adapted["patch_embed.proj.weight"], weight.sum(1, keepdims=True), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("family", MODELS)
def test_as_many_channels_are_kept(family):
    weights = vit_jax.state_dict(build(family))
    adapted, (line,) = adapt(weights, build(family, 1), in_chans=True)
    assert line.endswith(": 3 channels already, kept")
    assert_same(adapted, weights, set())


@pytest.mark.parametrize(
    ("family", "old", "new", "message"),
    [
        ("vit", 2, 3, "has 2 channels and the model 3: weights are converted from 3 channels to"),
        ("encoder", 1, 3, "weight of the state dict has 1 channels and the model 3"),
        (
            "performer",
            3,
            4,
            r"norm1, which is over all.*1 or a multiple of 3 channels.*model has 4",
        ),
        ("transformer", 3, 1, r"no bias: it cannot be converted to 1; build.*in_chans=3"),
        ("transformer", 3, 6, "no bias: it cannot be converted to 6"),
    ],
)
def test_channels_without_a_rule(family, old, new, message):
    weights = vit_jax.state_dict(build(family, in_chans=old))
    with pytest.raises(ValueError, match=message):
        adapt(weights, build(family, 1, in_chans=new), in_chans=True)


def test_patches_that_are_none():
    weights = vit_jax.state_dict(build("classifier"))
    name, grey = PATCHES["classifier"][0], build("classifier", 1, in_chans=1)
    for array, message in (
        (np.zeros((8, 50), np.float32), r"\(8, 50\), does not hold channels of 16 numbers each"),
        (np.zeros(8, np.float32), r"\(8,\), does not hold channels"),
        (np.zeros((8, 48), int), "in floating point, got int64"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt({**weights, name: array}, grey, in_chans=True)
    weights = vit_jax.state_dict(build("performer"))
    weights["tokens_to_token.attention1.norm1.bias"] = np.zeros(146, np.float32)
    with pytest.raises(ValueError, match=r"do not fit each other.*norm1\.bias \(146,\)"):
        adapt(weights, build("performer", 1, in_chans=1), in_chans=True)


def test_missing_entries_are_reported_and_left_to_the_strict_load():
    model = build("performer", in_chans=1, img_size=32)
    assert adapt({}, model, resize="source", head=[0, 1, 2, 3, 4], in_chans=True) == (
        {},
        [
            "pos_embed: not in the state dict, nothing to resize",
            "head.weight: not in the state dict, no classes to choose from",
            "head.bias: not in the state dict, no classes to choose from",
            "tokens_to_token.attention1.kqv.weight: not in the state dict, no channels to convert",
        ],
    )
    weights = vit_jax.state_dict(build("performer"))
    del weights["tokens_to_token.attention1.norm1.weight"]
    adapted, report = adapt(weights, model, in_chans=True)
    assert report == [
        "tokens_to_token.attention1.norm1.weight: not in the state dict, no channels converted"
    ]
    assert_same(adapted, weights, set())


def test_arguments():
    model = build("vit")
    weights = vit_jax.state_dict(model)
    with pytest.raises(ValueError, match=r"resize must be one of \('source', 'timm'.*got 'area'"):
        adapt(weights, model, resize="area")
    with pytest.raises(ValueError, match=r"old_grid=\(4, 4\) needs resize, one of \('source'"):
        adapt(weights, model, old_grid=(4, 4))


def test_an_abstract_model_is_enough_without_a_dropped_head():
    model = abstract("vit", img_size=24, num_classes=2, in_chans=1)
    weights = vit_jax.state_dict(build("vit"))
    with pytest.raises(ValueError, match="abstract"):
        adapt(weights, model, head="drop")
    adapted, _ = adapt(weights, model, resize="source", head=[1, 2], in_chans=True)
    vit_jax.load_state_dict(model, adapted)


def test_a_384_form_loads_224_weights():
    """DeiT, 224 and 384 pixels in patches of 16, resized as its main.py does."""
    small, large = (build("distilled", img_size=size, patch_size=16) for size in (224, 384))
    weights = vit_jax.state_dict(small)
    adapted, report = adapt(weights, large, resize="bicubic")
    assert report == ["pos_embed: 14x14 to 24x24 by 'bicubic', 2 prefix rows kept"]
    vit_jax.load_state_dict(large, adapted)
    table = torch.from_numpy(weights["pos_embed"])
    grid = table[:, 2:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
    want = torch.cat([table[:, :2], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1).numpy()
    np.testing.assert_allclose(vit_jax.state_dict(large)["pos_embed"], want, rtol=0, atol=1e-6)
