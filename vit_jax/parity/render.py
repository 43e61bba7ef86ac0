"""A report as a user sees it: a table in the terminal, a page for the browser, or JSON."""

import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vit_jax.parity.lines import (
    KINDS,
    SECTIONS,
    Line,
    chosen,
    display_name,
    excess,
    in_floors,
    lines_of,
    narrow_of,
    short_name,
)
from vit_jax.parity.result import NARROW, Report, Row, Section, Verdict
from vit_jax.storage import check_output
from vit_jax.weights.atomic import whole

# Colour only repeats what the word says.
_COLOURS: dict[Verdict, str] = {"noise": "green", "drift": "yellow", "departs": "bold red"}
_WORDS: dict[Verdict, str] = {"noise": "noise", "drift": "drift", "departs": "DEPARTS"}


def legend(report: Report) -> str:
    """What the columns and the verdicts mean."""
    present = {row.precision in NARROW for row in report.rows}
    wide = "max abs: the largest difference from PyTorch in float64. " if False in present else ""
    narrow = "In bfloat16 and float16 the rms of differences counts. " if True in present else ""
    return (
        f"{wide}{narrow}floor: the distance of PyTorch's own "
        f"{' or '.join(narrow_of(report))} run from its float64 run. noise: what rounding "
        "explains; drift: up to a thousand times that; DEPARTS: more."
    )


def _error_name(precisions: Iterable[str]) -> str:
    """What `Row.max_abs` is."""
    return "rms error" if set(precisions) <= set(NARROW) else "max abs"


def _columns(report: Report) -> dict[str, int]:
    """Headings after the name, and their widths: in 80 columns 30 are left for the name."""
    shorts = [short_name(precision) for precision in narrow_of(report)]
    return {
        _error_name(row.precision for row in report.rows): 8,
        "relative to rms": 8,
        f"PyTorch's {shorts[0]}-f64": 9 + len(shorts[0]) - 3,
        **{f"{short} in floors": 8 for short in shorts},
        "verdict": 11,
    }


def print_report(report: Report, console: Console, *, everything: bool = False) -> None:
    """Prints the verdict, the diagnosis and the notes, and then tables of the sections.

    Args:
      report: of `vit_jax.parity.compare`.
      console: where to; from 80 columns on no figure is cut, and a name never is: it goes on in the
        next line.
      everything: all lines; False folds the stages of a long model to its parts, unfolded around
        the first departing stage, and shows of the other sections the worst and what is not noise.
    """
    console.print(Text(verdict_text(report), "green" if report.ok else "bold red"))
    if report.diagnosis is not None:
        console.print(Text(f"Diagnosis: {diagnosis_text(report)}", "bold"))
    elif not report.ok:
        console.print(Text("Diagnosis: no known fault explains the difference."))
    for note in report.notes:
        console.print(Text(f"note: {note}"))
    console.print()
    for section in SECTIONS:
        lines = lines_of(report, section)
        if lines:
            _print_section(report, section, lines, console, everything)
    if report.rows:
        console.print(Text(legend(report), "dim"))


def report_text(report: Report, *, full: bool = False, width: int = 100) -> str:
    """What `print_report` prints, as plain text."""
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, color_system=None), everything=full)
    return file.getvalue()


def _print_section(
    report: Report, section: Section, lines: list[Line], console: Console, everything: bool
) -> None:
    shown = lines if everything else chosen(lines, section, report.first)
    console.print(Text.assemble((section, "bold"), f": {section_text(section, lines)}"))
    if shown:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column(KINDS[section][0], overflow="fold")
        for column, width in _columns(report).items():
            # A heading may go on in the next line, between words; a figure may not.
            table.add_column(column, justify="right", width=width)
        for line in shown:
            first = report.first is not None and _is_of(report.first, section, line)
            style = "bold" if first else ""
            name = Text((">" if first else " ") + display_name(line.name), style)
            verdict = Text(verdict_words(line), _COLOURS[line.verdict])
            table.add_row(name, *map(Text, figures(line, narrow_of(report))), verdict)
        console.print(table)
    if 0 < len(shown) < len(lines):
        console.print(Padding(Text(_hidden_text(lines, shown), "dim"), (0, 0, 0, 1)))
    console.print()


