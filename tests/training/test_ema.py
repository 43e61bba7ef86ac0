"""The average of the weights: its numbers, its rows, its checkpoints, and runs that are killed."""

import json
import pathlib
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.training.kills import run_to_end
from tests.training.runs import arrays, child, rows, steps, tiny
from vit_jax.config import EmaConfig
from vit_jax.data.augment import make_eval_preprocess
from vit_jax.training import train
from vit_jax.training.ema import averaged, update_average
from vit_jax.training.losses import classification_loss
from vit_jax.training.setup import build
from vit_jax.training.start import load_checkpoint, load_weights
from vit_jax.training.state import TrainState, first_average

# One process makes the runs that all of them look at.
pytestmark = pytest.mark.xdist_group("ema")

LAST = 18


# Each method of the optimizer's, by pmap and in parts: what has to survive a kill.
EVERYTHING = {
    "num_epochs": 3,
    "checkpoint__every_steps": 3,
    "parallel": "pmap",
    "accumulation_steps": 2,
    "ema__decay": 0.99,
    "ema__warmup": True,
    "optimizer__name": "lamb",
    "optimizer__schedule": "cosine",
    "optimizer__schedule_unit": "epoch",
    "optimizer__warmup_epochs": 1.0,
    "optimizer__warmup_learning_rate": 1e-4,
    "optimizer__learning_rate": 1e-2,
    "optimizer__layer_decay": 0.8,
    "optimizer__backbone_factor": 0.5,
    "optimizer__frozen": ["pos_embed"],
    "optimizer__gradient_clip_norm": 1.0,
}


def run_everything(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
    return child(tiny(**EVERYTHING), workdir, cache, devices=2)


def test_the_average_is_kept_in_float32_and_evaluated_in_the_parameters_type():
    params = nnx.State({"w": nnx.Param(jnp.full(3, 1.0, jnp.bfloat16))})
    average = first_average(params)
    assert average["w"].dtype == jnp.float32
    moved = nnx.State({"w": nnx.Param(jnp.full(3, 2.0, jnp.bfloat16))})
    average = update_average(EmaConfig(decay=0.9999), average, moved, jnp.int32(1))
    np.testing.assert_allclose(average["w"][...], 1.0001, rtol=1e-7)  # bfloat16 would lose it
    nothing = dict.fromkeys(("step", "frozen", "opt_state", "sums", "nonfinite_step"))
    state = averaged(TrainState(params=moved, ema=average, **nothing))  # pyright: ignore
    assert state.params["w"].dtype == jnp.bfloat16


def test_parameters_that_rest_are_the_average_in_the_end():
    """d average + (1 - d) params would end 7e-4 away in float32, with the release's d."""
    config = EmaConfig(decay=0.99996)
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)}
    found = jax.lax.fori_loop(
        0, 50_000, lambda n, average: update_average(config, average, params, n), params
    )
    np.testing.assert_array_equal(found["w"], params["w"])


def test_the_steps_average_is_that_of_the_parameters_after_each_update():
    config = tiny(ema__decay=0.7, optimizer__learning_rate=1e-2)
    setup = build(config)
    state = setup.program.init()

    def copy(tree):
        return [np.array(leaf, np.float64) for leaf in jax.tree.leaves(tree)]

    average = copy(state.params)
    with setup.train_batches(0) as batches:
        for _, batch in zip(range(5), setup.on_device(batches), strict=False):
            state, _ = setup.program.train_step(state, batch)
            pairs = zip(average, copy(state.params), strict=True)
            average = [0.7 * mean + 0.3 * param for mean, param in pairs]
    for ours, wanted in zip(copy(state.ema), average, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert max(np.abs(a - p).max() for a, p in zip(average, copy(state.params), strict=True)) > 1e-3


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache_dir) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("ema")
    run_to_end(run_everything(workdir, cache_dir))
    return workdir


@pytest.mark.slow
def test_a_killed_run_of_every_method_is_the_run_that_was_not(reference, tmp_path, cache_dir):
    process = run_everything(tmp_path, cache_dir)
    while process.poll() is None and not (tmp_path / "checkpoints" / "9").exists():
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.communicate(timeout=60)
    assert steps(tmp_path)[-1] < LAST
    run_to_end(run_everything(tmp_path, cache_dir))
    assert rows(tmp_path) == rows(reference)
    assert arrays(tmp_path, LAST) == arrays(reference, LAST)


