"""Whole runs: their rows, resuming, and what ends them."""

import json
import os
import pathlib
import shutil
import signal
from typing import Any

import jax
import numpy as np
import pytest

from tests.training.runs import arrays, rows, steps, tiny
from vit_jax.data.statistics import STATISTICS
from vit_jax.training import Interrupted, train
from vit_jax.training import loop as loop_module
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.run import open_run
from vit_jax.training.workdir import locked

pytestmark = pytest.mark.xdist_group("runs")


def stop_at(monkeypatch, step: int, what) -> None:
    """Does `what(run)` once, after step `step` and all that is due there."""
    original = loop_module._Loop._after_step

    def after_step(self, timer) -> None:
        original(self, timer)
        if self.step == step:
            what(self)

    monkeypatch.setattr(loop_module._Loop, "_after_step", after_step)


def same(first: pathlib.Path, second: pathlib.Path) -> bool:
    return rows(first) == rows(second) and arrays(first, 12) == arrays(second, 12)


def test_rows_stand_at_fixed_steps(finished):
    found = [(row["split"], row["step"], row["epoch"]) for row in rows(finished)]
    assert found == [
        ("train", 5, 5 / 6),
        ("validation", 6, 1),
        ("train", 10, 10 / 6),
        ("train", 12, 2),
        ("validation", 12, 2),
        ("test", 12, 2),
    ]
    for row in rows(finished):
        assert 0 <= row["top1"] <= row["top5"] <= 1
        keys = ["step", "epoch", "split", "loss", "top1", "top5"]
        assert list(row) == keys + (["learning_rate"] if row["split"] == "train" else [])
    # 180 and 360 images: every one counted once, though batches are of 64.
    assert (rows(finished)[-1]["top1"] * 360) == pytest.approx(
        round(rows(finished)[-1]["top1"] * 360)
    )
    assert json.loads((finished / "config.json").read_text())["seed"] == 3


def test_latest_and_best_checkpoints_stay(finished):
    best = max(
        (row for row in rows(finished) if row["split"] == "validation"),
        key=lambda row: (row["top1"], -row["step"]),
    )
    assert steps(finished) == sorted({best["step"], 8, 12})


def test_finished_run_returns_at_once(finished, monkeypatch, capsys):
    monkeypatch.setattr(loop_module, "open_run", lambda config: pytest.fail("it was built again"))
    metrics = train(tiny(log__progress="plain"), finished)
    assert metrics["test_top1"] == rows(finished)[-1]["top1"]
    captured = capsys.readouterr()
    assert "is finished" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["TERM", "INT", "HUP"],
)
def test_signal_saves_and_resume_gives_the_same_run(
    number, status, finished, tmp_path, monkeypatch
):
    stop_at(monkeypatch, 7, lambda run: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as stopped:
        train(tiny(), tmp_path)
    assert stopped.value.code == status
    assert steps(tmp_path)[-1] == 7
    monkeypatch.undo()
    train(tiny(data__num_workers=2), tmp_path)
    assert same(tmp_path, finished)


def test_signal_in_validation_leaves_it_to_the_resumed_run(finished, tmp_path, monkeypatch):
    original = loop_module.evaluate

    def evaluate(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(loop_module, "evaluate", evaluate)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path)
    assert steps(tmp_path)[-1] == 6
    assert [row["split"] for row in rows(tmp_path)] == ["train"]
    monkeypatch.undo()
    train(tiny(), tmp_path)
    assert same(tmp_path, finished)


def test_rows_after_the_checkpoint_and_half_a_line_are_cut_away(finished, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(run) -> None:
        run.checkpoints.wait()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 11, "epo')
        raise Killed

    stop_at(monkeypatch, 10, kill)  # after the row of step 10; the latest checkpoint is of step 8
    with pytest.raises(Killed):
        train(tiny(), tmp_path)
    assert "\n" not in (tmp_path / "metrics.jsonl").read_text()[-10:]
    monkeypatch.undo()
    train(tiny(), tmp_path)
    assert same(tmp_path, finished)


def test_rows_that_are_lost_before_a_resume_are_said(finished, tmp_path, capfd):
    run = shutil.copytree(finished, tmp_path / "run")
    _, *others, test = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert '"test"' in test
    (run / "metrics.jsonl").write_text("".join(others))
    train(tiny(), run)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [f"warning: {run}/metrics.jsonl has lost rows up to step 12: 1 of 3 train"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("row", "metrics.jsonl has lost rows up to step 12: 1 of 3 train"),
        ("twice", "metrics.jsonl holds 1 rows twice"),
        ("info", "the checkpoint of step 12 is damaged: its info states bonds='None'"),
        ("gone", "the checkpoint of step 12 is damaged: [Errno 2] No such file"),
    ],
)
def test_a_finished_run_says_what_it_has_lost(finished, tmp_path, capfd, change, words):
    run = shutil.copytree(finished, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    info = run / "checkpoints" / "12" / "info" / "metadata"
    if change == "info":
        info.write_text(json.dumps(json.loads(info.read_text()) | {"bonds": None}))
    elif change == "gone":
        shutil.rmtree(run / "checkpoints" / "12")
    else:
        lines = lines[1:] if change == "row" else [*lines, lines[0]]
        (run / "metrics.jsonl").write_text("".join(lines))
    assert train(tiny(), run)["test_top1"] == rows(finished)[-1]["top1"]
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("warning: ")
    assert words in said


def test_resume_with_other_resumable_fields(finished, tmp_path, monkeypatch):
    stop_at(monkeypatch, 9, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(checkpoint__every_steps=3), tmp_path)
    monkeypatch.undo()
    train(tiny(checkpoint__keep=1, data__num_workers=1), tmp_path)
    assert rows(tmp_path) == rows(finished)


def test_work_directory_of_another_config_is_refused(finished):
    before = rows(finished)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate \(was 0\.001, now 0\.002\)"):
        train(tiny(optimizer__learning_rate=2e-3), finished)
    assert rows(finished) == before


def test_checkpoints_without_config_are_refused(finished, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds checkpoints but no config\.json"):
        train(tiny(), tmp_path)


def test_second_run_in_a_work_directory_is_refused(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ValueError, match=f"another process .pid {os.getpid()}. is training in"),
    ):
        train(tiny(), tmp_path)


def poison(run) -> None:
    """Makes a parameter NaN."""
    leaves, structure = jax.tree.flatten(run.state.params)
    leaves[0] = leaves[0] * np.float32("nan")
    params = jax.tree.unflatten(structure, leaves)
    run.state = loop_module.dataclasses.replace(run.state, params=params)


def test_parameters_that_are_not_finite_are_in_no_checkpoint(tmp_path, monkeypatch):
    """The loss before them is finite, and the row due."""
    original = loop_module._Loop._after_step

    def after_step(self, timer) -> None:
        if self.step == 4:
            poison(self)
        original(self, timer)

    monkeypatch.setattr(loop_module._Loop, "_after_step", after_step)
    with pytest.raises(ValueError, match=r"no longer finite at step 4 .*learning_rate"):
        train(tiny(), tmp_path)
    assert steps(tmp_path) == []


def test_loss_that_becomes_nan_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    stop_at(monkeypatch, 6, poison)
    with pytest.raises(ValueError, match=r"no longer finite at step 7 .*learning_rate"):
        train(tiny(checkpoint__every_steps=2, log__every_steps=100), tmp_path)
    assert steps(tmp_path)[-1] == 6
    monkeypatch.undo()
    train(tiny(checkpoint__every_steps=2, log__every_steps=100), tmp_path)
    assert rows(tmp_path)[-1]["split"] == "test"


@pytest.mark.slow
def test_diverging_run_stops(tmp_path):
    with pytest.raises(ValueError, match=r"no longer finite at step \d+ .*learning_rate"):
        train(tiny(optimizer__learning_rate=1e30), tmp_path)


def test_image_that_cannot_be_read_ends_the_run_and_loses_nothing(finished, tmp_path, monkeypatch):
    class Corrupt:
        def __init__(self, batches, left):
            self.batches, self.left = batches, left

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise ValueError("image 17 of digits cannot be decoded")
            return next(self.batches)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.batches.close()

    original = loop_module.Run.train_batches
    monkeypatch.setattr(
        loop_module.Run, "train_batches", lambda self, step: Corrupt(original(self, step), 7)
    )
    with pytest.raises(ValueError, match="image 17 of digits"):
        train(tiny(), tmp_path)
    assert steps(tmp_path)[-1] == 7
    monkeypatch.undo()
    train(tiny(), tmp_path)
    assert same(tmp_path, finished)


def test_damaged_latest_checkpoint_is_said_and_the_one_before_used(
    finished, tmp_path, monkeypatch, capsys
):
    stop_at(monkeypatch, 10, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path)
    monkeypatch.undo()
    # All of them: OCDBT leaves files behind that hold nothing which is still read, at times the
    # largest.
    for path in (tmp_path / "checkpoints" / "10").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(tiny(), tmp_path)
    assert "checkpoint of step 10 is damaged, using that of step 8" in capsys.readouterr().err
    assert (tmp_path / "checkpoints.damaged" / "10").is_dir()
    assert same(tmp_path, finished)


def test_all_checkpoints_damaged_is_an_error(tmp_path, monkeypatch):
    stop_at(monkeypatch, 5, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path)
    monkeypatch.undo()
    for step in steps(tmp_path):
        (tmp_path / "checkpoints" / str(step) / "info" / "metadata").write_text("")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(steps 4, 5;"):
        train(tiny(), tmp_path)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"model__kwargs__num_classes": 9}, r"10 classes .*head.*num_classes=10"),
    ({"model__kwargs__in_chans": 3}, r"1 channels and the model takes 3.*in_chans=1"),
    ({"mesh__data": 64}, r"mesh\.data = 64 .*do not fit \d+ devices"),
    ({"data__mean": (0.5, 0.5), "data__std": (0.5, 0.5)}, "each of the 1 channels"),
    ({"data__batch_size": 201}, "batch_size 201 is larger than .* 200 images"),
    ({"data__image_size": 12}, "12x12 pixels"),
    ({"init_from": "nowhere.safetensors"}, "nowhere"),
    ({"init_from": "nowhere"}, "nowhere"),
    ({"data__train_split": "trian"}, "there is no split 'trian'"),
    ({"model__name": "vit_tinny"}, "unknown model 'vit_tinny'"),
    ({"model__kwargs__global_pool": ""}, r"output has shape \(32, 5, 10\).*global_pool"),
]


