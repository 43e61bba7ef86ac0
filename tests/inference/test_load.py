"""Models from whatever holds one."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

import vit_jax
from tests.inference.conftest import train_tiny
from tests.models.families import build
from tests.training.runs import tiny
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model
from vit_jax.models.spec import Preprocessing
from vit_jax.training import train
from vit_jax.weights.state_dict import torch_shapes
from vit_jax.weights.torch_writer import write_torch_file

pytestmark = pytest.mark.xdist_group("run")


@pytest.mark.parametrize("ema", [None, True])
def test_a_run_knows_its_model_its_classes_and_its_images(run, ema):
    model = vit_jax.from_pretrained(run, ema=ema)
    spec = model.spec
    assert (spec.name, spec.source) == ("vit_tiny_patch16_224", str(run))
    assert spec.class_names == tuple("0123456789")
    assert model.input_size == (8, 8)
    assert spec.preprocessing is not None
    assert spec.preprocessing.interpolation == "bilinear"
    assert spec.preprocessing.resized_from == (8, 8)
    assert len(spec.preprocessing.mean) == 1
    assert model.deterministic
    kwargs = tiny().model.kwargs
    by_hand = abstract_model("vit_tiny_patch16_224", **kwargs)
    vit_jax.load_pretrained(by_hand, run, ema=ema)
    for name, array in vit_jax.state_dict(by_hand).items():
        np.testing.assert_array_equal(vit_jax.state_dict(model)[name], array)


def test_averaged_and_raw_weights_differ(run):
    raw, averaged = (
        vit_jax.state_dict(vit_jax.from_pretrained(run, ema=ema)) for ema in (False, True)
    )
    assert any((raw[name] != averaged[name]).any() for name in raw)


def test_class_names_are_those_of_the_data(run, tmp_path, monkeypatch):
    from vit_jax.data.sources import ArraySource

    init = ArraySource.__init__

    def named(self, images, labels, *, class_names, name):
        init(self, images, labels, class_names=[f"digit {c}" for c in class_names], name=name)

    monkeypatch.setattr(ArraySource, "__init__", named)
    names = vit_jax.from_pretrained(train_tiny(tmp_path)).spec.class_names
    assert names == tuple(f"digit {c}" for c in range(10))


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_checkpoint_that_names_fewer_classes_than_the_model_has(run, monkeypatch, names):
    """The others go by number; none are made up."""
    from vit_jax.weights import checkpoint_reading

    info = checkpoint_reading.CheckpointInfo
    monkeypatch.setattr(
        checkpoint_reading,
        "CheckpointInfo",
        lambda spec, **stated: info(spec={**spec, "class_names": names}, **stated),
    )
    spec = vit_jax.from_pretrained(run).spec
    assert spec.class_names == (names and tuple(names))
    assert [spec.label(i) for i in (0, 9)] == [names[0] if names else "0", "9"]


def test_fields_beside_those_of_the_run(run):
    assert vit_jax.from_pretrained(run, dtype="bfloat16").dtype == jax.numpy.bfloat16
    with pytest.raises(ValueError, match="unknown field 'deepth'"):
        vit_jax.from_pretrained(run, deepth=2)


def test_overrides_adapt_the_weights(run):
    """A fresh head, resized positions; the rest is the run's."""
    with pytest.raises(ValueError, match="has 10 classes, and another number is a fresh head, w"):
        vit_jax.from_pretrained(run, num_classes=3)
    model = vit_jax.from_pretrained(run, num_classes=3, img_size=16, rngs=nnx.Rngs(0))
    assert model(np.zeros((1, 16, 16, 1), np.float32)).shape == (1, 3)
    assert model.spec.class_names is None
    with pytest.raises(ValueError, match="has 1 channels and the model 3"):
        vit_jax.from_pretrained(run, in_chans=3)
    assert model.deterministic
    trained = vit_jax.from_pretrained(run)
    kept = model.blocks[0].attn.qkv.kernel[...]
    np.testing.assert_array_equal(kept, trained.blocks[0].attn.qkv.kernel[...])
    bare = vit_jax.from_pretrained(run, num_classes=0)
    assert bare(np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 16)


