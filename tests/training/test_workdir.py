"""One process and one config a directory."""

import json
import os
import subprocess
import sys
from unittest import mock

import pytest

from tests.training.runs import tiny
from vit_jax.training.workdir import (
    IMAGES,
    check_config,
    check_images,
    check_pixels,
    has_begun,
    locked,
    store_config,
    writing,
)

HOLD = """
import pathlib, sys, time
from vit_jax.training.workdir import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("version", "wrote"),
    [
        (None, r"0\.1\.0"),
        (1, r"after 0\.1\.0 \(spec_version 1 of config.json\)"),
        (2, r"after 0\.1\.0 \(spec_version 2 of config.json\)"),
        (3, ""),
    ],
)
@pytest.mark.parametrize(
    ("image_shape", "crop", "changed"),
    [
        ((8, 8, 1), False, ""),
        ((8, 8, 1), True, "drew other random resized crops"),
        (None, False, "resized images that vary in size otherwise"),
        (None, True, "resized images that vary in size otherwise"),
    ],
)
def test_a_run_that_saw_other_pixels_is_not_gone_on_with(
    tmp_path, version, wrote, image_shape, crop, changed
):
    config = tiny(data__random_resized_crop=crop)
    store_config(config, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("spec_version") == 3
    path.write_text(json.dumps(values | ({"spec_version": version} if version else {})))
    if wrote and changed:
        refusal = rf"run of vit_jax {wrote}, which {changed}: finish it with that version, or give"
        with pytest.raises(ValueError, match=refusal):
            check_pixels(config, tmp_path, image_shape)
    else:
        check_pixels(config, tmp_path, image_shape)


def test_a_run_on_other_images_is_not_gone_on_with(tmp_path):
    config, begun = tiny(), "10 images 0123"
    check_images(tmp_path, begun)  # nothing was begun
    store_config(config, tmp_path, {"loss": "mine"})
    check_images(tmp_path, begun)  # by a version that did not say
    store_config(config, tmp_path, {"loss": "mine", IMAGES: begun})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    assert not has_begun(tmp_path)  # it failed before its first row: nothing is lost
    (tmp_path / "checkpoints" / "1").mkdir()
    assert has_begun(tmp_path)
    check_config(config, tmp_path, {"loss": "mine"})
    check_images(tmp_path, begun)
    for now in ("10 images 4567", ""):
        refusal = rf"are not those that its run began with \(it began with {begun}, now {now}\)"
        with pytest.raises(ValueError, match=refusal):
            check_images(tmp_path, now)


def test_what_cannot_be_written_is_told_with_what_comes_next(tmp_path):
    for then in ("the run goes on from its last checkpoint", "its curves are drawn"):
        wanted = rf"cannot write to {tmp_path}: full; make room and repeat the command: {then}"
        with pytest.raises(ValueError, match=wanted), writing(tmp_path, then):
            raise OSError(28, "full")


def test_the_lock_names_its_holder_and_ends_with_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"another process \(pid {holder.pid}\)"),
            locked(tmp_path),
        ):
            pass
        holder.kill()
    with locked(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied"), locked(tmp_path / "run"):
        pass


def test_a_file_is_no_work_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"cannot use .*file as a work directory"),
        locked(tmp_path / "file"),
    ):
        pass


def test_another_config_is_refused_and_a_resumable_field_is_not(tmp_path):
    check_config(tiny(), tmp_path)
    store_config(tiny(), tmp_path)
    check_config(tiny(seed=4), tmp_path)  # nothing was trained: nothing to lose
    row = {"step": 5, "split": "train", "epoch": 1, "loss": 2, "top1": 0.1, "top5": 0.2}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    check_config(tiny(data__num_workers=3, mesh__fsdp=2, log__every_steps=1), tmp_path)
    other = tiny(training__deterministic=True)
    check_config(other, tmp_path)  # of CPUs, where it means nothing
    on_gpu = mock.patch("jax.default_backend", return_value="gpu")
    with on_gpu, pytest.raises(ValueError, match=r"training\.deterministic \(was False, now True"):
        check_config(other, tmp_path)
    with pytest.raises(ValueError, match=r"differs in seed \(was 3, now 4\), data\.batch_size"):
        check_config(tiny(seed=4, data__batch_size=16), tmp_path)