def _is_of(row: Row, section: Section, line: Line) -> bool:
    return row.section == section and row.name == line.name


def _hidden_text(lines: list[Line], shown: list[Line]) -> str:
    names = {line.name for line in shown}
    hidden = [line for line in lines if line.name not in names]
    wrong = sum(line.verdict != "noise" for line in hidden)
    what = f", {wrong} of them not noise" if wrong else ", all noise"
    return f"{len(hidden)} of {len(lines)} not shown{what} (--all shows them)"


def section_text(section: Section, lines: list[Line]) -> str:
    """What a section compares, how many of it are noise, and the worst of each precision."""
    what = KINDS[section][1]
    equal = sum(line.verdict == "noise" for line in lines)
    text = f"{what}; {equal} of {len(lines)} equal to noise"
    present = dict.fromkeys(precision for line in lines for precision in line.rows)
    for precision in present:
        unit = "of rms" if precision == "float64" else "floors"
        rows = [line.rows[precision] for line in lines if precision in line.rows]
        measured = [row.relative if precision == "float64" else in_floors(row) for row in rows]
        worst = max((m for m in measured if m is not None), key=_nan_last, default=None)
        if worst is not None:
            text += f"; {precision} up to {figure(worst)} {unit}"
    return text


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def figure(value: float | None) -> str:
    """A number in at most seven characters; a dash for what is not known."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.1e}"


def figures(line: Line, narrow: Sequence[str]) -> list[str]:
    """The figures of a line, in the order of the columns.

    Args:
      narrow: see `narrow_of`.
    """
    noise = line.main.noise or None
    found = [figure(line.main.max_abs), figure(line.main.relative), figure(noise)]
    for precision in narrow:
        row = line.rows.get(precision)
        floors = None if row is None else in_floors(row)
        found.append(
            "-" if floors is None else f"{floors:.2f}" if floors < 1000 else figure(floors)
        )
    return found


def verdict_words(line: Line) -> str:
    """The worse verdict, and the precision where the other one is noise."""
    wrong = [precision for precision, row in line.rows.items() if row.verdict != "noise"]
    only = f" {short_name(wrong[0])}" if 0 < len(wrong) < len(line.rows) else ""
    return _WORDS[line.verdict] + only


def verdict_text(report: Report) -> str:
    """The outcome in a sentence or two."""
    head = f"{report.model} against {report.reference}: "
    first = report.first
    if first is None:
        if not report.rows:
            return f"{head}nothing was compared."
        return f"{head}equal to noise in all {len(report.rows)} comparisons."
    stage = report.stage
    place = display_name(first.name) if stage is None else stage or "the model itself"
    where = f" ({report.where})" if report.where else ""
    verb = "departs" if first.verdict == "departs" else "drifts"
    size = (
        "nothing finite to compare"
        if not math.isfinite(first.max_abs)
        else (
            f"{_error_name([first.precision])} {figure(first.max_abs)}, "
            f"{figure(first.relative)} of the rms, "
            f"{excess(first):.3g} times the limit of noise"
        )
    )
    wrong = sum(row.verdict != "noise" for row in report.rows)
    return (
        f"{head}{verb} first at {place}{where}: {size}. First seen in {first.section} "
        f"({display_name(first.name)}, {first.precision}); {wrong} of {len(report.rows)} "
        "comparisons are not noise."
    )


def diagnosis_text(report: Report) -> str:
    """The known fault in a sentence, and whether it explains all; "" where there is none."""
    if report.diagnosis is None:
        return ""
    rest = "" if report.diagnosis.complete else " It does not explain all: another fault follows."
    return f"{report.diagnosis.text} [{report.diagnosis.fault}]{rest}"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON has it; what is not finite is one of "inf", "-inf" and "nan"."""
    first = report.first
    return {
        "ok": report.ok,
        "model": report.model,
        "reference": report.reference,
        "first": None if first is None else _plain(first),
        "stage": report.stage,
        "where": report.where,
        "diagnosis": None if report.diagnosis is None else dataclasses.asdict(report.diagnosis),
        "notes": list(report.notes),
        "rows": [_plain(row) for row in report.rows],
    }


def _plain(row: Row) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(row).items()
    }


# ------------------------------------------------------------------------------ the page

_STYLE = """
:root { color-scheme: light dark; --ok: #14713d; --drift: #8a5a00; --bad: #b3261e; --line: #8885;
  --float64: #0062a3; --float32: #b85000; --bfloat16: #7a3fa0; --float16: #8a6d00; --grid: #777; }
@media (prefers-color-scheme: dark) { :root { --ok: #6fd08c; --drift: #e5b454; --bad: #ff8a80;
  --float64: #6cb6f5; --float32: #f2a15f; --bfloat16: #c79bea; --float16: #d8bd57;
  --grid: #999; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { border-left: .4rem solid; padding: .2rem 1rem; overflow-wrap: anywhere; }
.noise { color: var(--ok); } .drift { color: var(--drift); }
.departs { color: var(--bad); font-weight: bold; }
figure { margin: 1.5rem 0; overflow-x: auto; } figure svg { width: 100%; min-width: 44rem;
  height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; font-family: ui-monospace, monospace; }
tr.first td { background: color-mix(in srgb, var(--bad) 15%, transparent); }
summary { cursor: pointer; }
"""
# A page that asks for nothing: no script runs and nothing is fetched, whatever a name contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_html(report: Report, path: str | os.PathLike) -> None:
    """Writes the report as one file: verdict, diagnosis, pictures and every row.

    It holds no script and asks nothing of the network.

    Args:
      report: of `vit_jax.parity.compare`.
      path: takes the file whole; folders are made.

    Raises:
      ValueError: it is no .html, or another file is there.
      OSError: it cannot be written.
    """
    check_output(Path(path), {".html": b"<!doctype html>", ".htm": b"<!doctype html>"})
    with whole(Path(path)) as partial:
        partial.write_text(_page(report), encoding="utf-8")


def _page(report: Report) -> str:
    from vit_jax.parity.picture import draw_svg  # matplotlib takes long to import

    title = escape(f"{report.model} against {report.reference}")
    verdict: Verdict = "noise" if report.first is None else report.first.verdict
    diagnosis = diagnosis_text(report) or (
        "" if report.ok else "no known fault explains the difference."
    )
    picture = draw_svg(report)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Parity: {title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="verdict {verdict}">{escape(verdict_text(report))}</p>',
        f"<p><strong>Diagnosis:</strong> {escape(diagnosis)}</p>" if diagnosis else "",
        *(f"<p>note: {escape(note)}</p>" for note in report.notes),
        f"<figure>{picture}</figure>" if picture else "",
        f"<p>{escape(legend(report))}</p>",
        *(_html_section(report, section) for section in SECTIONS),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _html_section(report: Report, section: Section) -> str:
    lines = lines_of(report, section)
    if not lines:
        return ""
    shown = chosen(lines, section, report.first)
    parts = [f"<h2>{section}</h2><p>{escape(section_text(section, lines))}</p>"]
    if shown:
        parts.append(_html_table(report, section, shown))
    if len(shown) < len(lines):
        table = _html_table(report, section, lines)
        parts.append(f"<details><summary>all {len(lines)}</summary>{table}</details>")
    return "\n".join(parts)


def _html_table(report: Report, section: Section, lines: Iterable[Line]) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in (KINDS[section][0], *_columns(report)))
    body = []
    for line in lines:
        first = report.first is not None and _is_of(report.first, section, line)
        cells = "".join(f"<td>{text}</td>" for text in figures(line, narrow_of(report)))
        body.append(
            f'<tr class="first"><td>{escape(display_name(line.name))}</td>'
            if first
            else f"<tr><td>{escape(display_name(line.name))}</td>"
        )
        body.append(f'{cells}<td class="{line.verdict}">{verdict_words(line)}</td></tr>')
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(body)}</table></div>'