def test_a_run_that_leaves_its_fields_at_the_names(tmp_path):
    """Sizes as pairs, images at another size than the model's own, no number of classes."""
    config = tiny(
        num_epochs=1,
        model__name="vit_modular",
        model__kwargs={
            "img_size": (8, 8),
            "patch_size": (4, 4),
            "in_chans": 1,
            "embed_dim": 8,
            "depth": 1,
            "num_heads": 2,
            "mlp_dim": 8,
            "head_hidden_dim": 8,
            "max_tokens": 20,
        },
        data__image_size=16,
    )
    train(config, tmp_path / "run")
    model = vit_jax.from_pretrained(tmp_path / "run")
    assert (model.num_classes, model.input_size) == (10, (16, 16))
    assert vit_jax.preprocess(model, np.zeros((8, 8, 1), np.uint8)).shape == (1, 16, 16, 1)
    again = abstract_model("vit_modular", **config.model.kwargs)
    vit_jax.load_pretrained(again, tmp_path / "run")


def test_names_go_with_the_head(tmp_path):
    """With chosen classes theirs, with a head of the model's own its own."""
    model = build("vit", num_classes=3)
    model.spec = dataclasses.replace(model.spec, class_names=("a", "b", "c"))
    path = tmp_path / "w.safetensors"
    vit_jax.save_pretrained(model, path)
    vit_jax.load_pretrained(model, path, head=[2, 0, 1])
    assert model.spec.class_names == ("c", "a", "b")
    other = build("vit", num_classes=4)
    vit_jax.load_pretrained(other, path, head="drop")
    assert other.spec.class_names is None


def test_positions_of_a_grid_that_the_file_states(tmp_path):
    """2x8 patches to 4x4, as many; a square would be kept as it is."""
    model = build("vit", img_size=(8, 32), patch_size=4)
    for name in ("w.safetensors", "w.pth"):
        vit_jax.save_pretrained(model, tmp_path / name)
    square = vit_jax.from_pretrained(tmp_path / "w.safetensors", img_size=16)
    want = build("vit", img_size=16, patch_size=4)
    vit_jax.load_pretrained(want, tmp_path / "w.pth", resize="source", old_grid=(2, 8))
    np.testing.assert_array_equal(square.pos_embed[...], want.pos_embed[...])