def test_what_does_not_fit_is_one_error_and_nothing_is_trained(finished, tmp_path):
    for overrides, message in MISTAKES:
        with pytest.raises(ValueError, match=message):
            train(tiny(**overrides), tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists() or not rows(tmp_path), overrides
    train(tiny(), tmp_path)  # the mistakes mended, in the same work directory
    assert same(tmp_path, finished)


def test_init_from_a_work_directory_takes_its_latest_weights(finished, tmp_path, monkeypatch):
    seen = {}

    def look(self) -> None:
        seen.update(arrays_of(self.state))
        raise SystemExit

    def arrays_of(state):
        from vit_jax.weights.checkpoint_reading import named_arrays

        return {
            f"model/{k}": np.asarray(v).tobytes() for k, v in named_arrays(state.params).items()
        }

    monkeypatch.setattr(loop_module._Loop, "train", look)
    with pytest.raises(SystemExit):
        train(tiny(seed=9, init_from=str(finished)), tmp_path / "new")
    monkeypatch.undo()
    stored = {name: bits for name, bits in arrays(finished, 12).items() if name in seen}
    assert seen == stored


def test_init_from_another_model_names_what_differs(finished, tmp_path):
    with pytest.raises(ValueError, match=r"another model: .*head\.kernel has shape \(16, 10\)"):
        train(tiny(model__kwargs__num_classes=11, init_from=str(finished)), tmp_path)


def test_a_step_in_bfloat16_keeps_what_it_learns_in_float32():
    losses = []
    for dtype in ("float32", "bfloat16"):
        run = open_run(tiny(model__kwargs__dtype=dtype))
        state = run.steps.init()
        with run.train_batches(0) as batches:
            batch = next(iter(run.on_device(batches)))
            state, loss = run.steps.train(state, batch)
        losses.append(float(loss))
    assert 1e-6 < abs(losses[1] / losses[0] - 1) < 1e-2
    kept = (state.params, state.opt_state, state.sums)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept)} == {"float32", "int32"}


def test_checkpoints_know_the_preprocessing(finished, tmp_path):
    info = json.loads((finished / "checkpoints" / "12" / "info" / "metadata").read_text())
    assert info["spec"]["spec_version"] == 1
    assert info["spec"]["name"] == tiny().model.name
    assert info["spec"]["class_names"] == list("0123456789")
    assert info["spec"]["preprocessing"] == {
        "mean": list(STATISTICS["digits"].mean),
        "std": list(STATISTICS["digits"].std),
        "crop_fraction": 1.0,
        "interpolation": "bilinear",
        "crop_mode": "center",
        "size": None,
        "resized_from": [8, 8],
    }
    assert info["best_step"] in (6, 12)
    Checkpoints(tmp_path / "empty", keep=1, keep_best=True).close()
