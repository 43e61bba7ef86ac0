"""SIGTERM, SIGHUP and Ctrl-C: the run is told, saves, and ends."""

import os
import signal
import threading
from types import FrameType, TracebackType


class Interrupted(SystemExit):
    """A run that was asked to stop, and has saved. Ends with status 143, 129 or 130.

    128 + SIGTERM, SIGHUP (a terminal that is gone) or SIGINT are what a shell reports for a program
    that the signal ended.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


class StopSignals:
    """While active, turns the first signal into `received`; another Ctrl-C ends at once.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    _HANDLED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self._HANDLED:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # Not an exception: that would first wait for the checkpoint that is being written.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.received = self.received or number
