"""Swin and Swin V2 beside transformers and timm: values, training, sizes, windows, folders."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

import vit_jax
from tests.models.backbones import (
    FLOAT64,
    answers,
    assert_defaults,
    assert_folder_back,
    images,
    ours,
    outputs,
    parameters_of,
    pooled,
    theirs,
    transformers,
)
from tests.models.timm_models import assert_preprocessing_is_timms, timm_models
from tests.models.uses import assert_forms_agree, assert_is_used, grey
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.training.runs import tiny
from tests.weights.designs import assert_close, redraw
from vit_jax.layers.relative_bias import relative_index, resize_bias_table
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model
from vit_jax.models.swin import Swin
from vit_jax.models.swin_v2 import SwinV2
from vit_jax.parity import OptimizerSpec, assert_parity
from vit_jax.training import train
from vit_jax.training.param_groups import layer_ids
from vit_jax.weights.huggingface import read_facts
from vit_jax.weights.load import load_with_notes
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("huggingface")

# Windows of 4: a map of 7x9, which is padded, and one of 4x5, which is no larger along one side.
_PADDED: dict[str, Any] = {"image_size": [28, 36], "window_size": 4}
_WHOLE: dict[str, Any] = {"image_size": 32, "window_size": 4}
_SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2]}
_HEADS = {"ForImageClassification": {"num_labels": 5}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin padded": ("Swin", _PADDED),
    "swin whole": ("Swin", {**_WHOLE, "qkv_bias": False}),
    "swin three": (
        "Swin",
        {**_WHOLE, "image_size": 56, "depths": [2, 2, 1], "num_heads": [1, 2, 4]},
    ),
    "v2 padded": ("Swinv2", {**_PADDED, "pretrained_window_sizes": [6, 3]}),
    "v2 whole": ("Swinv2", {**_WHOLE, "qkv_bias": False}),
    "v2 three": (
        "Swinv2",
        {**_WHOLE, "image_size": 56, "depths": [2, 2, 1], "num_heads": [1, 2, 4]},
    ),
}
# name: (parameters of the release, GMACs as timm's benchmark has counted them)
RELEASE = {
    "swin_tiny_patch4_window7_224": (28_288_354, 4.51),
    "swin_small_patch4_window7_224": (49_606_258, 8.77),
    "swin_base_patch4_window7_224": (87_768_224, 15.47),
    "swin_base_patch4_window12_384": (87_903_584, 47.19),
    "swin_large_patch4_window7_224": (196_532_476, 34.53),
    "swin_large_patch4_window12_384": (196_735_516, 104.08),
    "swinv2_tiny_window8_256": (28_347_154, 5.96),
    "swinv2_tiny_window16_256": (28_347_154, 6.68),
    "swinv2_small_window8_256": (49_728_418, 11.58),
    "swinv2_small_window16_256": (49_728_418, 12.82),
    "swinv2_base_window8_256": (87_918_816, 20.37),
    "swinv2_base_window16_256": (87_918_816, 22.02),
    "swinv2_base_window12_192": (109_280_841, 11.9),
    "swinv2_base_window12to16_192to256": (87_918_816, 22.02),
    "swinv2_base_window12to24_192to384": (87_918_816, 55.25),
    "swinv2_large_window12_192": (228_772_549, 26.17),
    "swinv2_large_window12to16_192to256": (196_739_932, 47.81),
    "swinv2_large_window12to24_192to384": (196_739_932, 116.15),
}


def module_of(kind: str, model: str) -> Any:
    """transformers' model, whose attention does not fall to float32, a factor beyond its limit."""
    family, fields = KINDS[kind]
    config = getattr(transformers(), f"{family}Config")(
        **{**_SIZES, **_HEADS.get(model, {}), "drop_path_rate": 0.0, **fields}
    )
    config._attn_implementation = "sdpa" if family == "Swin" else "eager"
    module = theirs(f"{family}{model}", config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("layers.0.blocks.1.attention.self.logit_scale"):
                parameter[0] = 5.0  # log 100 is 4.6
    return module


def timm_of(kind: str, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """timm's model of two or three stages with random weights, and the fields of ours."""
    if kind == "swin":
        design, source = "swin", timm_models("swin_transformer").SwinTransformer
    else:
        design, source = "swinv2", timm_models("swin_transformer_v2").SwinTransformerV2
    sizes = {"patch_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    sizes |= {"num_classes": 5, **fields}
    module = redrawn(source(**sizes, strict_img_size=False, drop_path_rate=0.0)).double().eval()
    return module, {"name": design, "window_rule": "timm", "bias_resize": "geometric", **sizes}


def of_timm(module: Any, fields: dict[str, Any], folder: Path) -> Any:
    torch.save(module.state_dict(), folder / "timm.pth")
    return vit_jax.from_pretrained(folder / "timm.pth", **FLOAT64, **fields)


def timm_answers(module: Any, x: np.ndarray) -> tuple[Any, ...]:
    """Tokens, logits and maps as ours are."""
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        maps = module.forward_intermediates(pixels, intermediates_only=True)
        tokens = module.forward_features(pixels).flatten(1, 2)
        return tokens, module(pixels), [found.flatten(2).transpose(1, 2) for found in maps]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["swin padded", "v2 padded"]))
def test_values_gradients_and_training(kind: str, tmp_path: Path) -> None:
    """Every stage to 1e-12, and ten steps of AdamW; their class takes our folder."""
    module = module_of(kind, "ForImageClassification")
    model = ours(module, tmp_path / "theirs")
    report = assert_parity(
        model, pooled(module, "logits"), optimizer=OptimizerSpec(steps=10), precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    block = "layers.0.blocks.1."
    assert {f"{block}attn.proj", f"{block}mlp.fc2", "layers.1.blocks.0.norm2", "norm", ""} <= stages
    gradients = {row.name for row in report.rows if row.section == "gradients"}
    assert torch_shapes(model).keys() <= gradients
    assert_folder_back(model, module_of(kind, "ForImageClassification"), tmp_path / "ours")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("window", [4, ((4, 3), (2, 4))])
@pytest.mark.parametrize("kind", ["swin", "v2"])
def test_training_as_timm(kind: str, window: Any, tmp_path: Path) -> None:
    module, fields = timm_of(kind, img_size=(28, 36), window_size=window)
    model = of_timm(module, fields, tmp_path)
    report = assert_parity(
        model, module, optimizer=OptimizerSpec(steps=10), precisions=("float64", "float32")
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    assert {"layers.0.blocks.1.attn", "layers.1", "layers.1.downsample", "head.fc", ""} <= stages


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["swin whole"]))
def test_a_base_model_and_images_of_other_sizes(kind: str, tmp_path: Path) -> None:
    """Hidden states in their order; theirs are what the next stage begins with."""
    model = ours(module_of(kind, "Model"), tmp_path / "theirs")
    assert model.num_classes == 0
    is_deep = "three" in kind
    for size in ((56, 56), (60, 60), (56, 72), (53, 70)) if is_deep else ((60, 60), (44, 72)):
        x = images(*size)
        module = module_of(kind, "Model")  # a small map changes its windows for good
        want = answers(module, x)
        tokens, answer, maps = outputs(model, x)
        assert_close(tokens, want.last_hidden_state.numpy())
        assert_close(answer, want.pooler_output.numpy())
        for stage, (found, hidden) in enumerate(zip(maps, want.hidden_states[1:], strict=True)):
            if stage + 1 < len(maps):
                found = model.as_map(found, stage, *size)
                found = model.stages[stage + 1].downsample(found).reshape(hidden.shape)
            assert_close(found, hidden.numpy())
    assert_folder_back(model, module_of(kind, "Model"), tmp_path / "ours")


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("window", [4, ((4, 3), (2, 4))])
@pytest.mark.parametrize("kind", ["swin", "v2"])
def test_maps_as_timm_pads_them(kind: str, window: Any, tmp_path: Path) -> None:
    """Rolled first and padded after, each side for itself; also of images of other sizes."""
    module, fields = timm_of(kind, img_size=(28, 36), window_size=window)
    model = of_timm(module, fields, tmp_path)
    for size in ((28, 36), (44, 28)):
        x = images(*size)
        tokens, logits, maps = timm_answers(module, x)
        got_tokens, got_logits, got_maps = outputs(model, x)
        assert_close(got_tokens, tokens.numpy())
        assert_close(got_logits, logits.numpy())
        for got, want in zip(got_maps, maps, strict=True):
            assert_close(got, want.numpy())
    if window == 4:
        other = {**fields, "window_rule": "swin"}
        swin = vit_jax.from_pretrained(tmp_path / "timm.pth", **FLOAT64, **other)
        assert float(jnp.abs(outputs(swin, x)[1] - got_logits).max()) > 1e-3


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple")  # of timm
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "img_size", "window"),
    mostly_slow(
        [
            (kind, *new)
            for kind in ("swin", "v2")
            for new in (((40, 40), 5), ((24, 24), 3), ((28, 60), ((6, 5), (3, 4))))
        ],
        [("swin", (28, 60), ((6, 5), (3, 4)))],
    ),
)
def test_weights_for_another_image_and_window(
    kind: str, img_size: Any, window: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timm: biases resized, here without its float32; those of V2 computed anew."""
    trained = {"pretrained_window_sizes": (4, 4)} if kind == "v2" else {}
    module, fields = timm_of(kind, img_size=(32, 32), window_size=4, **trained)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    new = {**fields, "img_size": img_size, "window_size": window}
    model = of_timm(module, new, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        module.set_input_size(img_size, window_size=window)
    finally:
        torch.set_default_dtype(torch.float32)
    x = images(*img_size)
    assert_close(outputs(model, x)[1], timm_answers(module.double(), x)[1].numpy())
    if kind == "v2":
        without = vit_jax.from_pretrained(
            tmp_path / "timm.pth", **FLOAT64, **{**new, "pretrained_window_sizes": (0, 0)}
        )
        assert float(jnp.abs(outputs(without, x)[1] - outputs(model, x)[1]).max()) > 1e-6


def released(arrays: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """timm's names as the release has them, with what it computes and keeps beside."""
    found = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): a
        for name, a in arrays.items()
    }
    attention = "layers.0.blocks.1.attn"
    found[f"{attention}.relative_position_index"] = relative_index((4, 4))
    found["layers.0.blocks.1.attn_mask"] = np.full((4, 16, 16), -100, np.float32)
    if kind == "v2":
        found[f"{attention}.relative_coords_table"] = np.zeros((1, 7, 7, 2), np.float32)
    return found


