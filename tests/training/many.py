"""Several processes as one run on the loopback address, as hosts are: see `start`."""

import dataclasses
import os
import pathlib
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from tests.training.kills import check_none_left
from tests.training.runs import Process, environment, tiny
from vit_jax.config import TrainConfig, to_dict

PRECISE = {"dtype": "float64", "param_dtype": "float64"}


def exact(**overrides: Any) -> TrainConfig:
    """The tiny config in float64, for the children alone: they allow it."""
    kwargs = {f"model__kwargs__{name}": value for name, value in PRECISE.items()}
    return tiny(**(kwargs | {"log__every_steps": 1} | overrides))


def free_address() -> str:
    """A port that nobody listens at, on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@dataclasses.dataclass
class Ended:
    """How a process ended: its status, what it wrote, and when (time.monotonic)."""

    status: int
    out: str
    err: str
    time: float

    @property
    def last_error(self) -> str:
        """The last line of what it said that is an `error: ...`; empty without one."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[-1] if lines else ""


class Many:
    """The processes of a run.

    Args:
      processes: each in a session of its own, as on a host.
    """

    def __init__(self, processes: list[Process]) -> None:
        self.processes = processes

    @property
    def alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until `what` holds; they have to be alive by then."""
        while not what() and self.alive:
            time.sleep(0.002)
        statuses = [process.poll() for process in self.processes]
        assert statuses == [None] * len(statuses), [
            process.err.read_text() for process in self.processes
        ]

    def send(self, number: int, *processes: int) -> float:
        """Sends a signal to these processes, by default all. Returns the time."""
        for process in processes or range(len(self.processes)):
            self.processes[process].send_signal(number)
        return time.monotonic()

    def send_hosts(self, number: int, *processes: int) -> float:
        """As `send`, to all that runs on the hosts of these."""
        for process in processes or range(len(self.processes)):
            os.killpg(self.processes[process].pid, number)
        return time.monotonic()

    def end(self, timeout: float = 240) -> list[Ended]:
        """Waits for all, and that nothing of them is left."""
        limit = time.monotonic() + timeout
        times: dict[int, float] = {}
        while len(times) < len(self.processes) and time.monotonic() < limit:
            for number, process in enumerate(self.processes):
                if number not in times and process.poll() is not None:
                    times[number] = time.monotonic()
            time.sleep(0.01)
        hanging = [n for n in range(len(self.processes)) if n not in times]
        if hanging:
            self.kill()
        # Before what was said is read: a second process of each may have the last word.
        check_none_left([process.pid for process in self.processes])
        said = [process.end() for process in self.processes]
        assert not hanging, f"processes {hanging} do not end: {said}"
        return [
            Ended(process.wait(), *said[n], times[n]) for n, process in enumerate(self.processes)
        ]

    def kill(self) -> None:
        """Leaves nothing alive."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(
    config: TrainConfig,
    workdir: pathlib.Path | Sequence[pathlib.Path],
    *,
    processes: int = 2,
    devices: int = 1,
    **options: Any,
) -> Many:
    """Starts the command `train` in several processes.

    Args:
      workdir: of all; or one for each. Recipe and output lie beside the first.
      processes: how many.
      devices: of each.
      **options: for `child.py`: see there.
    """
    workdirs = [workdir] * processes if isinstance(workdir, pathlib.Path) else list(workdir)
    beside = workdirs[0].with_name(workdirs[0].name + ".many")
    beside.mkdir(parents=True, exist_ok=True)
    recipe = beside / "recipe.py"
    recipe.write_text(
        "from vit_jax.config import from_dict\n\n\n"
        f"def get_config():\n    return from_dict({to_dict(config)!r})\n"
    )
    found = {"coordinator_address": free_address(), "num_processes": str(processes)}
    started = []
    for number, directory in enumerate(workdirs):
        own = found | {"process_id": str(number)} if processes > 1 else {}
        command = ["train", f"--config={recipe}", f"--workdir={directory}"]
        command += [f"--{name}={value}" for name, value in own.items()]
        started.append(
            Process(
                {"command": command, **options},
                environment(devices, x64=config.model.kwargs.get("dtype") == "float64"),
                beside / str(number),
            )
        )
    return Many(started)


def run(config: TrainConfig, workdir: pathlib.Path, **how: Any) -> list[Ended]:
    """As `start`, to an end without a fault."""
    ended = start(config, workdir, **how).end()
    assert [process.status for process in ended] == [0] * len(ended), ended
    return ended


def values(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """A checkpoint's arrays by item and name, in memory of the host: written on any devices."""
    found = {}
    for item in ("model", "training"):
        path = workdir.absolute() / "checkpoints" / str(step) / item
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            stored = reader.metadata(path).item_metadata.tree
            wanted = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in stored.items()}
            arrays = reader.restore(path, ocp.args.StandardRestore(wanted))
        found |= {f"{item}/{name}": array for name, array in arrays.items()}
    return found
