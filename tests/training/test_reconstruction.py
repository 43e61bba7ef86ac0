"""MAE's pretraining as a run: its loss, its masks, its resume, what is made of its weights."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.training.runs import arrays, rows, tiny
from vit_jax import cli
from vit_jax.layers.masking import patch_noise
from vit_jax.training import train

FIELDS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 12,
    "depth": 1,
    "num_heads": 2,
    "decoder": True,
    "decoder_embed_dim": 12,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "decoder_mlp_dim": 12,
    "norm_pix_loss": True,
}


def pretraining(**fields: Any) -> Any:
    return tiny(
        **{
            "model__name": "mae_vit_base_patch16",
            "model__kwargs": FIELDS,
            "loss__kind": "reconstruction",
            "num_epochs": 2,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    train(pretraining(), folder := tmp_path_factory.mktemp("mae") / "run")
    return folder


@pytest.mark.xdist_group("mae run")
def test_its_rows_are_the_loss_of_the_hidden_patches(run: pathlib.Path) -> None:
    """That of the validation by hand: masks of step 0, keyed by the image's number."""
    found = [row for row in rows(run) if row["split"] == "validation"][-1]
    assert set(found) == {"step", "epoch", "split", "loss"}
    assert found["loss"] < rows(run)[0]["loss"]
    model: Any = vit_jax.from_pretrained(run)
    from vit_jax.data import open_splits

    validation = open_splits("digits").validation
    assert validation is not None
    examples = validation.__getitems__(range(len(validation)))
    images = vit_jax.preprocess(model, [example["image"] for example in examples])
    noise = patch_noise(3, 0, jnp.arange(len(images)), 16)
    loss, _, mask = jax.jit(lambda x: model.reconstruct(x, noise))(images)
    assert mask.mean() == 0.75
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)


@pytest.mark.slow
def test_each_step_hides_other_patches(tmp_path: pathlib.Path) -> None:
    """Of the same images, with weights that stay: its losses by hand."""
    from vit_jax.data import open_splits

    still = {"data__num_train_examples": 32, "optimizer__learning_rate": 1e-12}
    train(pretraining(**still, log__every_steps=1), tmp_path / "run")
    model: Any = vit_jax.from_pretrained(tmp_path / "run")
    subset = open_splits("digits", num_train_examples=32, seed=3).train
    examples = subset.__getitems__(range(32))
    images = vit_jax.preprocess(model, [example["image"] for example in examples])
    reconstruct = jax.jit(lambda noise: model.reconstruct(images, noise).loss)
    want = [reconstruct(patch_noise(3, step, jnp.arange(32), 16)) for step in range(2)]
    assert want[0] != want[1]
    found = [row["loss"] for row in rows(tmp_path / "run") if row["split"] == "train"]
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.xdist_group("mae run")
def test_resume_is_bit_for_bit(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    class Stop(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == 6:
            raise Stop

    with pytest.raises(Stop):
        train(pretraining(), tmp_path / "run", callbacks=[stop])
    train(pretraining(), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(run)
    assert arrays(tmp_path / "run", 12) == arrays(run, 12)


@pytest.mark.xdist_group("mae run")
def test_its_picture_and_a_finetuning(run, tmp_path, capsys) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "mae.png"
    words = [str(run), str(tmp_path / "a.png"), "--out", str(out)]
    assert cli.main(["plot", "reconstruction", *words]) == 0
    assert out.stat().st_size > 5_000
    from vit_jax.inference.reconstruct import reconstruct

    found = reconstruct(vit_jax.from_pretrained(run), [str(tmp_path / "a.png")])
    np.testing.assert_allclose(found.images[0, :, :, 0] * 255, pixels, atol=1e-3)
    same = np.isclose(found.predicted, found.images, atol=1e-6).reshape(4, 2, 4, 2).all((1, 3))
    shown = np.isclose(found.masked, found.images, atol=1e-6).reshape(4, 2, 4, 2).all((1, 3))
    assert same.sum() == shown.sum() == 4
    classifier = {k: v for k, v in FIELDS.items() if "decoder" not in k and k != "norm_pix_loss"}
    config = tiny(
        model__name="mae_vit_base_patch16",
        model__kwargs={**classifier, "num_classes": 10, "global_pool": "avg"},
        init_from=str(run),
        init_head="fresh",
        num_epochs=1,
    )
    assert train(config, tmp_path / "fine")["test_loss"] < 4
    assert cli.main(["plot", "reconstruction", str(tmp_path / "fine"), *words[1:]]) == 2
    assert "wanted an MAE with its decoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__kwargs": {**FIELDS, "decoder": False}}, "has no decoder: wanted mae_vit_"),
        ({"loss__label_smoothing": 0.1}, "label_smoothing is for the classification loss"),
        ({"mix__mixup_alpha": 0.1}, "mix is for the classification loss"),
    ],
    ids=range(3),
)
def test_what_does_not_fit_is_named(fields, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        train(pretraining(**fields), tmp_path / "run")
