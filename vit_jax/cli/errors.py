"""The border of the commands: how each ends that does not return, and what the user is told."""

import contextlib
import os
import pathlib
import sys
import traceback

from vit_jax.cli.parsing import printable

MISTAKE, BUG = 2, 70  # the latter is EX_SOFTWARE of sysexits.h
_PIPE_CLOSED = 141  # 128 + SIGPIPE, as of any program whose reader has gone
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_LONGEST = 2_000  # characters of an error
# What Python says of ~NOBODY and of a path with a zero byte, wherever they are used.
_OF_PATHS = ("Could not determine home directory", "embedded null byte", "embedded null character")


def report(error: BaseException) -> int:
    """Prints what the user is told of an error, and returns the exit status.

    What is no bug of ours is one line and status 2. What is one keeps its traceback, says so, and
    is status 70.
    """
    message = _for_the_user(error)
    if message is None:
        traceback.print_exception(error)
        _say("bug", "vit_jax failed where it should not: please report it with the lines above")
        return BUG
    _say("error", message)
    return MISTAKE


def status_of(error: BaseException) -> int:
    """The exit status for whatever ended a command; errors are reported.

    Raises:
      SystemExit: the command ended itself: it answered, or a run was stopped by a signal.
    """
    if isinstance(error, BrokenPipeError):  # `| head`
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and type(error) is not SystemExit:
        raise error
    return report(error)


def make_streams_safe() -> None:
    """Replaces streams that are closed, and lets none fail at a letter that it has not."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # a message for it would go to the other one
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _say(kind: str, message: str) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    with contextlib.suppress(OSError):  # nobody hears it
        print(f"{kind}: {line}", file=sys.stderr, flush=True)


def _for_the_user(error: BaseException) -> str | None:
    """What the user is told: what failed outside, or what we refuse; None for a bug.

    A ValueError that this package raises is a refusal; one from inside a library is our bug. A
    plain SystemExit is none of ours: the user's code ended what should have had a result.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else str(error)
    if isinstance(error, MemoryError):
        return f"out of memory {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SystemExit):
        where = f"{frames[-1].filename}, line {frames[-1].lineno}"
        return f"{where}: called sys.exit({error.code!r}) before the command had a result"
    if any(words in str(error) for words in _OF_PATHS):
        return f"a path cannot be used: {error}"
    if isinstance(error, RuntimeError):  # XLA's errors are of this kind
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                "the device is out of memory: lower config.data.batch_size, or set "
                f"config.model.kwargs.remat=blocks ({str(error)[:200]})"
            )
        return str(error) if "Unable to initialize backend" in str(error) else None
    ours = bool(frames) and _PACKAGE in pathlib.Path(frames[-1].filename).parents
    return str(error) if ours and isinstance(error, ValueError) else None
