"""What the site takes from files that are not its own, so that nothing stands written twice.

On a line of its own a page has one of

    <!-- from README.md -->                what stands before its first section
    <!-- from README.md: The flagship -->  this section, without its heading
    <!-- from CHANGELOG.md: * -->          all of it but the title
    <!-- recipes -->                       the docstrings and files of configs/
    <!-- examples -->                      those of examples/

Links of these files are made relative to docs/.
"""

import ast
import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINE = re.compile(
    r"^<!-- (?:from (?P<file>\S+\.md)(?:: (?P<section>.+))?|(?P<folder>\w+)) -->$", re.M
)
_FOLDERS = {"recipes": "configs", "examples": "examples"}
_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of each page."""
    return _LINE.sub(_replacement, markdown)


def _replacement(match: re.Match[str]) -> str:
    if match["folder"] is None:
        return _section(match["file"], match["section"])
    return _sources(_ROOT / _FOLDERS[match["folder"]])


def _section(name: str, title: str | None) -> str:
    """A section of a Markdown file at the top of the repository."""
    text = (_ROOT / name).read_text()
    head, *rest = re.split(r"^## (.+)\n", text, flags=re.M)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    if title == "*":
        text = text.partition("\n")[2]
    elif title is None:
        text = head.partition("\n")[2]
    elif title in sections:
        text = sections[title]
    else:
        raise ValueError(f"{name} has no section {title!r}; it has {', '.join(sections)}")
    for old, new in _PAGES.items():
        text = text.replace(f"]({old}", f"]({new}")
    return text.replace("](docs/", "](")


def _sources(folder: pathlib.Path) -> str:
    """The docstring of each Python file as its text, and the file itself behind it."""
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
