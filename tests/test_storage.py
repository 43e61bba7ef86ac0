"""Files on object storage: fsspec's memory stands in for gs://."""

import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from tests.training.runs import tiny
from vit_jax import storage
from vit_jax.config import load_config
from vit_jax.data.folder import FolderSource
from vit_jax.plots.curves import plot_curves
from vit_jax.plots.figure import FORMATS, new_figure, save_figure
from vit_jax.training.events import EventWriter
from vit_jax.training.records import Records, read_rows
from vit_jax.training.workdir import check_config, held, store_config
from vit_jax.weights import atomic
from vit_jax.weights.checkpoint_reading import read_items, read_model

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
        (bucket / "metrics.jsonl").write_text(json.dumps(ROW | {"step": 1}) + "\n")
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


@pytest.fixture
def odd(tmp_path):
    """A folder with one entry of each kind."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("target")
    (tmp_path / "device").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", ["pipe", "device", "folder", "dangling"])
def test_only_regular_files_are_read(odd, name):
    with pytest.raises(OSError, match=r"not a regular file|No such file"):
        storage.read_bytes(odd / name)
    assert storage.read_bytes(odd / "link") == b"old"


def test_a_folder_with_a_pipe_in_it_is_refused(odd):
    with pytest.raises(OSError, match="not a regular file"):
        storage.check_regular(odd)
    with pytest.raises(OSError, match="not a regular file"):
        storage.check_regular(odd / "pipe")
    (odd / "pipe").unlink()
    (odd / "device").unlink()
    storage.check_regular(odd)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("name", "target"), [("file", "file"), ("link", "file"), ("dangling", "target"), ("new", "new")]
)
def test_an_output_takes_the_place_of_what_a_link_leads_to(odd, name, target, whole):
    is_link = (odd / name).is_symlink()
    if whole:
        with atomic.whole(odd / name) as partial:
            partial.write_text("new")
    else:
        storage.write_bytes(odd / name, b"new")
    assert (odd / target).read_text() == "new"
    assert (odd / name).is_symlink() == is_link


@pytest.mark.parametrize("name", ["pipe", "device"])
def test_an_output_never_takes_the_place_of_a_device(odd, name):
    with pytest.raises(ValueError, match="no regular file"):
        storage.write_bytes(odd / name, b"new")
    with pytest.raises(ValueError, match="no regular file"), atomic.whole(odd / name):
        pass


@pytest.mark.parametrize("name", ["~", "~/x.png", "~nobody_of_that_name/x.png"])
def test_an_output_makes_no_folder_that_is_called_home(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    writers = (
        lambda path: storage.write_bytes(path, b"new"),
        lambda path: storage.check_output(path, {".png": b"", "": b""}),
        lambda path: atomic.whole(path).__enter__(),
    )
    for write in writers:
        with pytest.raises(ValueError, match="wanted a whole path; a shell expands ~"):
            write(pathlib.Path(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "folder", "folder/" + "x" * 255])
def test_nothing_is_left_of_what_cannot_be_written(odd, name, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    before = sorted(odd.rglob("*"))
    with pytest.raises(OSError, match=r"full|too long"):
        storage.write_bytes(odd / name, b"new")
    assert sorted(odd.rglob("*")) == before
    assert (odd / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(28, "No space left on device"), OSError),
        (RuntimeError("write() failed: No space left on device; writing x"), OSError),
        (ValueError("RESOURCE_EXHAUSTED: [Errno 30] Read-only file system"), OSError),
        (ValueError("a refusal"), ValueError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_what_the_system_said_is_told_and_nothing_is_left(odd, raised, told, folder):
    before = sorted(odd.rglob("*"))

    def write() -> None:
        with atomic.whole(odd / "new") as partial:
            if folder:
                partial.mkdir()
                partial.with_name(f"{partial.name}.orbax-checkpoint-tmp").mkdir()
            else:
                partial.write_text("half")
            raise raised

    with pytest.raises(told) as error:
        write()
    assert sorted(odd.rglob("*")) == before
    if told is OSError:
        assert error.value.filename == str(odd / "new")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", None, None),
        ("a.PNG", b"", None),
        ("a.png", b"\x89PNG and more", None),
        ("a.png", b'{"step": 1}', r"is there, and no \.png file"),
        ("metrics.jsonl", b"{}", r"wanted a file \.png, \.jpg, \.pdf, \.svg"),
        ("a", None, "wanted a file"),
        (".", None, "wanted a file"),
        ("folder.png", ..., "is a folder"),
    ],
)
def test_a_picture_is_written_over_pictures_alone(tmp_path, name, content, message):
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    figure = new_figure(1, 1)
    if message is None:
        save_figure(figure, path)
        assert path.read_bytes().startswith(FORMATS[path.suffix.lower()])
        return
    with pytest.raises(ValueError, match=message):
        save_figure(figure, path)
    assert content in (None, ...) or path.read_bytes() == content


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_suffix_decides_the_form_of_a_picture(tmp_path, suffix):
    for _ in range(2):  # the second one over the first
        save_figure(new_figure(1, 1), tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(FORMATS[suffix])


def _read_rows(path: pathlib.Path) -> None:
    read_rows(path)


def _read_config(path: pathlib.Path) -> None:
    load_config(path)


def _read_training_image(path: pathlib.Path) -> None:
    FolderSource([str(path)], np.zeros(1, np.int64), class_names=("a",), name="x")[0]


def _read_checkpoint(path: pathlib.Path) -> None:
    (path.parent / "info").mkdir()
    path.rename(path.parent / "info" / "metadata")
    read_items(path.parent, {}, None)


def _read_model(path: pathlib.Path) -> None:
    read_model(path.parent, {})


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "read", [_read_rows, _read_config, _read_training_image, _read_checkpoint, _read_model]
)
def test_no_reader_waits_for_a_pipe(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((OSError, ValueError), match="not a regular file"):
        read(tmp_path / "pipe")
