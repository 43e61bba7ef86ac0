"""What a folder holds decides what it is; only in a run's own `checkpoints/` does a name count."""

import json
import pathlib
import shutil

import pytest

import vit_jax
from vit_jax.weights.checkpoint_reading import CheckpointInfo, bound_info
from vit_jax.weights.run_folder import (
    find_checkpoint,
    model_of_run,
    named_checkpoint,
    named_step,
    run_directory,
)


def fake_run(path: pathlib.Path, *steps: str) -> pathlib.Path:
    """Folders and files as of a run with checkpoints of these steps, all empty."""
    for step in steps:
        (path / "checkpoints" / step / "info").mkdir(parents=True)
        (path / "checkpoints" / step / "info" / "metadata").touch()
    (path / "config.json").touch()
    return path


def entry(path: pathlib.Path | None) -> str:
    """Where a folder lies, links followed."""
    return str(path and path.resolve())


@pytest.mark.parametrize(
    "place",
    ["7", "runs/2024", "checkpoints", "checkpoints/mine", "checkpoints/12", "R/checkpoints/3"],
)
def test_a_run_is_one_whatever_it_is_called(place, tmp_path, monkeypatch):
    if place.startswith("R/"):
        fake_run(tmp_path / "R", "1")
    run = fake_run(tmp_path / place, "9", "10")
    (run / "checkpoints" / "99").mkdir()  # empty: no checkpoint
    (run / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "latest").symlink_to(run / "checkpoints" / "10")
    for path in (run, tmp_path / "link", run / "checkpoints", run / "checkpoints" / "10"):
        assert entry(run_directory(path)) == entry(run), path
        assert entry(find_checkpoint(path)) == entry(run / "checkpoints" / "10"), path
    assert named_step(run) is None
    assert named_step(run / "checkpoints" / "9") == 9
    assert named_step(tmp_path / "latest") == 10
    for inside, up in ((".", "."), ("checkpoints", "."), ("checkpoints/10", "../10")):
        monkeypatch.chdir(run / inside)
        for path in (pathlib.Path(), pathlib.Path(up)):
            assert entry(run_directory(path)) == entry(run)
            assert find_checkpoint(path).resolve().name == "10"


def test_checkpoints_on_another_disk(tmp_path):
    run = fake_run(tmp_path / "run", "5")
    shutil.move(run / "checkpoints", tmp_path / "scratch")
    (run / "checkpoints").symlink_to(tmp_path / "scratch")
    assert run_directory(run / "checkpoints" / "5") == run
    assert named_step(run / "checkpoints" / "5") == 5


def test_a_copied_checkpoint_is_of_its_own_step(tmp_path):
    checkpoints = fake_run(tmp_path / "run", "5") / "checkpoints"
    for name in ("2024", "best"):
        copied = shutil.copytree(checkpoints / "5", tmp_path / name)
        assert find_checkpoint(copied) == copied
        assert (run_directory(copied), named_step(copied)) == (None, None)


@pytest.mark.parametrize("name", ["runs", "7", "checkpoints", "²", "weights/12"])
def test_what_holds_no_checkpoint(name, tmp_path):
    """Neither a folder of runs, nor one that is empty."""
    path = tmp_path / name
    (path / "8").mkdir(parents=True)
    fake_run(path / "2024", "5")
    assert run_directory(path) is None
    with pytest.raises(ValueError, match="no checkpoint in"):
        find_checkpoint(path)


@pytest.mark.xdist_group("run")
def test_what_lies_under_a_step_is_of_that_step(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "checkpoints" / "2024")
    assert vit_jax.from_pretrained(copied).spec.class_names == tuple("0123456789")
    (copied / "checkpoints" / "99").mkdir()
    with pytest.raises(ValueError, match="checkpoints/99 is damaged: it holds no model"):
        vit_jax.from_pretrained(copied / "checkpoints" / "99")
    (copied / "checkpoints" / "99").rmdir()
    (copied / "checkpoints" / "12").rename(copied / "checkpoints" / "99")
    with pytest.raises(ValueError, match="damaged: it lies where that of step 99 should"):
        vit_jax.from_pretrained(copied)


@pytest.mark.xdist_group("run")
def test_a_damaged_checkpoint_names_the_one_before_that_is_whole(run, tmp_path):
    """The latest is damaged and of the two before it the later, too: the whole one can be used."""
    copied = shutil.copytree(run, tmp_path / "run")
    checkpoints = copied / "checkpoints"
    for step in ("14", "13"):
        shutil.copytree(checkpoints / "12", checkpoints / step)  # and is of step 12
    with pytest.raises(ValueError, match="checkpoints/14 is damaged: it lies where") as error:
        vit_jax.from_pretrained(copied)
    words = str(error.value)
    assert f"the one before is whole: give its path, {checkpoints}/12" in words
    assert vit_jax.from_pretrained(words.rsplit(", ", 1)[1]).spec.class_names is not None
    for step in ("8", "12"):
        shutil.rmtree(checkpoints / step)
    with pytest.raises(ValueError, match="checkpoints/14 is damaged") as error:
        vit_jax.from_pretrained(copied)
    assert "is whole" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        '{"data": {"image_size": 32}}',
        '{"model": ["vit"], "data": {"image_size": 32}}',
        '{"model": {"name": "vit", "kwargs": 3}, "data": {"image_size": 32}}',
        '{"model": {"name": "vit", "kwargs": {}}, "data": {"image_size": 1e999}}',
        '{"model": {"name": "vit", "kwargs": {}}, "data": {"image_size": true}}',
        "[" * 100_000,
        "not JSON",
    ],
    ids=range(7),
)
def test_a_config_that_names_no_model_is_named(config, tmp_path):
    run = fake_run(tmp_path / "run", "5")
    (run / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"config\.json.* (cannot be read|is no)"):
        model_of_run(run)


def test_run_best_is_the_checkpoint_of_the_best_validation(tmp_path):
    run = fake_run(tmp_path / "R", "4", "9")

    def say(**facts):
        info = bound_info(CheckpointInfo(step=9, spec={}, **facts), {})
        (run / "checkpoints" / "9" / "info" / "metadata").write_text(json.dumps(info))

    say(best_step=4, best_top1=0.5)
    assert named_checkpoint(f"{run}:best") == run / "checkpoints" / "4"
    for other in (f"{run}:last", str(run), run, "hf:some/model:best"):
        assert named_checkpoint(other) == other
    (tmp_path / "R:best").touch()  # a file of that name goes first
    assert named_checkpoint(f"{run}:best") == f"{run}:best"
    (tmp_path / "R:best").unlink()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            named_checkpoint(f"{run}:best")

    say(best_step=5, best_top1=0.5)
    refused(r"the best validation was at step 5, whose checkpoint was not kept \(config.checkpoint")
    say()
    refused("the run has not validated, so that no checkpoint is its best")
    (run / "checkpoints" / "9" / "info" / "metadata").write_text("{")
    refused("the checkpoint .*9 is damaged: ")
    shutil.rmtree(run)
    refused("wanted RUN:best of a run, and .*R is no work directory")
