"""Runs of several real processes: the run of one, and what is lost with one of them is not lost.

`VIT_JAX_STRESS=1` adds the other layouts, kills and mistakes.
"""

import json
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from flax import nnx

from tests import commands
from tests.training.conftest import uninterrupted
from tests.training.kills import row_count
from tests.training.many import Ended, Many, exact, run, start, values
from tests.training.runs import rows, steps
from vit_jax import create_model, save_pretrained
from vit_jax.data.splits import open_splits
from vit_jax.training.processes import join

stress = pytest.mark.skipif(
    not int(os.environ.get("VIT_JAX_STRESS", "0")), reason="set VIT_JAX_STRESS=1 to run it"
)
# Each test starts several Pythons on what may be two busy cores.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.xdist_group("processes")]

EXAMPLES, EPOCH, LAST = 192, 6, 24
# Seconds in which processes end that have lost one: most within 6; one that waits for the other's
# share of a checkpoint when JAX's heartbeats, 60 seconds without, tell it.
SOON = 120


def config(**overrides):
    """24 updates with dropout and augmentation, in float64; each example once an epoch."""
    own = {
        "num_epochs": LAST // EPOCH,
        "data__num_train_examples": EXAMPLES,
        "data__horizontal_flip": True,
        "data__random_resized_crop": True,
        "checkpoint__every_steps": 3,
    }
    return exact(**(own | overrides))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """The run of one process with one device: of this one."""
    with jax.enable_x64(True):
        return uninterrupted(config(), tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def indices(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("indices")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, indices) -> tuple[pathlib.Path, list[Ended], float]:
    """The run of two processes of which one receives SIGTERM, how they end, and when it did."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    many = begin(workdir, indices=str(indices))
    since = many.send(signal.SIGTERM, 1)
    return workdir, many.end(), since


@pytest.fixture(scope="module")
def two(tmp_path_factory, stopped, indices) -> pathlib.Path:
    """The run of two processes, stopped and repeated."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(stopped[0], workdir)
    run(config(), workdir, indices=str(indices))
    return workdir


def check_close(found: pathlib.Path, wanted: pathlib.Path) -> None:
    """Sums in another order: 4e-16 of a loss, 2e-15 of a parameter, 1e-12 of a key's bias."""
    theirs = rows(wanted)
    assert len(rows(found)) == len(theirs) == LAST + LAST // EPOCH + 1
    worst_loss, worst_parameter = 0.0, {}
    for row, other in zip(rows(found), theirs, strict=True):
        assert {n: row[n] for n in ("step", "split")} == {n: other[n] for n in ("step", "split")}
        assert row["top1"] == pytest.approx(other["top1"], abs=1e-12)
        worst_loss = max(worst_loss, abs(row["loss"] / other["loss"] - 1))
    ours, others = values(found, LAST), values(wanted, LAST)
    assert ours.keys() == others.keys()
    for name, array in others.items():
        if name.startswith("model/") and not name.endswith("fingerprint"):
            assert array.dtype == np.float64
            rms = np.sqrt(np.mean(array**2))
            worst_parameter[name] = float(np.abs(ours[name] - array).max() / rms)
    largest = max(worst_parameter, key=lambda name: worst_parameter[name])
    print(f"largest differences: loss {worst_loss:.1e}, {largest} {worst_parameter[largest]:.1e}")
    assert worst_loss <= 1e-11
    assert worst_parameter[largest] <= 1e-9, worst_parameter


def check_same(found: pathlib.Path, wanted: pathlib.Path) -> None:
    """Every bit: the sums of equal processes are made in one order."""
    assert rows(found) == rows(wanted)
    ours, theirs = values(found, LAST), values(wanted, LAST)
    assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in theirs.items()}


@pytest.mark.slow
def test_a_signal_to_one_stops_all(stopped):
    workdir, ended, since = stopped
    check_stopped(ended, workdir, since)


def test_two_processes_are_one(two, alone):
    check_close(two, alone)


