"""Many processes as one run: how they find each other, agree, and learn that one has ended.

Each host runs the same command. JAX's own runtime joins them; what is here is what a run needs
beyond that: to stop all at the same step, and to end in words where one of them is lost.
"""

import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vit_jax.training.interrupt import StopSignals
from vit_jax.training.mesh import put_batch, replicated

# Seconds after which a host that sends no sign of life counts as dead, and that a process which
# ends waits for the others to end.
_HEARTBEAT_TIMEOUT = 60
_SHUTDOWN_TIMEOUT = 60
# Questions that may be under way: as many as steps are, so that asking never waits.
_UNDER_WAY = 4
_ENDED = "vit_jax/ended/"
_LOOK_EVERY = 1.0  # seconds
_LEADER_LINGERS = 5 * _LOOK_EVERY
_ANSWERS_WITHIN = 3.0

_WATCH = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if not sys.stdin.buffer.read():
    os.write(2, sys.argv[1].encode())
"""


def join(
    coordinator_address: str | None, num_processes: str | None, process_id: str | None
) -> None:
    """Joins the processes of a run, before anything else is done with JAX.

    Without arguments JAX looks for a cluster that it knows (Cloud TPU, SLURM, Open MPI,
    Kubernetes); where it finds none, this process is alone. One that has joined, or used JAX,
    before stays as it is.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: how many there are; "1" alone means that no cluster is looked for.
      process_id: which one this is.

    Raises:
      ValueError: the options contradict each other, or the others cannot be reached.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    alone = num_processes == "1" and coordinator_address is None and process_id is None
    if alone or jax.distributed.is_initialized():
        return
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"wanted --coordinator_address HOST:PORT, --num_processes and --process_id together, "
            f"{' and '.join(missing)} is missing (--num_processes 1 alone: one process)"
        )
    arguments: dict[str, Any] = {}
    if not missing:
        arguments = _checked(given) | {"cluster_detection_method": "deactivate"}
    reach = (
        "wanted every process started with the same --coordinator_address, a free port that all "
        "can reach, within five minutes"
    )
    last_words = _LastWords(
        f"the processes of the run cannot be joined (see above, where JAX says why): {reach}"
    )
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except ValueError as error:
        if missing and "coordinator_address should be defined" in str(error):
            return  # no cluster
        raise ValueError(f"the processes of the run cannot be joined: {error}") from error
    except RuntimeError as error:
        if missing and "must be called before" in str(error):
            return  # called from a program that uses JAX already, and so has decided
        raise ValueError(
            f"the processes of the run cannot be joined: {_one_line(error)}; {reach}"
        ) from error
    finally:
        last_words.unsay()


def _checked(given: dict[str, str | None]) -> dict[str, Any]:
    address = given["coordinator_address"] or ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"--coordinator_address: wanted HOST:PORT, got {address!r} (ports: 1 to 65535)"
        )
    numbers = {}
    for name in ("num_processes", "process_id"):
        text = given[name] or ""
        if not text.isdecimal():
            raise ValueError(f"--{name}: wanted a number, got {text!r}")
        numbers[name] = int(text)
    if numbers["process_id"] >= numbers["num_processes"]:
        raise ValueError(
            f"--process_id: wanted 0 to {numbers['num_processes'] - 1}, one less than "
            f"--num_processes, got {numbers['process_id']}"
        )
    return {"coordinator_address": address, **numbers}


@contextlib.contextmanager
def at_once_if_many(report: Callable[[Exception], int]) -> Iterator[None]:
    """Ends this process at an error, where there are others, without waiting for them.

    JAX's own end of a process waits for all others, which may be gone.

    Args:
      report: prints the error and returns the exit status.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        status = report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this is the process that writes what one process alone writes."""
    return jax.process_index() == 0


def tell_all(value: Any) -> Any:
    """What process 0 gives, as JSON carries it, in every process. All have to call it."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode() if is_first() else b"", np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    text = text if is_first() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())


def any_of_all(flag: bool) -> bool:
    """Whether `flag` is true in any process. All have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


