"""Weight files."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

import vit_jax
from tests.models.families import FAMILIES, build
from tests.reference.vit import VisionTransformer
from tests.weights.designs import with_preprocessing
from vit_jax.models.spec import Preprocessing, Target


def test_every_bit_and_the_preprocessing_come_back(tmp_path):
    model = build("vit")
    with_preprocessing(model, Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear"))
    path = tmp_path / "deep" / "weights.safetensors"
    vit_jax.save_pretrained(model, path)
    other = build("vit", weight_init="kaiming_conv")
    vit_jax.load_state_dict(other, {k: v + 1 for k, v in vit_jax.state_dict(other).items()})
    vit_jax.load_pretrained(other, path)
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(vit_jax.state_dict(other)[name], array)
    assert other.spec.preprocessing == model.spec.preprocessing
    other.spec = dataclasses.replace(other.spec, target=Target("multilabel"))
    vit_jax.load_pretrained(other, path)
    assert other.spec.target is None
    other.spec = dataclasses.replace(other.spec, target=Target("regression", (1,) * 5, (2,) * 5))
    *_, note = vit_jax.save_pretrained(other, tmp_path / "hf", dialect="huggingface")
    assert "outputs, not numbers, which are output * std + mean" in note
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_pytorch_loads_the_file_strictly(tmp_path):
    vit_jax.save_pretrained(build("vit"), tmp_path / "weights.safetensors")
    VisionTransformer(num_classes=5, **FAMILIES["vit"][1]).load_state_dict(
        load_file(tmp_path / "weights.safetensors"), strict=True
    )


def test_a_file_without_metadata_leaves_the_preprocessing(tmp_path):
    model = build("vit")
    save_file(vit_jax.state_dict(model), tmp_path / "weights.safetensors")
    vit_jax.load_pretrained(model, tmp_path / "weights.safetensors")
    assert model.spec.preprocessing is not None


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"mean": [1, 2, 3]}', '{"mean": [1], "std": [1]}', '{"mean": 1}']
)
def test_preprocessing_that_cannot_be_read(tmp_path, metadata):
    model = build("vit")
    before = dataclasses.replace(model.spec.preprocessing)
    path = tmp_path / "weights.safetensors"
    save_file(vit_jax.state_dict(model), path, metadata={"preprocessing": metadata})
    with pytest.raises(ValueError, match="description cannot be read"):
        vit_jax.load_pretrained(model, path)
    assert model.spec.preprocessing == before


def test_files_that_are_none(tmp_path):
    model = build("vit")
    with pytest.raises(ValueError, match=r"no weights file '.*missing\.safetensors'"):
        vit_jax.load_pretrained(model, tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match=r"no weights file '.*weights\.pth'"):
        vit_jax.load_pretrained(model, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"as \.safetensors, or as \.pth, .*got '.*weights\.h5'"):
        vit_jax.save_pretrained(model, tmp_path / "weights.h5")
    with pytest.raises(ValueError, match=r"dialect must be None, 'huggingface'.*got 'torchvision'"):
        vit_jax.save_pretrained(model, tmp_path / "weights.pth", dialect="torchvision")
    vit_jax.save_pretrained(model, tmp_path / "whole.safetensors")
    cut = (tmp_path / "whole.safetensors").read_bytes()[:-100]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    with pytest.raises(ValueError, match=r"cut\.safetensors' is not a whole safetensors file"):
        vit_jax.load_pretrained(model, tmp_path / "cut.safetensors")


def test_a_number_of_channels_that_is_not_the_names_has_no_preprocessing():
    assert build("vit", in_chans=1).spec.preprocessing is None
