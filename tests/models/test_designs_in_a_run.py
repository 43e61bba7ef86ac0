"""BEiT, CaiT and MAE in a run: trained, predicted with, converted, summarised, resized."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vit_jax
from tests.models.uses import assert_is_used, grey, logits
from tests.training.runs import tiny
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
    model, weights = assert_is_used(run, tmp_path, capsys)
    larger, x = vit_jax.from_pretrained(weights, img_size=(12, 8)), grey(12, 8)
    np.testing.assert_allclose(logits(larger, x), logits(model, x), rtol=0, atol=1e-5)
