"""Adding a design takes one file, its line in the registry and its test: tried with a toy.

`toy_design.py` is the file, the fixture below the line. Nothing else knows the toy, and all that
works with a model works with it.
"""

import json
from typing import ClassVar
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.models.toy_design import TorchToy, Toy
from tests.training.runs import rows, tiny
from vit_jax import cli
from vit_jax.inspect.summary import summarize
from vit_jax.models import registry
from vit_jax.training import train
from vit_jax.training.param_groups import layer_ids

pytestmark = pytest.mark.xdist_group("toy")


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The registry with `Toy` among its designs, as long as these tests run."""
    with mock.patch.dict(registry._NAMES), mock.patch.dict(registry._DESIGNS_BY_NAME):
        assert vit_jax.register_model(Toy) is Toy
        yield


def test_names_that_are_taken_are_told():
    class Other(Toy):
        variants: ClassVar = {"vit_tiny_patch16_224": Toy.variants["toy_8"]}
        design = "other"

    with pytest.raises(
        ValueError, match=r"'vit_tiny_patch16_224' is taken by vit_jax\.models\.vit"
    ):
        vit_jax.register_model(Other)
    with pytest.raises(ValueError, match=r"wanted a subclass of VisionModel, got <class 'int'>"):
        vit_jax.register_model(int)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """It trains: frozen patches, a learning rate that decays by the layer."""
    config = tiny(
        model__name="toy_8",
        model__kwargs={"num_classes": 10},
        optimizer__frozen=["patches"],
        optimizer__layer_decay=0.5,
        num_epochs=1,
    )
    train(config, folder := tmp_path_factory.mktemp("toy"))
    return folder


def torch_weights(**fields) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return {name: array.numpy() for name, array in TorchToy(**fields).state_dict().items()}


def test_it_is_listed_and_compares_with_its_source():
    assert vit_jax.list_models("toy*") == ["toy_8", "toy_wide_8"]
    torch.manual_seed(0)
    reference = TorchToy()
    model = vit_jax.create_model("toy_8", rngs=nnx.Rngs(0), num_classes=10)
    vit_jax.load_state_dict(model, reference.state_dict())
    vit_jax.parity.assert_parity(model.eval() or model, reference)


def test_it_trains_freezes_and_decays(run):
    assert rows(run)[-1]["split"] == "test"
    model = vit_jax.from_pretrained(run)
    assert model.spec.name == "toy_8"
    initial = vit_jax.create_model("toy_8", rngs=nnx.Rngs(3), num_classes=10)
    was, now = vit_jax.state_dict(initial), vit_jax.state_dict(model)
    assert (was["patches.weight"] == now["patches.weight"]).all()
    assert (was["places"] != now["places"]).any()
    ids = {".".join(map(str, path)): int(layer) for path, layer in layer_ids(model).items()}
    assert (ids["positions"], ids["mixers.1.out.kernel"], ids["classify.kernel"]) == (0, 2, 3)


def test_it_resizes_and_gets_a_fresh_head(run):
    model = vit_jax.from_pretrained(run, img_size=16, num_classes=3, rngs=nnx.Rngs(0))
    assert model(jnp.zeros((1, 16, 16, 1))).shape == (1, 3)
    bare = vit_jax.from_pretrained(run, num_classes=0)
    assert bare(jnp.zeros((1, 8, 8, 1))).shape == (1, 12)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_its_weights_go_there_and_back(run, tmp_path, suffix, capsys):
    """PyTorch's names; a file that does not name its model is told by its arrays."""
    path = tmp_path / f"toy.{suffix}"
    assert cli.main(["convert", str(run), str(path), "--model", "toy_8"]) == 0
    model, trained = vit_jax.from_pretrained(path), vit_jax.from_pretrained(run)
    assert (model.spec.name, model.num_classes) == ("toy_8", 10)
    want = vit_jax.state_dict(trained)
    assert want.keys() == torch_weights().keys()
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, want[name])


def test_it_is_summarised_and_predicts(run, tmp_path, capsys):
    found = summarize(vit_jax.from_pretrained(run))
    assert found.parameters == sum(array.size for array in torch_weights().values())
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(tmp_path / "a.png"), "--json", "--top=1"]) == 0
    assert json.loads(capsys.readouterr().out)["top"][0]["name"] in "0123456789"
    assert cli.main(["summary", "toy_8"]) == 0
    assert "ToyLayer" in capsys.readouterr().out