@pytest.mark.parametrize("kind", mostly_slow(["swin", "v2"], ["v2"]))
def test_names_of_the_release(kind: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"img_size": 32, "embed_dim": 8, "depths": (2, 1)}
    fields |= {"num_heads": (1, 2), "window_size": 4}
    name = "swin" if kind == "swin" else "swinv2"
    model = redraw(abstract_model(name, **fields, num_classes=5))
    arrays = released(vit_jax.state_dict(model), kind)
    save_file(arrays, tmp_path / "release.safetensors")
    bare = {key: torch.tensor(array) for key, array in arrays.items() if "head" not in key}
    torch.save(bare, tmp_path / "bare.pth")
    for path, left in ((tmp_path / "release.safetensors", 5), (tmp_path / "bare.pth", 0)):
        found = vit_jax.from_pretrained(path, name=name, **fields)
        assert found.num_classes == left
        for key, array in vit_jax.state_dict(found).items():
            np.testing.assert_array_equal(array, vit_jax.state_dict(model)[key])
    # Where a PyTorch module wants every entry of its own, it gets what it has computed.
    like = {**vit_jax.state_dict(model), "layers.0.blocks.1.attn_mask": arrays[MASK]}
    assert vit_jax.state_dict(model, like=like).keys() == like.keys()
    assert vit_jax.load_state_dict(model, like).unused == (MASK,)
    with pytest.raises(ValueError, match=r"unexpected: layers\.0\.blocks\.1\.attn_masks"):
        vit_jax.load_state_dict(model, {**like, f"{MASK}s": arrays[MASK]})