def test_rows_tell_both_and_the_best_is_that_of_the_average(reference):
    found = rows(reference)
    for row in found:
        assert ("ema_top1" in row) == ("ema_loss" in row) == (row["split"] != "train")
    validations = [row for row in found if row["split"] == "validation"]
    assert any(row["ema_loss"] != row["loss"] for row in validations)
    info = json.loads((reference / "checkpoints" / str(LAST) / "info" / "metadata").read_text())
    best = max(validations, key=lambda row: (row["ema_top1"], -row["step"]))
    assert (info["best_step"], info["best_top1"]) == (best["step"], best["ema_top1"])


def test_what_is_frozen_stays_and_is_in_no_average(reference):
    setup = build(tiny(optimizer__frozen=["pos_embed"]))
    first = setup.program.init()
    stored = arrays(reference, LAST)
    assert stored["model/pos_embed"] == np.asarray(first.frozen["pos_embed"][...]).tobytes()
    assert stored["model/cls_token"] != np.asarray(first.params["cls_token"][...]).tobytes()
    names = {name for name in stored if "pos_embed" in name}
    assert names == {"model/pos_embed"}


def model_of_the_run():
    return vit_jax.create_model("vit_tiny_patch16_224", rngs=nnx.Rngs(9), **tiny().model.kwargs)


def test_the_average_can_be_loaded_and_is_what_was_evaluated(reference, tmp_path):
    model = model_of_the_run()
    report = vit_jax.load_pretrained(model, reference, ema=True)
    assert report.left == (f"averaged over step {LAST} of a run of vit_tiny_patch16_224",)
    mean, raw = vit_jax.state_dict(model), model_of_the_run()
    vit_jax.load_pretrained(raw, reference)
    raw = vit_jax.state_dict(raw)
    assert (mean["head.weight"] != raw["head.weight"]).any()
    np.testing.assert_array_equal(mean["pos_embed"], raw["pos_embed"])

    setup = build(tiny())
    assert setup.splits.test is not None
    statistics = setup.preprocessing
    prepare = make_eval_preprocess(
        (8, 8), mean=statistics["mean"], std=statistics["std"], dtype=jnp.float32
    )
    with setup.eval_batches(setup.splits.test) as batches:
        batch = [dict(batch) for batch in batches]
    images, labels, mask = (
        np.concatenate([part[name] for part in batch]) for name in ("image", "label", "mask")
    )
    model.eval()
    losses, logits = classification_loss(model(prepare(jnp.asarray(images))), jnp.asarray(labels))
    right = np.asarray(logits.argmax(-1) == labels)
    row = rows(reference)[-1]
    assert row["ema_loss"] == pytest.approx(float(losses[mask].mean()), rel=1e-5)
    assert row["ema_top1"] == pytest.approx(float(right[mask].mean()))

    for path in (reference, reference / "checkpoints" / str(LAST)):
        again = model_of_the_run()
        assert "averaged weights of" in load_weights(again, str(path), True)
        for name, array in vit_jax.state_dict(again).items():
            np.testing.assert_array_equal(array, mean[name])


def test_a_run_starts_from_the_average_and_its_own_begins_there(reference, tmp_path):
    config = tiny(
        init_from=str(reference),
        init_weights="ema",
        ema__decay=0.9,
        optimizer__learning_rate=1e-12,
        optimizer__weight_decay=0.0,
        num_epochs=1,
    )
    train(config, tmp_path)
    wanted, raw, average = (model_of_the_run() for _ in range(3))
    load_checkpoint(wanted, reference, ema=True)
    load_checkpoint(raw, tmp_path)
    load_checkpoint(average, tmp_path, ema=True)
    for found in (raw, average):
        for name, array in vit_jax.state_dict(wanted).items():
            np.testing.assert_allclose(vit_jax.state_dict(found)[name], array, atol=1e-7)


def test_without_an_average_there_is_none_to_load(tmp_path):
    train(tiny(num_epochs=1), tmp_path)
    assert all("ema_top1" not in row for row in rows(tmp_path))
    assert not (tmp_path / "checkpoints" / "6" / "ema").exists()
    with pytest.raises(ValueError, match="averages no weights"):
        load_checkpoint(model_of_the_run(), tmp_path, ema=True)
    # What checkpoints of such runs have always held: those of before can be resumed.
    fields = {name.split(".")[0] for name in arrays(tmp_path, 6) if name.startswith("training/")}
    assert fields == {
        f"training/{field}"
        for field in ("step", "opt_state", "sums", "nonfinite_step", "fingerprint")
    }
    moments = {name for name in arrays(tmp_path, 6) if "opt_state" in name and "head.bias" in name}
    assert moments == {f"training/opt_state.0.{moment}.head.bias" for moment in ("mu", "nu")}
