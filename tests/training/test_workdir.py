"""One process and one config a directory."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.runs import tiny
from vit_jax.training.workdir import check_config, check_pixels, locked, store_config

HOLD = """
import pathlib, sys, time
from vit_jax.training.workdir import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_saw_other_pixels_is_not_gone_on_with(tmp_path):
    """Images of one size are the same in all versions."""
    store_config(tiny(), tmp_path)
    check_pixels(tmp_path, None)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for version in (1, None):
        values.pop("spec_version")
        values |= {} if version is None else {"spec_version": version}
        path.write_text(json.dumps(values))
        check_pixels(tmp_path, (8, 8, 1))
        with pytest.raises(ValueError, match=r"holds a run of vit_jax 0\.1\.0 or earlier"):
            check_pixels(tmp_path, None)


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
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "split": "train"}\n')
    check_config(tiny(data__num_workers=3, mesh__fsdp=2, log__every_steps=1), tmp_path)
    with pytest.raises(ValueError, match=r"differs in seed \(was 3, now 4\), data\.batch_size"):
        check_config(tiny(seed=4, data__batch_size=16), tmp_path)
