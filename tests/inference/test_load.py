"""Models from whatever holds one."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vit_jax
from tests.models.families import build
from tests.training.runs import tiny
from vit_jax.inference.load import load_model
from vit_jax.models.base import Preprocessing
from vit_jax.models.registry import abstract_model


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


def test_class_names_are_those_of_the_data_and_then_numbers(run, tmp_path, monkeypatch):
    from vit_jax.data.sources import ArraySource
    from vit_jax.training import train

    init = ArraySource.__init__

    def named(self, images, labels, *, class_names, name):
        init(self, images, labels, class_names=[f"digit {c}" for c in class_names], name=name)

    monkeypatch.setattr(ArraySource, "__init__", named)
    config = tiny(num_epochs=1)
    config.model.kwargs["num_classes"] = 12
    train(config, tmp_path)
    names = load_model(tmp_path).class_names
    assert names == (*(f"digit {c}" for c in range(10)), "10", "11")


def test_a_checkpoint_that_names_no_classes(run, tmp_path, monkeypatch):
    from vit_jax.training import checkpoint_reading

    info = checkpoint_reading.CheckpointInfo

    def older(**stated):
        return info(**{**stated, "class_names": ()})

    monkeypatch.setattr(checkpoint_reading, "CheckpointInfo", older)
    assert load_model(run).class_names == tuple("0123456789")


def test_fields_beside_those_of_the_run(run):
    assert load_model(run, fields={"dtype": "bfloat16"}).model.dtype == jax.numpy.bfloat16
    with pytest.raises(ValueError, match="unknown field 'deepth'"):
        load_model(run, fields={"deepth": 2})


def test_weights_that_fit_one_model_say_which(tmp_path):
    model = vit_jax.create_model("vit_classifier", rngs=nnx.Rngs(0), num_classes=7)
    model.preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bicubic")
    vit_jax.save_pretrained(model, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors")
    assert loaded.name == "vit_classifier"
    assert loaded.class_names == tuple("0123456")
    assert loaded.model.preprocessing == model.preprocessing
    assert loaded.image_size == (72, 72)


def test_weights_that_fit_several_models_or_none(tmp_path):
    model = vit_jax.create_model("vit_tiny_patch16_224", rngs=nnx.Rngs(0))
    vit_jax.save_pretrained(model, tmp_path / "tiny.safetensors")
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
