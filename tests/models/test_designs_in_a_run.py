"""BEiT, CaiT and MAE in a run: trained, predicted with, converted, summarised, resized."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests.training.runs import rows, tiny
from vit_jax import cli
from vit_jax.inspect.summary import summarize
from vit_jax.training import train

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("promoting")
@pytest.mark.parametrize("name", ["beit_base_patch16_224", "cait_s24_224", "mae_vit_base_patch16"])
def test_what_a_name_does(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    fields |= {"embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}
    fields |= {"global_pool": "avg"} if name.startswith("mae") else {}
    run = tmp_path / "run"
    train(
        tiny(model__name=name, model__kwargs=fields, optimizer__layer_decay=0.5, num_epochs=1),
        run,
    )
    assert rows(run)[-1]["split"] == "test"
    model = vit_jax.from_pretrained(run)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert cli.main(["predict", str(run), str(tmp_path / "a.png"), "--json", "--top=1"]) == 0
    assert json.loads(capsys.readouterr().out)["top"][0]["name"] in "0123456789"
    assert cli.main(["convert", str(run), str(tmp_path / "w.pth")]) == 0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 8, 1)).astype(np.float32))
    logits = nnx.jit(lambda m, x: m(x))
    larger = vit_jax.from_pretrained(tmp_path / "w.pth", img_size=(12, 8))
    np.testing.assert_allclose(logits(larger, x), logits(model, x), rtol=0, atol=1e-5)
    assert summarize(model).parameters == sum(a.size for a in vit_jax.state_dict(model).values())
