"""How a loader's worker process starts: it ends with its parent and leaves signals to it."""

import multiprocessing
import multiprocessing.connection
import os
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
