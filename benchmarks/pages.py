"""Results that are measured one at a time, kept in a file, and put into a page."""

import json
import pathlib
from typing import Any


def kept(results: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of an earlier run that was cut off."""
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def keep(results: pathlib.Path, line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def put_between(page: pathlib.Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, rest = page.read_text().split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")
