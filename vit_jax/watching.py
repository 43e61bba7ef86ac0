"""A bar on standard error for what takes long; nothing where that is no terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
# (items, how many there are or None, what is done with them) -> the items, as they are asked for.
Watch = Callable[[Iterable[Any], int | None, str], Iterable[Any]]


def unwatched(items: Iterable[Item], total: int | None, what: str) -> Iterable[Item]:
    """The items, and nothing shown: what functions do unless a command asks for more."""
    return items


def watched(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """The items, with a bar that moves as they are asked for."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(
        items, what, total, console=Console(stderr=True), transient=True, show_speed=False
    )


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """A sign that goes round and round, with the time that has passed."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(what, markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield
