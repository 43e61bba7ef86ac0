"""`configs/cifar100_vit.py` as the README has it: without its data, and with a prepared set."""

import json
import pathlib
import subprocess
import sys
import time

from tests import commands
from tests.data.conftest import cifar_members, write_tar

ROOT = pathlib.Path(__file__).parents[2]
BIN = pathlib.Path(sys.prefix) / "bin"


def test_without_data_it_ends_soon_and_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    start = time.monotonic()
    done = commands.run("train", "--config=cifar100_vit", f"--workdir={tmp_path / 'run'}")
    assert time.monotonic() - start < 20
    assert done.status == 2, done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for way_out in ("vit-jax prepare cifar100", "--archive", "--config.data.data_dir"):
        assert way_out in done.err


def run(*words: str) -> None:
    """As a user does it: in a process."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_prepared_from_a_local_archive_it_trains(tmp_path):
    members = cifar_members("cifar100", train=64, test=10)
    archive = write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    data = str(tmp_path / "data")
    run(f"{BIN}/vit-jax", "prepare", "cifar100", "--data-dir", data, "--archive", str(archive))
    run(
        *(f"{BIN}/python", "train.py", "--config=configs/cifar100_vit.py"),
        *(f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={data}"),
        # The recipe's own batch and sizes; less of it, to be quick.
        *("--config.num_epochs=2", "--config.model.kwargs.depth=1"),
    )
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
