"""Text that pages take from files outside docs/, so that it is written once.

A page asks for it with a line that holds nothing else:

    <!-- from CHANGELOG.md -->  the file without its title
    <!-- recipes -->            the docstring and source of each file in configs/
    <!-- examples -->           the same of examples/
"""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINE = re.compile(r"^<!-- (?:from (?P<file>\S+\.md)|(?P<folder>recipes|examples)) -->$", re.M)
_FOLDERS = {"recipes": "configs", "examples": "examples"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of each page."""
    return _LINE.sub(_replacement, markdown)


def _replacement(match: re.Match[str]) -> str:
    if match["folder"] is not None:
        return _sources(_ROOT / _FOLDERS[match["folder"]])
    _title, _, text = (_ROOT / match["file"]).read_text().partition("\n")
    return text.replace("](docs/", "](")  # links become relative to docs/


def _sources(folder: pathlib.Path) -> str:
    """A section for each Python file: its docstring, then its source, folded."""
    parts = []
    for path in sorted(folder.glob("*.py")):
        source = path.read_text()
        title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
        code = "".join(f"    {line}\n" if line else "\n" for line in source.splitlines())
        parts.append(
            f"## {path.stem}\n\n**{title}**\n{text}\n\n"
            f'??? note "{path.relative_to(_ROOT)}"\n    ```python\n{code}    ```\n'
        )
    return "\n".join(parts)