LAYOUTS = {
    "four": {"processes": 4},
    "fsdp over processes": {"mesh__data": 1, "mesh__fsdp": 2},
    "four, data and fsdp": {"processes": 4, "mesh__data": 2, "mesh__fsdp": 2},
    "two with two devices": {"devices": 2},
    "two with two devices, fsdp within": {"devices": 2, "mesh__data": 2, "mesh__fsdp": 2},
    "two with two devices, fsdp over processes": {"devices": 2, "mesh__data": 1, "mesh__fsdp": 4},
    "pmap": {"parallel": "pmap"},
    "pmap, two with two devices": {"devices": 2, "parallel": "pmap"},
    "accumulation": {"accumulation_steps": 2},
    "accumulation, pmap": {"accumulation_steps": 2, "parallel": "pmap"},
}


@stress
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_are_one(layout, alone, tmp_path):
    how = {name: layout[name] for name in layout if name in ("processes", "devices")}
    overrides = {name: layout[name] for name in layout if name not in how}
    run(config(**overrides), tmp_path / "run", **how)
    check_close(tmp_path / "run", alone)


def test_every_example_is_seen_once(two, indices):
    def seen(loader: str) -> list[list[list[int]]]:
        """By process and batch, the examples that its loader made."""
        paths = sorted(indices.glob(f"{loader}.*"))
        assert [path.suffix for path in paths] == [".0", ".1"]
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]

    def check_once(batches_of_processes, wanted: int) -> None:
        found = [i for batches in batches_of_processes for batch in batches for i in batch]
        assert sorted(i for i in found if i >= 0) == list(range(wanted))

    made = seen("train_batches")
    for batches in made:
        assert [len(batch) for batch in batches] == [16] * LAST
    for first in range(0, LAST, EPOCH):
        check_once([batches[first : first + EPOCH] for batches in made], EXAMPLES)

    splits = open_splits(
        "digits",
        None,
        None,
        train_split="train",
        validation_split="validation",
        test_split="test",
        seed=3,
        num_train_examples=EXAMPLES,
    )
    sizes = [len(splits.validation)] * (LAST // EPOCH) + [len(splits.test)]  # pyright: ignore
    made = seen("eval_batches")
    for size in reversed(sizes):  # the first validation may be the one that the signal ended
        batches = -(-size // 64)
        check_once([process[-batches:] for process in made], size)
        made = [process[:-batches] for process in made]
    assert max(map(len, made)) <= batches


def begin(workdir: pathlib.Path, processes=2, devices=1, indices=None, **overrides) -> Many:
    """Starts or goes on with the run, and waits until it has come further."""
    begun = row_count(workdir)
    watched = {} if indices is None else {"indices": indices}
    many = start(config(**overrides), workdir, processes=processes, devices=devices, **watched)
    many.wait_for(lambda: row_count(workdir) >= begun + 4)
    return many


def check_lost(ended: list[Ended], lost: list[int], since: float) -> None:
    """All others ended soon, and say why in their last line; some are ended by JAX's runtime."""
    print("ended after", [f"{process.time - since:.1f} s" for process in ended])
    for number, process in enumerate(ended):
        assert process.time - since < SOON
        if number in lost:
            assert process.status == -signal.SIGKILL
            continue
        assert process.status in (2, -signal.SIGABRT), process.err
        last = process.err.rstrip().splitlines()[-1]
        assert last.startswith(f"error: process {number} of {len(ended)} ")
        assert "repeat the command on all hosts" in last
        assert "Traceback" not in process.err


def check_stopped(
    ended: list[Ended], workdir: pathlib.Path, since: float, within: float = SOON
) -> None:
    """All have saved at one step, that of the last row."""
    print("stopped after", [f"{process.time - since:.1f} s" for process in ended])
    for process in ended:
        assert process.status == 128 + signal.SIGTERM, process.err
        assert "Traceback" not in process.err
        assert process.last_error == ""
        assert process.time - since < within
    assert steps(workdir)[-1] == rows(workdir)[-1]["step"] < LAST


def check_unreadable(ended: list[Ended], process: int) -> None:
    """All end soon with the one that cannot read an image, and say so."""
    times = [one.time for one in ended]
    print(f"ended {max(times) - min(times):.1f} s after each other")
    assert max(times) - min(times) < SOON
    for number, one in enumerate(ended):
        assert one.status == 2, one.err
        assert "Traceback" not in one.err
        assert one.err.count("error: ") == 1
        assert "image 7 of the test is not a readable image" in one.last_error
        if number != process:
            assert f"process {number} of 2 ends, for process {process} ended" in one.last_error


@pytest.mark.slow  # of one process: tests/training/test_resume.py
def test_killed_and_repeated_it_is_the_run_that_was_repeated_once(two, tmp_path):
    workdir = tmp_path / "run"
    many = begin(workdir)
    since = many.send(signal.SIGKILL, 0)  # the one that the other asks where all are
    check_lost(many.end(), [0], since)

    run(config(), workdir)
    check_same(workdir, two)


@pytest.mark.slow
def test_a_signal_within_a_validation_stops_all(two, tmp_path):
    """They hear of it before the last of their questions is answered."""
    began = time.monotonic()
    ended = start(config(), tmp_path / "run", terminated=["eval_batches", 1, 0]).end()
    check_stopped(ended, tmp_path / "run", began, within=240)
    run(config(), tmp_path / "run")
    check_same(tmp_path / "run", two)


KILLS = {
    "host 1": (2, True, (1,)),
    "host 0": (2, True, (0,)),
    "all": (2, True, (0, 1)),
    "one of four": (4, False, (3,)),
    "process 0 of four": (4, False, (0,)),
}


@stress
@pytest.mark.parametrize(("processes", "hosts", "lost"), KILLS.values(), ids=KILLS)
def test_killed(processes, hosts, lost, tmp_path, request):
    workdir = tmp_path / "run"
    many = begin(workdir, processes=processes)
    since = (many.send_hosts if hosts else many.send)(signal.SIGKILL, *lost)
    check_lost(many.end(), list(lost), since)
    run(config(), workdir, processes=processes)
    if processes == 2:
        check_same(workdir, request.getfixturevalue("two"))
    else:
        check_close(workdir, request.getfixturevalue("alone"))


STOPS = {
    "process 0": (2, (0,)),
    "all": (2, (0, 1)),
    "one of four": (4, (2,)),
}


@stress
@pytest.mark.parametrize("hosts", [False, True], ids=["process", "host"])
@pytest.mark.parametrize(("processes", "told"), STOPS.values(), ids=STOPS)
def test_stopped(processes, told, hosts, tmp_path, request):
    workdir = tmp_path / "run"
    many = begin(workdir, processes=processes)
    since = (many.send_hosts if hosts else many.send)(signal.SIGTERM, *told)
    check_stopped(many.end(), workdir, since)
    run(config(), workdir, processes=processes)
    if processes == 2:
        check_same(workdir, request.getfixturevalue("two"))
    else:
        check_close(workdir, request.getfixturevalue("alone"))


@stress
@pytest.mark.parametrize("silent", [1, 0])
def test_host_that_answers_no_more(silent, two, tmp_path):
    """As one that lost its network: nothing is closed, and only heartbeats are missing."""
    workdir = tmp_path / "run"
    many = begin(workdir)
    since = many.send(signal.SIGSTOP, silent)
    many.processes[1 - silent].wait(timeout=300)
    print(f"ended after {time.monotonic() - since:.0f} s")
    many.send(signal.SIGKILL, silent)
    last = many.end()[1 - silent].err.rstrip().splitlines()[-1]
    assert last.startswith(f"error: process {1 - silent} of 2 ")
    run(config(), workdir)
    check_same(workdir, two)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_an_image_that_one_cannot_read_ends_both(process, tmp_path):
    check_unreadable(start(config(), tmp_path / "run", unreadable=[process, 4]).end(), process)


@pytest.mark.slow  # other devices: tests/training/test_layouts.py
def test_checkpoint_of_two_processes_goes_on_on_four_devices_of_one(stopped, alone, tmp_path):
    go_on_elsewhere(stopped[0], alone, tmp_path, {"processes": 1, "devices": 4})


@pytest.mark.slow
def test_checkpoint_of_eight_devices_goes_on_on_fewer(alone, tmp_path):
    workdir = eight_devices(tmp_path, processes=1, devices=8)
    places = {"processes": 2}, {"processes": 1, "devices": 2}
    go_on_elsewhere(workdir, alone, tmp_path, *places)


@stress
def test_checkpoint_of_eight_devices_with_fsdp_goes_on_on_fewer(alone, tmp_path):
    workdir = eight_devices(tmp_path, processes=2, devices=4, mesh__fsdp=2)
    places = [
        {"processes": 1, "devices": 2, "mesh__fsdp": 2},
        {"processes": 2, "mesh__fsdp": 2},
        {"processes": 4},
        {"processes": 1},
    ]
    go_on_elsewhere(workdir, alone, tmp_path, *places)


def eight_devices(tmp_path, **how) -> pathlib.Path:
    """The work directory of a run on eight devices that was stopped."""
    workdir = tmp_path / "first"
    many = begin(workdir, **how)
    since = many.send(signal.SIGTERM)
    check_stopped(many.end(), workdir, since)
    return workdir


def go_on_elsewhere(first: pathlib.Path, alone, tmp_path, *places) -> None:
    stopped = rows(first)
    for number, place in enumerate(places):
        workdir = tmp_path / str(number)
        shutil.copytree(first, workdir)
        how = {name: place[name] for name in ("processes", "devices") if name in place}
        overrides = {name: place[name] for name in place if name not in how}
        run(config(**overrides), workdir, **how)
        assert rows(workdir)[: len(stopped)] == stopped, "it began anew"
        check_close(workdir, alone)


@stress
@pytest.mark.parametrize("form", ["weights", "workdir"])
def test_weights_from_elsewhere(form, alone, tmp_path):
    init_from = alone
    if form == "weights":
        fields = {n: v for n, v in config().model.kwargs.items() if "dtype" not in n}
        model = create_model(config().model.name, rngs=nnx.Rngs(9), **fields)
        init_from = tmp_path / "weights.safetensors"
        save_pretrained(model, init_from)
    theirs = config(init_from=str(init_from))
    run(theirs, tmp_path / "one", processes=1)
    run(theirs, tmp_path / "two")
    assert rows(tmp_path / "one")[0]["loss"] != rows(alone)[0]["loss"]
    check_close(tmp_path / "two", tmp_path / "one")


JOINED = {"coordinator_address": "127.0.0.1:1234", "num_processes": "2", "process_id": "0"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"process_id": None}, "--process_id is missing"),
        ({"coordinator_address": None}, "--coordinator_address is missing"),
        ({"num_processes": None, "process_id": None}, "--num_processes and --process_id is"),
        ({"process_id": "2"}, "--process_id: wanted 0 to 1.* got 2"),
        ({"process_id": "-1"}, "--process_id: wanted a number, got '-1'"),
        ({"num_processes": "two"}, "--num_processes: wanted a number, got 'two'"),
        ({"num_processes": "0"}, "--num_processes"),
        ({"coordinator_address": "127.0.0.1"}, "--coordinator_address: wanted HOST:PORT, got"),
        ({"coordinator_address": ":1234"}, "--coordinator_address: wanted HOST:PORT, got"),
        ({"coordinator_address": "host:port"}, "--coordinator_address: wanted HOST:PORT, got"),
        ({"coordinator_address": "host:0"}, "--coordinator_address: wanted HOST:PORT, got"),
        ({"coordinator_address": "host:99999"}, "--coordinator_address: wanted HOST:PORT, got"),
    ],
)
def test_wrong_options(given, told):
    """They are refused before JAX is asked."""
    options = JOINED | given
    with pytest.raises(ValueError, match=told):
        join(**options)


def test_wrong_option_is_one_line(tmp_path):
    options = JOINED | {"config": "configs/cifar10_vit.py", "workdir": str(tmp_path / "run")}
    flags = [f"--{name}={value}" for name, value in (options | {"process_id": "2"}).items()]
    ended = commands.run("train", *flags)
    assert ended.status == 2
    assert ended.err == (
        "error: --process_id: wanted 0 to 1, one less than --num_processes, got 2\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_work_directory_that_is_not_shared(tmp_path):
    workdirs = [tmp_path / "0", tmp_path / "1"]
    first, second = start(config(), workdirs, shared_within=1.0).end()
    assert (first.status, second.status) == (2, 2)
    assert "process 1 of 2 does not see in" in second.last_error
    assert "wanted a --workdir on storage that all hosts share" in second.last_error
    assert "process 0 of 2 ends, for process 1 ended: process 1" in first.last_error
    for process in (first, second):
        assert "Traceback" not in process.err
        assert process.err.count("error: ") == 1
