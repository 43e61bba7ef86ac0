"""The fenced blocks of a page, and what is to be done with each.

A Python or shell block is run as it stands, unless an HTML comment right before it says otherwise:

    <!-- not run: REASON -->       it is only parsed
    <!-- run as: COMMANDS -->      a shell block; these commands stand for it
    <!-- given: CODE -->           a Python block; this code is run before it
    <!-- file: NAME -->            its text becomes this file, which later blocks import
"""

import dataclasses
import pathlib
import re

PYTHON = {"python", "py"}
SHELL = {"bash", "sh", "shell"}
_SHOWN = {"text", "yaml", "dockerfile", "json", "toml"}  # output and files, never run
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>\w*)")
_MARKER = re.compile(r"(not run|run as|given|file):\s*(.*)", re.S)
_OF_LANGUAGE = {"run as": SHELL, "given": PYTHON}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: its file.
      line: of its first line of code, from 1.
      language: the word behind the fence.
      code: without the page's indentation.
      marker: "not run", "run as", "given", "file", or "" where none stands before it.
      said: what the marker says.
    """

    page: pathlib.Path
    line: int
    language: str
    code: str
    marker: str = ""
    said: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: pathlib.Path) -> list[Block]:
    """The blocks of a page in their order.

    Raises:
      ValueError: a block without a known language, or a marker that stands before no block or
        does not fit the one behind it.
    """
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    marker, number = ("", ""), 0
    while number < len(lines):
        line = lines[number]
        if line.lstrip().startswith("<!--"):
            last = next(n for n in range(number, len(lines)) if "-->" in lines[n])
            comment = "\n".join(lines[number : last + 1]).strip()
            found = _MARKER.fullmatch(comment.removeprefix("<!--").removesuffix("-->").strip())
            marker, number = (found.groups() if found else ("", "")), last + 1
            continue
        opening = _FENCE.match(line)
        if opening is None:
            if line.strip() and marker[0]:
                raise ValueError(f"{page}:{number + 1}: no block behind the marker {marker[0]!r}")
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == opening["fence"])
        code = [text[len(opening["indent"]) :] for text in lines[number + 1 : end]]
        blocks.append(
            _checked(Block(page, number + 2, opening["language"], "\n".join(code) + "\n", *marker))
        )
        marker, number = ("", ""), end + 1
    return blocks


def _checked(block: Block) -> Block:
    if block.language not in PYTHON | SHELL | _SHOWN:
        raise ValueError(
            f"{block.place}: a block of the language {block.language!r}; wanted python or bash, "
            f"which are run, or {', '.join(sorted(_SHOWN))}, which are not"
        )
    if block.marker and not block.said:
        raise ValueError(f"{block.place}: the marker {block.marker!r} says nothing")
    if block.language not in _OF_LANGUAGE.get(block.marker, {block.language}):
        raise ValueError(f"{block.place}: no marker {block.marker!r} for a {block.language} block")
    return block
