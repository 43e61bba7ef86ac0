"""Event files, read back by another implementation of the format."""

import struct

import pytest

from vit_jax.training.events import EventWriter, _masked_crc


@pytest.fixture(scope="module")
def event_class():
    return pytest.importorskip("tensorboardX.proto.event_pb2").Event


def read(path, event_class) -> list:
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == _masked_crc(data[:8])
        assert data[12 + length : 16 + length] == _masked_crc(data[12 : 12 + length])
        events.append(event_class.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_crc_is_castagnolis_masked():
    # CRC-32C of "123456789" is 0xE3069283 (RFC 3720's polynomial); the mask is TFRecord's.
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked_crc(b"123456789") == struct.pack("<I", masked)


def test_scalars_come_back_and_purge_what_a_killed_run_wrote(tmp_path, event_class):
    writer = EventWriter(tmp_path, purge_step=301)
    writer.scalars(350, {"train/loss": 2.5, "train/top1": 0.25})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, scalars = read(path, event_class)  # before the file is closed
    writer.close()
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (301, 1)  # START
    assert scalars.step == 350
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert values == {"train/loss": 2.5, "train/top1": 0.25}
    assert scalars.wall_time > 1e9


def test_files_of_resumed_runs_sort_by_time(tmp_path):
    for step in range(3):
        EventWriter(tmp_path, purge_step=step).close()
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    assert sorted(paths, key=lambda path: path.stat().st_mtime_ns) == paths
