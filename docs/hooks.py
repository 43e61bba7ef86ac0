"""Text that pages take from files outside docs/, so that it is written once.

A page asks for it with a line that holds nothing else:

    <!-- from CHANGELOG.md -->    the file without its title
    <!-- recipes -->              the docstring and source of each file in configs/
    <!-- examples -->             the same of examples/
    <!-- notebook FILE.ipynb -->  its cells, and what they printed and drew
    <!-- fields MODULE.CLASS -->  a table of a config's fields; of a run's config its groups too
"""

import ast
import base64
import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LINE = re.compile(
    r"^<!-- (?:from (?P<file>\S+\.md)|(?P<folder>recipes|examples)"
    r"|notebook (?P<notebook>\S+\.ipynb)|fields (?P<config>[\w.]+)) -->$",
    re.M,
)
_FOLDERS = {"recipes": "configs", "examples": "examples"}
_ATTRIBUTE = re.compile(r"^( +)(\w+(?:, \w+)*): (.*(?:\n\1 +.*)*)", re.M)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs with the text of each page."""
    return _LINE.sub(_replacement, markdown)


def _replacement(match: re.Match[str]) -> str:
    if match["folder"] is not None:
        return _sources(_ROOT / _FOLDERS[match["folder"]])
    if match["notebook"] is not None:
        return _notebook(_ROOT / match["notebook"])
    if match["config"] is not None:
        return _fields(match["config"])
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


def _notebook(path: pathlib.Path) -> str:
    """The cells of a notebook without its title, and their outputs."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"^# .*\n*", "", text).replace("](../docs/", "]("))
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                png = "".join(data["image/png"]).strip()
                assert base64.b64decode(png).startswith(b"\x89PNG")
                parts.append(f"![output](data:image/png;base64,{png})")
            elif shown := "".join(data["text/plain"]).strip():
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts)


def _fields(name: str) -> str:
    """A section with a table of the fields of a dataclass; the groups among them follow it."""
    module, _, kind = name.rpartition(".")
    sys.path.insert(0, str(_ROOT))
    try:
        config = getattr(importlib.import_module(module), kind)
    finally:
        sys.path.remove(str(_ROOT))
    return "\n".join(_tables(config, ""))


def _tables(config: type, prefix: str) -> Iterator[str]:
    first, _, _ = inspect.cleandoc(config.__doc__ or "").partition("\n\n")
    yield f"### {config.__name__} {{ #{config.__module__}.{config.__name__} }}\n\n{first}\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    own = [f for f in dataclasses.fields(config) if f.name in inspect.get_annotations(config)]
    groups = [f for f in own if dataclasses.is_dataclass(f.type)]
    for field in own:
        if field not in groups:
            yield "| " + " | ".join(_row(config, field, prefix)) + " |"
    yield ""
    for field in groups:
        assert isinstance(field.type, type)
        yield from _tables(field.type, f"{prefix}{field.name}.")


def _row(config: type, field: dataclasses.Field[Any], prefix: str) -> tuple[str, ...]:
    if "help" in field.metadata:
        from vit_jax.config.validate import fields_of, wanted

        (info,) = (info for info in fields_of(config) if info.path == field.name)
        default, kind, meaning = info.default, wanted(info), info.help_text
    else:
        default, meaning = field.default, _meaning(config, field.name)
        kind = re.sub(r"[\w.]*\.(?=\w)", "", inspect.formatannotation(field.type))
    missing = default is dataclasses.MISSING
    shown = "" if missing else f"`{default!r}`"
    return f"`{prefix}{field.name}`", _escaped(kind), shown, _escaped(meaning)


def _meaning(config: type, name: str) -> str:
    """What the docstring of a class, or of the nearest above it, says of an attribute."""
    for parent in config.__mro__:
        for _, names, text in _ATTRIBUTE.findall(inspect.cleandoc(parent.__doc__ or "")):
            if name in names.split(", "):
                return " ".join(text.split())
    raise ValueError(f"{config.__name__}: its docstring says nothing of {name!r}")


def _escaped(text: str) -> str:
    return re.sub(r"([|*])", r"\\\1", text.replace("<", "&lt;"))
