"""A trace of a few updates, for xprof."""

import pathlib
from typing import Any

import jax

_SKIPPED, _TRACED = 2, 3  # updates: the first compiles, and the next may still wait for the data
FOLDER = "profile"


class Profile:
    """Traces three updates of this call after the first two, or the dispatches that hold them.

    Args:
      directory: takes the trace; None: nothing is traced.
      step: updates done before this call.
    """

    def __init__(self, directory: pathlib.Path | None, step: int) -> None:
        self._directory = directory
        self._first = step + _SKIPPED
        self._begun: int | None = None

    def after(self, step: int, done: Any) -> bool:
        """Is told of updates made, which compute `done`; returns whether the trace is written."""
        if self._directory is None or step < self._first:
            return False
        if self._begun is None:
            jax.block_until_ready(done)
            jax.profiler.start_trace(str(self._directory))
            self._begun = step
        elif step >= self._begun + _TRACED:
            jax.block_until_ready(done)
            self.close()
            return True
        return False

    def close(self) -> None:
        """Writes the trace if it was begun; nothing is traced from here on."""
        if self._begun is not None:
            jax.profiler.stop_trace()
        self._begun, self._directory = None, None
