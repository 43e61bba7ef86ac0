"""The average of the weights: its numbers, its rows, its checkpoints, and runs that are killed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.training.kills import kill, run_to_end, wait_for
from tests.training.runs import arrays, child, rows, steps, tiny
from vit_jax.config import EmaConfig, TrainConfig
from vit_jax.models.base import VisionModel
from vit_jax.training.ema import averaged, update_average
from vit_jax.training.losses import classification_loss
from vit_jax.training.run import open_run
from vit_jax.training.start import load_initial_weights
from vit_jax.training.state import TrainState, first_average
from vit_jax.weights.run_folder import load_checkpoint

pytestmark = pytest.mark.xdist_group("runs")

LAST = 24


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


def test_the_steps_average_is_that_of_the_parameters_after_each_update(every_method):
    run = open_run(every_method)
    state = run.steps.init()

    def copy(tree):
        return [np.array(leaf, np.float64) for leaf in jax.tree.leaves(tree)]

    average = copy(state.params)
    with run.train_batches(0) as batches:
        for number, batch in zip(range(1, 6), run.on_device(batches), strict=False):
            state, _ = run.steps.train(state, batch)
            pairs = zip(average, copy(state.params), strict=True)
            decay = min(0.9, (1 + number) / (10 + number))
            average = [decay * mean + (1 - decay) * param for mean, param in pairs]
    for ours, wanted in zip(copy(state.ema), average, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert max(np.abs(a - p).max() for a, p in zip(average, copy(state.params), strict=True)) > 1e-3


@pytest.mark.slow
def test_a_killed_run_of_two_devices_by_pmap_is_the_run_that_was_not(tmp_path):
    config = tiny(
        num_epochs=3,
        checkpoint__every_steps=3,
        parallel="pmap",
        accumulation_steps=2,
        ema__decay=0.99,
        ema__warmup=True,
        optimizer__name="lamb",
        optimizer__schedule="cosine",
        optimizer__schedule_unit="epoch",
        optimizer__warmup_epochs=1.0,
        optimizer__warmup_learning_rate=1e-4,
        optimizer__learning_rate=1e-2,
        optimizer__layer_decay=0.8,
        optimizer__backbone_factor=0.5,
        optimizer__frozen=["pos_embed"],
        optimizer__gradient_clip_norm=1.0,
    )
    run_to_end(child(config, tmp_path / "reference", devices=2))
    process = child(config, tmp_path / "killed", devices=2)
    wait_for((tmp_path / "killed" / "checkpoints" / "9").exists, process)
    assert process.poll() is None, "it ended before it could be killed"
    kill(process)
    assert steps(tmp_path / "killed")[-1] < 18
    run_to_end(child(config, tmp_path / "killed", devices=2))
    assert rows(tmp_path / "killed") == rows(tmp_path / "reference")
    assert arrays(tmp_path / "killed", 18) == arrays(tmp_path / "reference", 18)


def test_rows_tell_both_and_the_best_is_that_of_the_average(every_method_finished):
    found = rows(every_method_finished)
    for row in found:
        assert ("ema_top1" in row) == ("ema_loss" in row) == (row["split"] != "train")
    validations = [row for row in found if row["split"] == "validation"]
    assert any(row["ema_loss"] != row["loss"] for row in validations)
    last = every_method_finished / "checkpoints" / str(LAST)
    info = json.loads((last / "info" / "metadata").read_text())
    best = max(validations, key=lambda row: (row["ema_top1"], -row["step"]))
    assert (info["best_step"], info["best_top1"]) == (best["step"], best["ema_top1"])


def test_what_is_frozen_stays_and_is_in_no_average(every_method, every_method_finished):
    first = open_run(every_method).steps.init()
    stored = arrays(every_method_finished, LAST)
    assert stored["model/pos_embed"] == np.asarray(first.frozen["pos_embed"][...]).tobytes()
    assert stored["model/cls_token"] != np.asarray(first.params["cls_token"][...]).tobytes()
    names = {name for name in stored if "pos_embed" in name}
    assert names == {"model/pos_embed"}


def untrained(config: TrainConfig) -> VisionModel:
    return vit_jax.create_model(config.model.name, rngs=nnx.Rngs(9), **config.model.kwargs)


def test_the_average_can_be_loaded_and_is_what_was_evaluated(every_method, every_method_finished):
    model, raw = untrained(every_method), untrained(every_method)
    report = vit_jax.load_pretrained(model, every_method_finished, ema=True)
    assert report.left == (f"averaged over step {LAST} of a run of vit_tiny_patch16_224",)
    vit_jax.load_pretrained(raw, every_method_finished)
    mean, raw = vit_jax.state_dict(model), vit_jax.state_dict(raw)
    assert (mean["head.weight"] != raw["head.weight"]).any()
    np.testing.assert_array_equal(mean["pos_embed"], raw["pos_embed"])

    run = open_run(every_method)
    assert run.data.validation is not None
    with run.eval_batches(run.data.validation) as batches:
        batch = [dict(batch) for batch in batches]
    images, labels, mask = (
        np.concatenate([part[name] for part in batch]) for name in ("image", "label", "mask")
    )
    model.eval()

    @jax.jit
    def evaluate(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        prepared = run.prepare_eval(images)
        return classification_loss(model(prepared), labels)

    losses, logits = map(np.asarray, evaluate(images, labels))
    row = rows(every_method_finished)[-1]
    assert row["split"] == "validation"
    assert row["ema_loss"] == pytest.approx(float(losses[mask].mean()), rel=1e-5)
    assert row["ema_top1"] == pytest.approx(float((logits.argmax(-1) == labels)[mask].mean()))

    for path in (every_method_finished, every_method_finished / "checkpoints" / str(LAST)):
        again = untrained(every_method)
        assert "averaged weights of" in load_initial_weights(again, str(path), again.spec, True)
        for name, array in vit_jax.state_dict(again).items():
            np.testing.assert_array_equal(array, mean[name])


def test_a_run_starts_from_the_average_and_its_own_begins_there(
    every_method, every_method_finished, first_state
):
    model = untrained(every_method)
    load_checkpoint(model, every_method_finished, ema=True)
    init = {"init_from": str(every_method_finished), "init_weights": "ema"}
    found, _ = first_state(dataclasses.replace(every_method, **init))
    wanted = vit_jax.state_dict(model)
    assert found.keys() == wanted.keys() | {f"ema/{name}" for name in wanted}
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found[f"ema/{name}"], array)


def test_without_an_average_there_is_none_to_load(finished):
    assert all("ema_top1" not in row for row in rows(finished))
    assert not (finished / "checkpoints" / "12" / "ema").exists()
    with pytest.raises(ValueError, match="averages no weights"):
        load_checkpoint(untrained(tiny()), finished, ema=True)
    # What checkpoints of such runs have always held: those of before can be resumed.
    stored = arrays(finished, 12)
    fields = {name.split(".")[0] for name in stored if name.startswith("training/")}
    assert fields == {
        f"training/{field}"
        for field in ("step", "opt_state", "sums", "nonfinite_step", "fingerprint")
    }
    moments = {name for name in stored if "opt_state" in name and "head.bias" in name}
    assert moments == {f"training/opt_state.0.{moment}.head.bias" for moment in ("mu", "nu")}
