"""Hugging Face's own ViT and DeiT read what we write, and we what they write; no download."""

import dataclasses
import itertools
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import vit_jax
from tests.models.families import build
from tests.tiers import mostly_slow
from tests.weights.designs import (
    assert_close,
    assert_same_weights,
    logits,
    pytorch_logits,
    redraw,
    with_preprocessing,
)
from vit_jax.models.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vit_jax.weights.huggingface import read_facts

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.xdist_group("huggingface")]

SIZE = 8
PREPROCESSING = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 8 / 10, "bilinear")
DESIGNS = {"vit": "ViT", "distilled": "DeiT"}


@pytest.fixture(scope="module")
def hf() -> Any:
    """The parts of transformers; its import takes seconds, so that one file alone pays for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, some at every new Python
        from transformers import (
            AutoImageProcessor,
            DeiTConfig,
            DeiTForImageClassification,
            DeiTForImageClassificationWithTeacher,
            DeiTModel,
            ViTConfig,
            ViTForImageClassification,
            ViTModel,
        )
        from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return SimpleNamespace(
        models={
            "vit": ViTForImageClassification,
            "distilled": DeiTForImageClassificationWithTeacher,
        },
        configs={"vit": ViTConfig, "distilled": DeiTConfig},
        processor=AutoImageProcessor,
        base=ViTModel,
        deit_classifier=DeiTForImageClassification,
        deit_base=DeiTModel,
    )


def ours(design: str, **fields: Any) -> Any:
    model = build(design, jnp.float64, img_size=SIZE, depth=2, **fields)
    model.eval()
    return model


def theirs(hf: Any, design: str, **fields: Any) -> torch.nn.Module:
    """Of the same sizes, with random weights, tokens and positions too."""
    config = hf.configs[design](
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        num_labels=5,
        **{"layer_norm_eps": 1e-6, **fields},
    )
    torch.manual_seed(0)
    module = hf.models[design](config).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return module


def batch() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))


def their_logits(module: torch.nn.Module) -> np.ndarray:
    return pytorch_logits(lambda images: module(images).logits, batch())  # type: ignore[arg-type]


def from_folder(hf: Any, design: str, folder: Path) -> torch.nn.Module:
    module, info = hf.models[design].from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return module.eval()


@pytest.mark.parametrize(
    ("design", "norm_eps"),
    mostly_slow(
        itertools.product(DESIGNS, (1e-6, 1e-3)), fast=[("vit", 1e-3), ("distilled", 1e-6)]
    ),
)
def test_they_load_ours(hf: Any, design: str, norm_eps: float, tmp_path: Path) -> None:
    model = ours(design, norm_eps=norm_eps)
    vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    assert_close(
        their_logits(from_folder(hf, design, tmp_path / "f")),
        np.asarray(logits(model, batch())),
    )
    other = redraw(ours(design, norm_eps=norm_eps), seed=1)
    assert vit_jax.load_pretrained(other, tmp_path / "f").dialect == "huggingface"
    assert_same_weights(other, model)


@pytest.mark.parametrize("without", [{"qkv_bias": False}, {"in_chans": 1}], ids=str)
def test_they_load_other_fields_of_ours(hf: Any, without: dict[str, Any], tmp_path: Path) -> None:
    model = ours("vit", **without)
    vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    images = batch()[..., : model.in_chans]
    module = from_folder(hf, "vit", tmp_path / "f")
    got = pytorch_logits(lambda x: module(x).logits, images)  # type: ignore[arg-type]
    assert_close(got, np.asarray(logits(model, images)))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("shards", ["50GB", "3KB"], ids=["one file", "shards"])
def test_we_load_theirs(hf: Any, design: str, shards: str, tmp_path: Path) -> None:
    module = theirs(hf, design)
    module.save_pretrained(tmp_path, max_shard_size=shards)
    number = len(list(tmp_path.glob("*.safetensors")))
    assert number == 1 if shards == "50GB" else number > 3
    model = ours(design)
    report = vit_jax.load_pretrained(model, tmp_path)
    assert report.dialect == "huggingface"
    assert_close(logits(model, batch()), their_logits(module))


@pytest.mark.parametrize("design", DESIGNS)
def test_their_folder_needs_nothing_else(hf: Any, design: str, tmp_path: Path) -> None:
    """Its sizes, names and epsilon are those of its config.json; what it leaves is unknown."""
    module = theirs(hf, design, id2label={str(i): f"class {i}" for i in range(5)})
    module.save_pretrained(tmp_path)
    model = vit_jax.from_pretrained(tmp_path, dtype="float64", param_dtype="float64")
    spec = model.spec
    assert (spec.name, spec.preprocessing) == ("vit", None)
    assert spec.class_names == tuple(f"class {i}" for i in range(5))
    assert (model.config.norm_eps, model.config.distilled) == (1e-6, design == "distilled")
    assert_close(logits(model, batch()), their_logits(module))


def test_their_pooler_is_the_representation_layer(hf: Any, tmp_path: Path) -> None:
    module = hf.base(theirs(hf, "vit").config).double().eval()
    module.save_pretrained(tmp_path)
    model = vit_jax.from_pretrained(tmp_path, dtype="float64", param_dtype="float64")
    assert (model.num_classes, model.config.representation_size) == (0, 8)
    want = pytorch_logits(lambda x: module(x).pooler_output, batch())  # type: ignore[arg-type]
    assert_close(logits(model, batch()), want)


@pytest.mark.parametrize("crop_mode", ["squash_floor", "center"])
def test_images_and_patches_that_are_not_square(hf: Any, crop_mode: str, tmp_path: Path) -> None:
    """Their processor crops no rectangle from images that keep their aspect: that is said."""
    model = build("vit", jnp.float64, img_size=(8, 12), patch_size=(4, 2), depth=2)
    model.eval()
    with_preprocessing(model, dataclasses.replace(PREPROCESSING, crop_mode=crop_mode))
    notes = vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    images = np.random.default_rng(1).normal(size=(2, 8, 12, 3))
    module = from_folder(hf, "vit", tmp_path / "f")
    got = pytorch_logits(lambda x: module(x).logits, images)  # type: ignore[arg-type]
    assert_close(got, np.asarray(logits(model, images)))
    again = vit_jax.from_pretrained(tmp_path / "f", dtype="float64", param_dtype="float64")
    assert_same_weights(again, model)
    assert again.spec.preprocessing == model.spec.preprocessing
    processor = tmp_path / "f" / "preprocessor_config.json"
    if crop_mode == "center":
        assert len(notes) == 1
        assert "no center crop of 8x12" in notes[0]
        assert not processor.exists()
        return
    assert notes == ()
    image = np.random.default_rng(0).integers(0, 256, (14, 30, 3), np.uint8)
    theirs = hf.processor.from_pretrained(tmp_path / "f")
    pixels = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"]
    found = np.asarray(vit_jax.preprocess(model, image)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["classifier", "base"])
def test_a_distillation_token_without_a_head_of_its_own(hf: Any, kind: str, tmp_path: Path) -> None:
    """It is a register; and such a model of ours is theirs."""
    config = theirs(hf, "distilled").config
    module = getattr(hf, f"deit_{kind}")(config).double().eval()
    module.save_pretrained(tmp_path / "theirs")
    model = vit_jax.from_pretrained(tmp_path / "theirs", dtype="float64", param_dtype="float64")
    assert (model.config.distilled, model.config.reg_tokens) == (False, 1)
    told = {"classifier": "logits", "base": "pooler_output"}[kind]
    want = pytorch_logits(lambda x: getattr(module(x), told), batch())  # type: ignore[arg-type]
    assert_close(logits(model, batch()), want)
    distilled = ours("distilled", norm_eps=model.config.norm_eps)
    report = vit_jax.load_pretrained(distilled, tmp_path / "theirs", head="drop")
    assert "reg_token: taken for dist_token" in report.adapted
    if kind == "classifier":
        vit_jax.save_pretrained(model, tmp_path / "ours", dialect="huggingface")
        again, info = hf.deit_classifier.from_pretrained(
            tmp_path / "ours", dtype=torch.float64, output_loading_info=True
        )
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_close(their_logits(again.eval()), want)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_tiny_patch16_224", (192, 12, 3, 224, 16)),
        ("deit_small_patch16_224", (384, 12, 6, 224, 16)),
        ("vit", (192, 11, 3, 224, 16)),
    ],
)
def test_sizes_of_a_registered_name_have_it(tmp_path: Path, name: str, sizes: Any) -> None:
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    config = dict(zip(keys, sizes, strict=True)) | {"intermediate_size": 4 * sizes[0]}
    config["model_type"] = name.split("_")[0]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_facts(tmp_path, [])[0].name == name


@pytest.mark.parametrize("design", DESIGNS)
def test_we_load_their_state_dict_in_memory(hf: Any, design: str, tmp_path: Path) -> None:
    """transformers 5 has other names in memory than in its files."""
    module = theirs(hf, design)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    model = ours(design)
    assert vit_jax.load_pretrained(model, tmp_path / "w.pth").dialect == "huggingface"
    assert_close(logits(model, batch()), their_logits(module))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_norm_eps": 1e-12},
            r"norm_eps=1e-12, this one has 1e-06: create_model\(\.\.\., norm_eps=1e-12\)",
        ),
        ({"num_attention_heads": 4}, r"num_heads=4, this one has 2: .*num_heads=4"),
        ({"hidden_act": "gelu_new"}, "wanted hidden_act 'gelu', its config.json says 'gelu_new'"),
        ({"hidden_act": "relu"}, "'relu'"),
    ],
)
def test_fields_that_the_folder_contradicts(
    hf: Any, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = theirs(hf, "vit")
    module.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    model = ours("vit")
    before = vit_jax.state_dict(model)
    with pytest.raises(ValueError, match=message):
        vit_jax.load_pretrained(model, tmp_path)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_preprocessing_there_and_back(hf: Any, tmp_path: Path) -> None:
    """Also through their own reader and writer of it."""
    model = ours("vit")
    with_preprocessing(model, PREPROCESSING)
    vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    other = ours("vit")
    vit_jax.load_pretrained(other, tmp_path / "f")
    assert other.spec.preprocessing == PREPROCESSING
    image = np.random.default_rng(0).integers(0, 256, (14, 30, 3), np.uint8)
    for mode in ("center_floor", "squash"):
        preprocessing = dataclasses.replace(PREPROCESSING, crop_mode=mode)
        vit_jax.save_pretrained(
            with_preprocessing(model, preprocessing), tmp_path / "f", dialect="huggingface"
        )
        processor = hf.processor.from_pretrained(tmp_path / "f")
        theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
        found = np.asarray(vit_jax.preprocess(model, image)).transpose(0, 3, 1, 2)
        assert theirs.shape == found.shape
        np.testing.assert_allclose(theirs, found, rtol=0, atol=1e-6)
        processor.save_pretrained(tmp_path / "f")
        vit_jax.load_pretrained(with_preprocessing(other, None), tmp_path / "f")
        assert other.spec.preprocessing.crop_mode == mode
        np.testing.assert_allclose(other.spec.preprocessing.mean, PREPROCESSING.mean)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
            Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 224 / 256, "bicubic", "squash"),
        ),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": False, "image_mean": [0.5] * 3},
            Preprocessing((0.5, 0.5, 0.5), IMAGENET_STD, 1.0, "bilinear", "squash"),
        ),
        (
            {
                "size": {"shortest_edge": 248},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 224 / 248, "bilinear", "center_floor"),
        ),
        ({"do_normalize": False}, Preprocessing((0, 0, 0), (1, 1, 1), 1.0, "bilinear")),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "bilinear"),
        ),
        (
            {"size": 251, "crop_size": 224, "do_center_crop": True},  # an offset of 13.5
            Preprocessing(IMAGENET_MEAN, IMAGENET_STD, 224 / 251, "bilinear", "squash_floor"),
        ),
        ({"size": {"height": 224, "width": 224}, "image_mean": [1]}, None),
        ({"do_resize": False}, None),
        ({"do_rescale": False}, None),
        ({"size": 256, "crop_size": (224, 112), "do_center_crop": True}, None),
        ({"resample": 0}, None),
        ({"resample": []}, None),
        ({"size": 100, "crop_size": 224, "do_center_crop": True}, None),
    ],
)
def test_forms_of_their_preprocessor_config(
    fields: dict[str, Any], want: Preprocessing | None, tmp_path: Path
) -> None:
    fields = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, "resample": 2, **fields}
    model = ours("vit")
    vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    (tmp_path / "f" / "preprocessor_config.json").write_text(json.dumps(fields))
    if want is None:
        with pytest.raises(ValueError, match=r"preprocessor_config\.json': its description"):
            vit_jax.load_pretrained(model, tmp_path / "f")
    else:
        vit_jax.load_pretrained(model, tmp_path / "f")
        assert model.spec.preprocessing == want


def test_what_their_preprocessor_config_leaves_out_is_said(tmp_path: Path) -> None:
    model = ours("vit")
    before = model.spec.preprocessing
    vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    (tmp_path / "f" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}')
    report = vit_jax.load_pretrained(model, tmp_path / "f")
    assert report.left == ("preprocessor_config.json: it states no image_std, resample",)
    assert model.spec.preprocessing == before


def test_models_that_their_folder_cannot_be(tmp_path: Path) -> None:
    for fields, message in (
        ({"num_classes": 0}, "this model has none"),
        ({"reg_tokens": 2}, r"no place for .* reg_tokens=2"),
    ):
        model = build("vit", **{"img_size": SIZE, **fields})
        with pytest.raises(ValueError, match=message):
            vit_jax.save_pretrained(model, tmp_path / "f", dialect="huggingface")
    assert not list(tmp_path.iterdir())