class Stopping:
    """The signal that asks a run to stop, told to all processes at the same step.

    Every process puts what it has received into a small sum over all devices, in step with the
    training, and looks at the answer some steps later: nothing waits, and all read the same.

    Args:
      signals: what this process has received.
      mesh: the devices.
    """

    def __init__(self, signals: StopSignals, mesh: Mesh) -> None:
        self._signals = signals
        self._mesh = mesh
        self._alone = jax.process_count() == 1
        self._asked: collections.deque[jax.Array] = collections.deque()
        self._agreed: int | None = None
        self._largest = jax.jit(lambda numbers: numbers.max(), out_shardings=replicated(mesh))

    def check(self) -> int | None:
        """The signal that all are to stop for, or None. All processes call it equally often."""
        if self._alone:
            return self._signals.received
        numbers = np.full(len(self._mesh.local_devices), self._signals.received or 0, np.int32)
        self._asked.append(self._largest(put_batch(self._mesh, {"number": numbers})["number"]))
        return self._hear(_UNDER_WAY)

    def settle(self) -> int | None:
        """As `check`, once no more steps follow: waits for what is under way."""
        return self._signals.received if self._alone else self._hear(0)

    def _hear(self, under_way: int) -> int | None:
        while len(self._asked) > under_way:
            number = int(self._asked.popleft())
            self._agreed = self._agreed or number or None
        return self._agreed


class _LastWords:
    """A line that a second process prints, should this one end without having unsaid it.

    JAX's runtime ends a process by abort, where Python has no say any more.
    """

    def __init__(self, text: str) -> None:
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-c", _WATCH, f"error: {text}\n"], stdin=subprocess.PIPE
        )

    def unsay(self) -> None:
        """This process ends in its own words, or not yet. Again is no harm."""
        if self._watcher.returncode is None:
            with contextlib.suppress(OSError):  # the watcher was killed
                self._watcher.communicate(b"in words")


@contextlib.contextmanager
def companions(workdir: pathlib.Path) -> Iterator[None]:
    """While active, no process waits for one that has ended.

    An error in this process is told to the others before it goes on its way; one of another's ends
    this process with status 2. Where JAX's runtime ends it (it aborts once a host is silent or its
    coordinator gone), a second, waiting process says in a line what that means.
    """
    if jax.process_count() == 1:
        yield
        return
    name = f"process {jax.process_index()} of {jax.process_count()}"
    again = (
        f"repeat the command on all hosts: the run in {workdir} goes on from its last checkpoint"
    )
    last_words = _LastWords(
        f"{name} was ended from outside: its host was killed, or JAX lost another process (see "
        f"above); {again}"
    )
    ends = threading.Event()

    def look() -> None:
        while not ends.wait(_LOOK_EVERY):
            ended = _ended()
            if ended and not ends.is_set():
                last_words.unsay()
                sys.stdout.flush()
                os.write(2, f"error: {name} ends, for {'; '.join(ended)}; {again}\n".encode())
                os._exit(2)

    threading.Thread(target=look, name="companions", daemon=True).start()
    try:
        yield
    except Exception as error:
        ends.set()
        others = _soon(_ended) or []
        _soon(lambda: _tell_end(error))
        if is_first():  # the store of what processes say ends with this one
            time.sleep(_LEADER_LINGERS)
        if others or _is_of_the_runtime(error):
            reason = "; ".join(others) or f"it lost another process ({_one_line(error)})"
            raise ValueError(f"{name} ends, for {reason}; {again}") from error
        raise
    finally:
        ends.set()
        last_words.unsay()


def _soon(call: Callable[[], Any]) -> Any:
    """What `call` returns if it does so in time: JAX's store may not answer any more."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(_ANSWERS_WITHIN)
    return found[0] if found else None


def _is_of_the_runtime(error: Exception) -> bool:
    """Whether a collective failed: a companion's socket is closed, or it answers no more."""
    text = str(error)
    signs = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection", "heartbeat")
    return not isinstance(error, OSError) and any(sign in text for sign in signs)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _client() -> Any:
    # JAX's store of keys has no public name; Orbax takes it from here too.
    from jax._src import distributed

    return distributed.global_state.client


def _tell_end(error: Exception) -> None:
    """Tells the others why this process ends."""
    with contextlib.suppress(Exception):  # the coordinator may be what is lost
        _client().key_value_set(
            f"{_ENDED}{jax.process_index()}",
            f"process {jax.process_index()} ended: {_one_line(error)}",
        )


def _ended() -> list[str]:
    """What processes that have ended say."""
    with contextlib.suppress(Exception):
        return [text for _, text in _client().key_value_dir_get(_ENDED)]
    return []