def test_what_a_file_states_and_does_not_hold(tmp_path):
    path, model = tmp_path / "w.safetensors", build("vit", num_classes=3)
    vit_jax.save_pretrained(model, path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    headless = {name: array for name, array in arrays.items() if not name.startswith("head")}
    save_file(headless, path, metadata)
    with pytest.raises(ValueError, match=r"missing: head\.weight"):
        vit_jax.from_pretrained(path)
    for old, new, message in (
        ('"vit_tiny_patch16_224"', '"vit_giant"', "is of a model that is not here: unknown model"),
        ('"qk_norm"', '"qk_normal"', "states the field 'qk_normal', which vit_tiny_patch16_224"),
        ('"float32"', '"float64"', "set JAX_ENABLE_X64=1, or give another dtype"),
    ):
        changed = {"vit_jax": metadata["vit_jax"].replace(old, new)}
        save_file(arrays, path, changed)
        with pytest.raises(ValueError, match=rf"w\.safetensors.*{message}"):
            vit_jax.from_pretrained(path)
    save_file(headless, path)
    fields = {k: v for k, v in model.spec.fields if k != "num_classes"}
    bare = vit_jax.from_pretrained(path, name=model.spec.name, **fields)
    assert bare.num_classes == 0


def zeros(name: str, **fields: Any) -> VisionModel:
    """A model of full size, at no cost."""
    model = abstract_model(name, **fields)
    arrays = {key: np.zeros(shape, np.float32) for key, shape in torch_shapes(model).items()}
    vit_jax.load_state_dict(model, arrays)
    return model


def test_weights_that_fit_one_model_say_which(tmp_path):
    model = zeros("vit_encoder", num_classes=7)
    write_torch_file(tmp_path / "weights.pth", vit_jax.state_dict(model))
    loaded = vit_jax.from_pretrained(tmp_path / "weights.pth")
    assert loaded.spec.name == "vit_encoder"
    assert loaded.spec.class_names is None
    assert (loaded.num_classes, loaded.input_size) == (7, (32, 32))


FORMS = {
    "weights.safetensors": None,
    "weights.pth": None,
    "weights.npz": "google",
    "hf": "huggingface",
    "orbax": "orbax",
}


def described(**fields: Any) -> VisionModel:
    """A model of sizes that no registered name has, with all that a description can say."""
    model = build("vit", img_size=8, norm_eps=1e-6, **fields)
    preprocessing = Preprocessing(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bicubic", "squash", (8, 8), (4, 4)
    )
    names = ("10", "Grüße, 猫", "10", "LABEL_3", "")
    model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing, class_names=names)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_is_written_carries_the_description(tmp_path, form):
    model, path = described(), tmp_path / form
    vit_jax.save_pretrained(model, path, dialect=FORMS[form])
    loaded = vit_jax.from_pretrained(path)
    assert loaded.spec == dataclasses.replace(model.spec, source=str(path))
    assert hash(loaded.spec) != hash(model.spec)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(vit_jax.state_dict(loaded)[name], array)


def test_a_description_beside_another_file(tmp_path):
    """What lies beside the .npz is of the file before it."""
    first, second = described(), described(depth=1)
    for model, name in ((first, "a.npz"), (second, "b.npz")):
        vit_jax.save_pretrained(model, tmp_path / name, dialect="google")
    (tmp_path / "b.npz").replace(tmp_path / "a.npz")
    report = vit_jax.load_pretrained(described(depth=1), tmp_path / "a.npz")
    assert report.left == ("a.npz.json describes another file than a.npz",)


def test_a_torch_file_with_a_description_that_is_damaged(tmp_path):
    path = tmp_path / "w.pth"
    write_torch_file(path, vit_jax.state_dict(described()), {"vit_jax.json": b"{"})
    with pytest.raises(ValueError, match=r"w\.pth': its description cannot be read"):
        vit_jax.from_pretrained(path)


def test_weights_that_fit_several_models_or_none(tmp_path):
    weights = vit_jax.state_dict(zeros("vit_tiny_patch16_224"))
    write_torch_file(tmp_path / "tiny.pth", weights)
    with pytest.raises(ValueError, match=r"they fit deit_tiny\w+, vit_tiny\w+\): name it"):
        vit_jax.from_pretrained(tmp_path / "tiny.pth")
    name = "deit_tiny_patch16_224"
    assert vit_jax.from_pretrained(tmp_path / "tiny.pth", name=name).spec.name == name
    save_file({"a": np.zeros(3)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no registered model fits"):
        vit_jax.from_pretrained(tmp_path / "none.safetensors")


def test_class_names_of_a_hugging_face_folder(tmp_path):
    vit_jax.save_pretrained(build("vit", img_size=8), tmp_path, dialect="huggingface")
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(label): f"class {label}" for label in range(5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = vit_jax.from_pretrained(tmp_path)
    assert model.spec.class_names == tuple(f"class {label}" for label in range(5))
    config["layer_norm_eps"] = 1e-3  # a fact of theirs that was changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vit_jax.from_pretrained(tmp_path).config.norm_eps == 1e-3
    del config["vit_jax"]  # a folder that is not ours
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 3}
    theirs = vit_jax.from_pretrained(tmp_path, name="vit_tiny_patch16_224", **fields)
    assert theirs.spec.class_names == model.spec.class_names


def test_what_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="no weights file"):
        vit_jax.from_pretrained(tmp_path / "missing")
