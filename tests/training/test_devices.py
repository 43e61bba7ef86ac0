"""One step in all its forms, on one device and on four: the same run."""

import pytest

from tests.training.runs import child, rows, tiny

SHARED = {
    "num_epochs": 1,
    "log__every_steps": 1,
    "data__rotation_degrees": 7.0,
    "data__horizontal_flip": True,
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict]:
    """jit on one device."""
    return run(tmp_path_factory.mktemp("alone"), 1)


def run(workdir, devices: int, **overrides) -> list[dict]:
    process = child(tiny(**SHARED, **overrides), workdir, devices=devices)
    _, err = process.end(timeout=300)
    assert process.returncode == 0, err
    return rows(workdir)


@pytest.mark.slow
def test_pmap_on_one_device_is_jit(alone, tmp_path):
    # Another program, so equal to rounding; dropout, augmentation and order are the same.
    check_close(run(tmp_path, 1, parallel="pmap"), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [{"mesh__data": 2, "mesh__fsdp": 2}, {"parallel": "pmap"}],
    ids=["data_and_fsdp", "pmap"],
)
def test_four_devices_are_one(alone, tmp_path, overrides):
    check_close(run(tmp_path, 4, **overrides), alone)


def check_close(found: list[dict], wanted: list[dict]) -> None:
    # Sums in another order: 3e-7 after six updates. Another dropout mask moves a loss by 1e-2.
    assert len(found) == len(wanted) == 8
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=3e-6)
        assert ours["top1"] == pytest.approx(theirs["top1"], abs=1 / 180)


@pytest.mark.slow
def test_batch_that_four_devices_cannot_share(tmp_path):
    process = child(tiny(data__batch_size=30), tmp_path, devices=4)
    _, err = process.end(timeout=120)
    assert process.returncode == 2
    assert "error: config.data.batch_size = 30 is not divisible by the 4 devices" in err
    assert "Traceback" not in err