MASK = "layers.0.blocks.1.attn_mask"


def test_a_folder_of_timm_has_timms_windows(tmp_path: Path) -> None:
    fields = {"img_size": 32, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
    model = redraw(abstract_model("swin", **fields, window_size=4, num_classes=5))
    save_file(vit_jax.state_dict(model), tmp_path / "model.safetensors")
    stated = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 5}
    stated |= {"model_args": {**fields, "window_size": 4}}
    stated["pretrained_cfg"] = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    found = vit_jax.from_pretrained(tmp_path)
    assert (found.spec.name, found.config.window_rule) == (stated["architecture"], "timm")
    assert (found.config.bias_resize, found.config.depths) == ("geometric", (2, 1))
    larger, notes = load_with_notes(tmp_path, fields={"img_size": 48, "window_size": 5})
    assert torch_shapes(larger)["layers.0.blocks.0.attn.relative_position_bias_table"] == (81, 1)
    assert notes[0].endswith("relative_position_bias_table: 4x4 to 5x5 by 'geometric'")
    with pytest.raises(ValueError, match=r"resize='source' .* resizes what depends on the image"):
        vit_jax.load_pretrained(
            abstract_model("swin", **fields, window_size=3, num_classes=5),
            tmp_path / "model.safetensors",
        )


