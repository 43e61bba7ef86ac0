"""A loader's worker process: it ends with its parent, leaves signals to it, and may be killed."""

import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import threading


def init_worker(worker_index: int, worker_count: int) -> None:
    """Prepares a Grain worker process.

    Grain's workers outlive a parent that is killed with SIGKILL: they wait for a place in a queue
    that nobody empties. A thread therefore waits for the parent's end. (Linux's PR_SET_PDEATHSIG
    would not do: it fires when the parent's *thread* that started the process ends, and Grain
    starts processes from short-lived threads.)

    Args:
        worker_index: unused, Grain passes it.
        worker_count: unused, Grain passes it.
    """
    import cv2

    del worker_index, worker_count
    # Signals reach the whole process group; the parent decides, and stops its workers (SIGKILL).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The workers are the parallelism.
    cv2.setNumThreads(0)
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "init_worker runs in a child process"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def check_killed(error: BaseException) -> None:
    """Says in words what Grain says of a worker process that was ended from outside.

    Raises:
      ValueError: `error` is of such a process; its exit code is named.
    """
    ended = re.match(r"Worker process was terminated .* exit code (-?\d+)", str(error))
    if isinstance(error, RuntimeError) and ended:
        code = int(ended[1])
        by = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ValueError(
            f"a process of the data loader was ended from outside ({by}; the system ends one where "
            "memory is short): repeat the command, with fewer config.data.num_workers or with "
            "config.data.worker_kind=thread"
        ) from error
