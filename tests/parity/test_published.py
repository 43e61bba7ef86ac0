"""`vit-jax parity FOLDER --image PHOTO`: published weights beside transformers' own model."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models.backbones import theirs, transformers
from vit_jax import cli
from vit_jax.parity import published

pytestmark = [pytest.mark.xdist_group("huggingface"), pytest.mark.usefixtures("promoting")]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((60, 45), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny CLIP tower with its projection, and its processor."""
    library, path = transformers(), tmp_path / "clip"
    config = library.CLIPVisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
    )
    theirs("CLIPVisionModelWithProjection", config).float().save_pretrained(path)
    library.CLIPImageProcessor(size={"shortest_edge": 18}, crop_size=16).save_pretrained(path)
    return path


def test_equal(folder: Path, photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parity", str(folder), "--image", str(photograph)]) == 0
    out = capsys.readouterr().out
    assert "transformers' CLIPVisionModelWithProjection: equal" in out
    assert "preprocessing: pixels differ by up to" in out


def test_where_not(
    folder: Path,
    photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model with another activation: the place is named, and the status is 1."""
    unlike = ["parity", str(folder), "--image", str(photograph), "--field=activation=gelu"]
    assert cli.main(unlike) == 2  # refused: the folder states another
    assert "activation" in capsys.readouterr().err
    compare = published.compare

    def disturbed(model, module, *args, **kwargs):
        module.vision_model.encoder.layers[0].layer_norm1.eps = 1e-2
        return compare(model, module, *args, diagnose=False, **kwargs)

    monkeypatch.setattr(published, "compare", disturbed)
    assert cli.main(["parity", str(folder), "--image", str(photograph), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "CLIPVisionModelWithProjection"
    assert report["preprocessing"] < 1e-2


def test_mistakes_are_one_line(
    photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--image", str(photograph)], "wanted the hf:OWNER/NAME or the folder"),
        (["nowhere", "--image", str(photograph)], "wanted hf:OWNER/NAME or a folder"),
        ([str(tmp_path), "--image", str(photograph), "--steps=1"], "no other data or training"),
    ):
        assert cli.main(["parity", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