def test_windows_that_are_not_square_are_those_stated_or_given(tmp_path: Path) -> None:
    windows = {"window_rule": "timm", "window_size": ((4, 3), (2, 4))}
    model = redraw(abstract_model("swin", **_TINY, **windows, num_classes=5))
    vit_jax.save_pretrained(model, tmp_path / "own.safetensors")
    state = vit_jax.state_dict(model)
    save_file(state, tmp_path / "bare.safetensors")
    other = redraw(abstract_model("swin", **_TINY, window_size=3, num_classes=5))
    grids = {name: (4, 3) if ".0.blocks" in name else (2, 4) for name in other.learned_grids}
    with pytest.raises(ValueError, match="is for a grid of 4x3 patches, this model's for 3x3"):
        vit_jax.load_pretrained(other, tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=r"table of the state dict has 35 rows: of no square grid"):
        vit_jax.load_pretrained(other, tmp_path / "bare.safetensors", resize="source")
    with pytest.raises(ValueError, match=r"\(35, heads\), of a grid of 4x3, got \(21, 2\)"):
        vit_jax.load_pretrained(
            other, tmp_path / "bare.safetensors", resize="source", old_grid=(4, 3)
        )
    for source, given in (("own", None), ("bare", grids)):
        path = tmp_path / f"{source}.safetensors"
        report = vit_jax.load_pretrained(other, path, resize="source", old_grid=given)
        assert len(report.adapted) == len(grids) == 3
        assert report.adapted[2].endswith("bias_table: 2x4 to 3x3 by 'bicubic'")
        for name, array in vit_jax.state_dict(other).items():
            want = state[name]
            if name in grids:
                want = resize_bias_table(want, grids[name], (3, 3), method="bicubic")
            np.testing.assert_array_equal(array, want)


