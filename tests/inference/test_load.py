"""Models from whatever holds one."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from tests.inference.conftest import train_tiny
from tests.models.families import build
from tests.training.runs import tiny
from vit_jax.models.base import Preprocessing, VisionModel
from vit_jax.models.registry import abstract_model
from vit_jax.weights.load import load_model
from vit_jax.weights.state_dict import torch_shapes

pytestmark = pytest.mark.xdist_group("run")


@pytest.mark.parametrize("ema", [None, True])
def test_a_run_knows_its_model_its_classes_and_its_images(run, ema):
    loaded = load_model(run, ema=ema)
    assert loaded.name == "vit_tiny_patch16_224"
    assert loaded.class_names == tuple("0123456789")
    assert loaded.image_size == (8, 8)
    assert loaded.model.preprocessing is not None
    assert loaded.model.preprocessing.interpolation == "bilinear"
    assert len(loaded.model.preprocessing.mean) == 1
    assert loaded.model.deterministic
    kwargs = tiny().model.kwargs
    by_hand = abstract_model("vit_tiny_patch16_224", **kwargs)
    vit_jax.load_pretrained(by_hand, run, ema=ema)
    for name, array in vit_jax.state_dict(by_hand).items():
        np.testing.assert_array_equal(vit_jax.state_dict(loaded.model)[name], array)


def test_averaged_and_raw_weights_differ(run):
    raw, averaged = (vit_jax.state_dict(load_model(run, ema=ema).model) for ema in (False, True))
    assert any((raw[name] != averaged[name]).any() for name in raw)


def test_class_names_are_those_of_the_data(run, tmp_path, monkeypatch):
    from vit_jax.data.sources import ArraySource

    init = ArraySource.__init__

    def named(self, images, labels, *, class_names, name):
        init(self, images, labels, class_names=[f"digit {c}" for c in class_names], name=name)

    monkeypatch.setattr(ArraySource, "__init__", named)
    names = load_model(train_tiny(tmp_path)).class_names
    assert names == tuple(f"digit {c}" for c in range(10))


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_a_checkpoint_that_names_fewer_classes_than_the_model_has(run, monkeypatch, names):
    """They are followed by numbers; older ones name none."""
    from vit_jax.weights import checkpoint_reading

    info = checkpoint_reading.CheckpointInfo
    monkeypatch.setattr(
        checkpoint_reading,
        "CheckpointInfo",
        lambda **stated: info(**stated | {"class_names": names}),
    )
    assert load_model(run).class_names == (*names, *"0123456789"[len(names) :])


def test_fields_beside_those_of_the_run(run):
    assert load_model(run, fields={"dtype": "bfloat16"}).model.dtype == jax.numpy.bfloat16
    with pytest.raises(ValueError, match="unknown field 'deepth'"):
        load_model(run, fields={"deepth": 2})


def zeros(name: str, **fields: Any) -> VisionModel:
    """A model of full size, at no cost."""
    model = abstract_model(name, **fields)
    arrays = {key: np.zeros(shape, np.float32) for key, shape in torch_shapes(model).items()}
    vit_jax.load_state_dict(model, arrays)
    return model


def test_weights_that_fit_one_model_say_which(tmp_path):
    model = zeros("vit_encoder", num_classes=7)
    model.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bicubic")
    vit_jax.save_pretrained(model, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors")
    assert loaded.name == "vit_encoder"
    assert loaded.class_names == tuple("0123456")
    assert loaded.model.preprocessing == model.preprocessing
    assert loaded.image_size == (32, 32)


def test_weights_that_fit_several_models_or_none(tmp_path):
    vit_jax.save_pretrained(zeros("vit_tiny_patch16_224"), tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match=r"they fit deit_tiny\w+, vit_tiny\w+\): name it"):
        load_model(tmp_path / "tiny.safetensors")
    assert load_model(tmp_path / "tiny.safetensors", name="deit_tiny_patch16_224").name
    save_file({"a": np.zeros(3)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no registered model fits"):
        load_model(tmp_path / "none.safetensors")


def test_class_names_of_a_hugging_face_folder(tmp_path):
    vit_jax.save_pretrained(build("vit", img_size=8), tmp_path, dialect="huggingface")
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(label): f"class {label}" for label in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 3}
    loaded = load_model(tmp_path, name="vit_tiny_patch16_224", fields=fields)
    assert loaded.class_names == tuple(f"class {label}" for label in range(5))


def test_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no weights file"):
        load_model(tmp_path / "missing")
