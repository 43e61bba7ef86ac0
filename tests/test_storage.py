"""Files on object storage: fsspec's memory stands in for gs://."""

import pathlib
import sys
import types

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from tests.training.runs import tiny
from vit_jax import storage
from vit_jax.plots.curves import plot_curves
from vit_jax.training.events import EventWriter
from vit_jax.training.records import Records, read_rows
from vit_jax.training.workdir import check_config, held, store_config

ROW = {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0, "top1": 0.1, "top5": 0.5}


class Bucket(MemoryFileSystem):
    """Objects in memory, each written as a whole."""

    protocol = "gs"
    store: dict = {}  # noqa: RUF012, not that of other memory file systems
    pseudo_dirs = [""]  # noqa: RUF012

    def _open(self, path, mode="rb", **options):
        assert mode in ("rb", "wb"), f"object storage has no mode {mode!r}"
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch):
    package = types.ModuleType("gcsfs")
    package.GCSFileSystem = Bucket
    monkeypatch.setitem(sys.modules, "gcsfs", package)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setitem(_registry, "gs", Bucket)
    return storage.run_path("gs://bucket/run")


def test_rows_are_kept_and_cut_back(bucket):
    path = bucket / "metrics.jsonl"
    records = Records(path, read_rows(path), write=True)
    for step in (1, 2, 3):
        records.append(ROW | {"step": step})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    again = Records(path, read_rows(path), write=True)
    again.cut_back(2)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_config_is_compared(bucket):
    with held(bucket):
        store_config(tiny(), bucket)
        (bucket / "metrics.jsonl").write_bytes(b'{"step": 1, "split": "train"}\n')
        check_config(tiny(), bucket)
        with pytest.raises(ValueError, match="another config"):
            check_config(tiny(seed=4), bucket)


def test_events_and_plots_are_those_of_a_disk(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1.0)
    found = []
    for directory in (bucket, tmp_path):
        events = EventWriter(directory, purge_step=1)
        events.scalars(1, {"train/loss": 2.0})
        events.scalars(2, {"train/loss": 1.0})
        (file,) = (path for path in directory.iterdir() if "tfevents" in path.name)
        plots = plot_curves([ROW], directory / "plots")
        found.append([file.read_bytes(), *(path.read_bytes()[:8] for path in plots)])
        events.close()
    assert found[0] == found[1]


def test_what_cannot_be_written_is_an_error_in_words(bucket, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("Forbidden: 403")

    monkeypatch.setattr(Bucket, "_open", refuse)
    with pytest.raises(OSError, match="Forbidden: 403"):
        storage.write_bytes(bucket / "config.json", b"")
    with (
        pytest.raises(ValueError, match=r"cannot use gs://bucket/run as .* Forbidden: 403"),
        held(bucket),
    ):
        pass


def test_trees_are_removed(bucket, tmp_path):
    for directory in (bucket / "checkpoints", tmp_path / "checkpoints"):
        storage.remove_tree(directory / "1")  # not there: no harm
        directory.mkdir(parents=True)
        (directory / "1").mkdir()
        (directory / "1" / "array").write_bytes(b"1")
        storage.remove_tree(directory / "1")
        assert not (directory / "1" / "array").exists()


def test_paths_of_a_disk_are_opened():
    assert storage.run_path("~/run") == pathlib.Path.home() / "run"
    assert not storage.is_remote("runs/a:b")


def test_other_storage_is_refused():
    with pytest.raises(ValueError, match=r"ftp://x/y: wanted a directory, or gs:// or s3://"):
        storage.run_path("ftp://x/y")
    with pytest.raises(ValueError, match="s3:// needs the package s3fs, which is not installed"):
        storage.run_path("s3://bucket/run")