@pytest.mark.parametrize(
    "name", mostly_slow(RELEASE, ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
)
def test_sizes_of_the_release(name: str, tmp_path: Path) -> None:
    """Its parameters and multiply-accumulates, and the name that its config.json has."""
    model = abstract_model(name)
    parameters, gmacs = RELEASE[name]
    assert parameters_of(model) == parameters
    found = count_macs(model, jax.ShapeDtypeStruct((1, *model.img_size, 3), jnp.float32)) / 1e9
    assert found == pytest.approx(gmacs, rel=0.006)
    config = model.config
    stated = {
        "model_type": model.design,
        "architectures": [f"{model.design.capitalize()}ForImageClassification"],
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "image_size": config.img_size,
    }
    if model.design == "swinv2":
        stated["pretrained_window_sizes"] = list(config.pretrained_window_sizes)
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert read_facts(tmp_path, [])[0].name == name
    if "12_192" not in name:  # timm's has no other than of 21,841 classes
        file = "swin_transformer" + "_v2" * (model.design == "swinv2")
        assert_preprocessing_is_timms(model, file, tmp_path)


def test_defaults_of_the_configuration() -> None:
    library = transformers()
    for design, config in ((Swin, library.SwinConfig()), (SwinV2, library.Swinv2Config())):
        assert_defaults(design.dialects[0], config)


_TINY: dict[str, Any] = {"img_size": 32, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": (1, 2, 4)}, "num_heads must have one value for each of the 2 stages"),
        ({"num_heads": (1, 3)}, "embed_dim must be divisible by num_heads, got 16 and 3 heads"),
        ({"window_size": (4, 4, 2)}, "window_size must have one value for each of the 2 stages"),
        ({"window_size": ((4, 3), 2)}, "window_rule='swin' has square windows: .*got .*4, 3"),
        ({"window_size": 0}, "window_size must be an int of at least 1, got 0"),
        ({"window_rule": "transformers"}, r"window_rule must be one of \('swin', 'timm'\)"),
        ({"bias_resize": "cubic"}, "bias_resize must be one of"),
        ({"img_size": 30}, "img_size must be divisible by patch_size"),
    ],
)
def test_fields_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        abstract_model("swin", **{**_TINY, **fields})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("swin", {"window_size": (4, 2)}, r"no place for this model's window_size=\(4, 2\)"),
        ("swin", {"window_rule": "timm"}, "no place for this model's window_rule='timm'"),
        ("swinv2", {}, "no place for this model's window_rule='swin'"),
    ],
)
def test_what_a_folder_of_transformers_has_no_place_for(
    name: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = redraw(abstract_model(name, **_TINY, **{"window_size": 4, **fields}))
    with pytest.raises(ValueError, match=message):
        vit_jax.save_pretrained(model, tmp_path / "folder", dialect="huggingface")


def test_the_last_norm_and_maps_of_stages() -> None:
    model = redraw(abstract_model("swin", **_TINY, window_size=4, num_classes=5))
    model.eval()
    x = jnp.asarray(images(32, 24), jnp.float32)
    maps, last, tokens = jax.jit(
        lambda m, x: (
            m.forward_intermediates(x, layout="NHWC"),
            m.forward_intermediates(x, [-1], norm=True),
            m.forward_features(x),
        )
    )(model, x)
    assert [found.shape for found in maps] == [(2, 8, 6, 8), (2, 4, 3, 16)]
    assert model.token_grid(32, 24) == (4, 3)
    np.testing.assert_array_equal(last[0], tokens)
    with pytest.raises(ValueError, match="the last norm is 16 wide and these tokens 8"):
        jax.eval_shape(lambda m, x: m.forward_intermediates(x, [0], norm=True), model, x)
    with pytest.raises(ValueError, match="indices must be blocks from -2 to 1"):
        model.forward_intermediates(x, [2])
    with pytest.raises(ValueError, match=r"wanted images \(batch, height, width, 3\)"):
        model(x.transpose(0, 3, 1, 2))


def test_layers_are_blocks_and_a_merging_is_of_the_first_after_it() -> None:
    ids = {
        ".".join(map(str, p)): int(i) for p, i in layer_ids(abstract_model("swin", **_TINY)).items()
    }
    assert ids["patch_embed.norm.scale"] == 0
    assert (ids["stages.0.blocks.1.norm1.scale"], ids["stages.1.blocks.0.norm1.scale"]) == (2, 3)
    assert (ids["stages.1.downsample.reduction.kernel"], ids["norm.bias"]) == (3, 4)


@pytest.fixture(scope="module", params=["swin", "swinv2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {**_TINY, "img_size": 8, "patch_size": 2, "window_size": 2, "in_chans": 1}
    config = tiny(
        model__name=request.param,
        model__kwargs={**fields, "num_classes": 10, "drop_path_rate": 0.1},
        optimizer__layer_decay=0.5,
        num_epochs=1,
    )
    train(config, folder := tmp_path_factory.mktemp(request.param))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("promoting")
def test_what_a_name_does(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, predicts, is converted, summarised and rematerialised."""
    model, weights = assert_is_used(run, tmp_path, capsys)
    forms = ({"remat": "blocks"}, {"remat": "dots"}, {"patchify": "unfold"})
    assert_forms_agree(model, weights, grey(11, 8), forms)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_training_drops_and_recomputes_the_same(name: str) -> None:
    """Each kind of dropout draws, needs a key, and draws the same where blocks are recomputed."""
    x = jnp.asarray(images(32, 32), jnp.float32)
    for rate in ("drop_rate", "attn_drop_rate", "drop_path_rate", "head_drop_rate"):
        fields = {**_TINY, "window_size": 4, "num_classes": 5, rate: 0.5}
        plain, again = (
            redraw(abstract_model(name, **fields, remat=remat)) for remat in ("none", "blocks")
        )
        with pytest.raises(ValueError, match="rngs="):
            plain(x)
        forward = nnx.jit(lambda m, x, key: m(x, rngs=nnx.Rngs(key)))
        one, two = (forward(plain, x, jax.random.key(seed)) for seed in (1, 2))
        assert float(jnp.abs(one - two).max()) > 1e-3, rate
        np.testing.assert_allclose(forward(again, x, jax.random.key(1)), one, rtol=0, atol=1e-5)
