"""A trace of a few updates, for xprof."""

import pathlib
from typing import Any

import jax

_SKIPPED, _TRACED = 2, 3  # updates: the first compiles, and the next may still wait for the data
FOLDER = "profile"


class Profile:
    """Traces the third to the fifth update of this call.

    Args:
      directory: takes the trace; None: nothing is traced.
      step: updates done before this call.
    """

    def __init__(self, directory: pathlib.Path | None, step: int) -> None:
        self._directory = directory
        self._first, self._last = step + _SKIPPED, step + _SKIPPED + _TRACED
        self._is_open = False

    def after(self, step: int, done: Any) -> bool:
        """Is told of each update, which computes `done`; returns whether the trace is written."""
        if self._directory is None:
            return False
        if not self._is_open and self._first <= step < self._last:
            jax.block_until_ready(done)
            jax.profiler.start_trace(str(self._directory))
            self._is_open = True
        elif self._is_open and step >= self._last:
            jax.block_until_ready(done)
            self.close()
            return True
        return False

    def close(self) -> None:
        """Writes the trace if it was begun; nothing is traced from here on."""
        if self._is_open:
            jax.profiler.stop_trace()
        self._is_open, self._directory = False, None
