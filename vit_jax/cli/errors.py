"""What the user is told of an error."""

import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def report(error: Exception) -> int | None:
    """Prints what the user is told of an error, and returns the exit status; None for a bug."""
    message = _for_the_user(error)
    if message is None:
        return None
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _for_the_user(error: Exception) -> str | None:
    """What the user is told: what failed outside, or what we refuse; None for a bug.

    A ValueError that this package raises is a refusal; one from inside a library is our bug.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else str(error)
    if isinstance(error, RuntimeError):  # XLA's errors are of this kind
        if "RESOURCE_EXHAUSTED" in str(error):
            return (
                "the device is out of memory: lower config.data.batch_size, or set "
                f"config.model.kwargs.remat=blocks ({str(error)[:200]})"
            )
        return str(error) if "Unable to initialize backend" in str(error) else None
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    ours = frame is not None and _PACKAGE in pathlib.Path(frame.tb_frame.f_code.co_filename).parents
    return str(error) if ours else None
