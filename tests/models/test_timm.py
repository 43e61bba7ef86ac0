"""timm's own models: their weights load under their names, and go back with strict keys."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vit_jax
from tests.models.backbones import FLOAT64, images, outputs
from tests.models.timm_models import timm_models
from tests.parity.test_foreign import redrawn
from tests.tiers import mostly_slow
from tests.weights.designs import assert_close
from vit_jax.models.registry import DESIGNS, model_fields, name_of_timm

_SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
_PATCHES: dict[str, Any] = {**_SIZES, "patch_size": 8, "img_size": (48, 32)}
_REGISTERS: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
# timm's file and name: what it is made with, our name, and fields that its weights do not tell.
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit_small_patch14_dinov2": ("vision_transformer", {}, "vit_small_patch14_dinov2", {}),
    "vit_small_patch14_dinov2 of any size": (
        "vision_transformer",
        {"mlp_ratio": 2},
        "dinov2_vits14",
        {"mlp_ratio": 2.0},
    ),
    "vit_small_patch14_reg4_dinov2": (
        "vision_transformer",
        {},
        "vit_small_patch14_reg4_dinov2",
        {},
    ),
    "vit_giant_patch14_reg4_dinov2": (
        "vision_transformer",
        {"mlp_ratio": 6, "num_classes": 5},  # twice the width of the gate
        "vit_giant_patch14_reg4_dinov2",
        {"mlp_ratio": 4.5},
    ),
    "vit_small_patch16_dinov3": ("eva", {}, "dinov3_vits16", {"global_pool": "avg"}),
    "vit_small_patch16_dinov3_qkvb": (
        "eva",
        {"num_classes": 5, "global_pool": "token"},
        "dinov3_vits16",
        {},
    ),
    "vit_small_plus_patch16_dinov3_qkvb": (
        "eva",
        {"num_classes": 5},
        "dinov3_vits16plus",
        {"global_pool": "avg"},
    ),
    "vit_base_patch32_clip_quickgelu_224": (
        "vision_transformer",
        {"num_classes": 7},
        "clip_vit_base_patch32",
        {},
    ),
    "vit_base_patch32_clip_224": (
        "vision_transformer",
        {"num_classes": 7},
        "clip_vit_base_patch32_gelu",
        {},
    ),
    "vit_base_patch16_siglip_224": (
        "vision_transformer",
        {},
        "siglip_base_patch16_224",
        {"activation": "gelu"},
    ),
    "vit_base_patch16_siglip_gap_224": (
        "vision_transformer",
        {"num_classes": 5},
        "siglip_base_patch16_224",
        {"activation": "gelu"},
    ),
    "vit_large_patch16_siglip_512": (
        "vision_transformer",
        {"num_classes": 5},
        "siglip2_large_patch16_512",
        {},
    ),
}


def theirs(case: str) -> Any:
    file, arguments = CASES[case][:2]
    build = getattr(timm_models(file), case.partition(" ")[0])
    return redrawn(build(**{**_PATCHES, **arguments})).double().eval()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", mostly_slow(CASES, ["vit_small_plus_patch16_dinov3_qkvb"]))
def test_weights_there_and_back(case: str, tmp_path: Path) -> None:
    module = theirs(case)
    name, fields = CASES[case][2:]
    torch.save(module.state_dict(), tmp_path / "theirs.pth")
    model = vit_jax.from_pretrained(
        tmp_path / "theirs.pth", name=name, **{**_PATCHES, **FLOAT64, **fields}
    )
    x = images(48, 32)
    with torch.no_grad():
        given = torch.tensor(x.transpose(0, 3, 1, 2))
        tokens, answer = module.forward_features(given), module(given)
    got = outputs(model, x)
    assert_close(got[0], tokens.numpy())
    assert_close(got[1], answer.numpy())
    vit_jax.save_pretrained(model, tmp_path / "ours.pth", dialect="timm")
    again = torch.load(tmp_path / "ours.pth")
    for key, array in module.state_dict().items():
        np.testing.assert_array_equal(again.pop(key), array)
    assert not again
    own = vit_jax.from_pretrained(tmp_path / "ours.pth", **FLOAT64)
    assert_close(outputs(own, x)[1], np.asarray(got[1]))


def arguments_of(name: str) -> dict[str, Any]:
    """What timm builds a name with, and the size of its images."""
    file = timm_models("eva" if "dinov3" in name else "vision_transformer")
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for maker in ("_create_eva", "_create_vision_transformer"):
            if hasattr(file, maker):
                patch.setattr(file, maker, lambda name, pretrained, **given: made.update(given))
        getattr(file, name)()
    return {**made, "img_size": file.default_cfgs[name].default.input_size[1]}


def test_names_are_of_timms_sizes() -> None:
    names = {name for design in DESIGNS for name in design.timm_names}
    names |= set(vit_jax.list_models("vit_*dinov2"))
    assert len(names) == 72
    for name in sorted(names):
        found = name_of_timm(name)
        assert found is not None
        ours, theirs = {**model_fields(found[0]), **found[1]}, arguments_of(name)
        for field in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"):
            assert ours[field] == theirs.get(field, 16), (name, field)
        registers = theirs.get("reg_tokens", theirs.get("num_reg_tokens", 0))
        assert ours.get("reg_tokens", 0) == registers, name
        norm = theirs.get("norm_layer", functools.partial(dict, eps=1e-6))
        assert ours["norm_eps"] == norm.keywords["eps"], name
        if "dinov2" in name:
            assert ours["swiglu"] == ("mlp_layer" in theirs), name
        elif "dinov3" in name:
            assert ours["qkv_bias"] == theirs["qkv_bias"], name
            assert ours["swiglu"] == theirs.get("swiglu_mlp", False), name
        else:
            assert ours["activation"] == theirs.get("act_layer", "gelu"), name
            width = int(theirs["embed_dim"] * theirs.get("mlp_ratio", 4.0))
            assert int(ours["embed_dim"] * ours["mlp_ratio"]) == width, name
        if "siglip" in name:
            assert ours["global_pool"] == theirs["global_pool"], name


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case",
    mostly_slow(
        [case for case in CASES if case not in ("vit_small_patch14_dinov2 of any size",)],
        ["vit_giant_patch14_reg4_dinov2"],
    ),
)
def test_a_folder_of_the_hub(case: str, tmp_path: Path) -> None:
    """Its config.json names timm's architecture: no name of ours has to be given."""
    module = theirs(case)
    config = {
        "architecture": case,
        "num_classes": CASES[case][1].get("num_classes", 0),
        "global_pool": module.global_pool,
        "pretrained_cfg": {
            "input_size": [3, 48, 32],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
        "model_args": {**_SIZES, "patch_size": 8, **FLOAT64},
    }
    if "mlp_ratio" in CASES[case][3]:
        config["model_args"]["mlp_ratio"] = CASES[case][3]["mlp_ratio"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    model = vit_jax.from_pretrained(tmp_path)
    x = images(48, 32)
    with torch.no_grad():
        want = module(torch.tensor(x.transpose(0, 3, 1, 2)))
    assert_close(outputs(model, x)[1], want.numpy())
    assert model.spec.preprocessing is not None
    assert model.spec.preprocessing.mean == (0.5, 0.4, 0.3)
