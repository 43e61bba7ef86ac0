"""`configs/cifar100_vit.py` as the README has it: without its data, and with a prepared set."""

import json
import os
import pathlib
import subprocess
import sys
import time

from tests.data.conftest import cifar_members, write_tar

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_data_it_ends_soon_and_names_the_ways_out(tmp_path):
    start = time.monotonic()
    done = run(
        "train.py",
        "--config=configs/cifar100_vit.py",
        f"--workdir={tmp_path / 'run'}",
        TFDS_DATA_DIR=str(tmp_path / "empty"),
    )
    assert time.monotonic() - start < 20
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for way_out in ("vit-jax prepare cifar100", "--archive", "--config.data.data_dir"):
        assert way_out in done.stderr


def test_prepared_from_a_local_archive_it_trains(tmp_path):
    members = cifar_members("cifar100", train=64, test=10)
    archive = write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    done = run(
        *("-m", "vit_jax.cli", "prepare", "cifar100"),
        *("--data-dir", str(tmp_path / "data"), "--archive", str(archive)),
    )
    assert done.returncode == 0, done.stderr
    done = run(
        *("train.py", "--config=configs/cifar100_vit.py", f"--workdir={tmp_path / 'run'}"),
        f"--config.data.data_dir={tmp_path / 'data'}",
        # The recipe's own batch and sizes; less of it, to be quick.
        *("--config.num_epochs=2", "--config.model.kwargs.depth=1"),
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["split"], row["step"]) for row in rows] == [
        ("validation", 2),
        ("train", 4),
        ("validation", 4),
        ("test", 4),
    ]
    assert {path.name for path in (tmp_path / "run" / "plots").iterdir()} == {
        "loss.png",
        "accuracy.png",
    }
