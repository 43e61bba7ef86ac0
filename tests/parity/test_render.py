"""What a report looks like: in the terminal, on a page, as JSON, and in its picture."""

import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from vit_jax.parity.lines import chosen, coarse, excess, is_coarse, lines_of
from vit_jax.parity.picture import draw, draw_svg
from vit_jax.parity.render import print_report, to_json, verdict_text, write_html
from vit_jax.parity.result import Diagnosis, Report, Row, Section, Verdict

PARTS = ("norm1", "attn.qkv", "attn.proj", "attn", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2", "mlp")
HOSTILE = 'blocks.0.<script>alert("&")</script>[bold]$\\frac$:smile:'


def row(
    section: Section,
    name: str,
    verdict: Verdict = "noise",
    precision: str = "float64",
    *,
    max_abs: float | None = None,
    noise: float = 1e-6,
) -> Row:
    """A row of a value whose rms is 2."""
    limit = 2e-12 if precision == "float64" else 2e-5
    if max_abs is None:
        max_abs = {"noise": limit / 100, "drift": limit * 30, "departs": 0.5}[verdict]
    return Row(section, precision, name, max_abs, max_abs / 2, noise, limit, verdict)


def stages(depth: int) -> list[str]:
    names = ["before ", "before patch_embed", "patch_embed"]
    for block in range(depth):
        inside = (f"blocks.{block}.{part}" for part in PARTS)
        names += [f"before blocks.{block}", *(n for p in inside for n in (f"before {p}", p))]
        names.append(f"blocks.{block}")
    return [*names, "before norm", "norm", "before head", "head", ""]


def report(
    depth: int = 2, departs: str | None = None, verdict: Verdict = "departs", **changes: object
) -> Report:
    """A made-up report; from the stage `departs` on, all is `verdict`."""
    names = stages(depth)
    from_here = len(names) if departs is None else names.index(departs)
    later: Verdict = "noise" if departs is None else verdict
    rows = [
        row("forward", name, later if i >= from_here else "noise", precision)
        for i, name in enumerate(names)
        for precision in ("float64", "float32")
    ]
    left = [name for name in names if name and not name.startswith("before")]
    arrays = [f"{n}.weight" for n in left if n.endswith(("norm1", "qkv", "fc1", "head"))]
    rows += [row("gradients", name, later) for name in reversed(arrays)]
    rows += [row("losses", f"step {step}", later) for step in range(4)]
    first = next((r for r in rows if r.verdict != "noise"), None)
    fields = {
        "model": "VisionTransformer",
        "reference": "mine:make",
        "rows": tuple(rows),
        "first": first,
        "stage": departs,
        "where": "" if departs is None else "in what it gives",
        "diagnosis": None,
        "notes": (),
    }
    return Report(**{**fields, **changes})  # type: ignore[arg-type]


def printed(of: Report, width: int = 80, colour: bool = False, everything: bool = False) -> str:
    stream = io.StringIO()
    # Not a terminal: no colour unless it is forced.
    console = Console(
        file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_report(of, console, everything=everything)
    return stream.getvalue()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(of: Report, folder: Path) -> tuple[str, Tags]:
    path = folder / "new" / "report.html"
    write_html(of, path)
    assert list(path.parent.iterdir()) == [path]  # nothing half-written beside it
    tags = Tags()
    tags.feed(text := path.read_text())
    return text, tags


# -------------------------------------------------------------------------- which lines


@pytest.mark.parametrize(
    ("name", "part", "whole"),
    [
        ("blocks.0", "blocks.0", True),
        ("before blocks.0", "blocks.0", False),
        ("blocks.10.attn.qkv", "blocks.10", False),
        ("blocks.0#1", "blocks.0", True),
        ("transformer.encoder.layers.3.norm1", "transformer.encoder.layers.3", False),
        ("tokens_to_token.attention1.norm1", "tokens_to_token.attention1", False),
        ("tokens_to_token.attention1", "tokens_to_token.attention1", True),
        ("norm", "norm", True),
        ("", "", True),
    ],
)
def test_the_parts_of_a_model(name: str, part: str, whole: bool) -> None:
    assert (coarse(name), is_coarse(name)) == (part, whole)


def test_a_long_model_is_folded_but_around_the_first_departing_stage() -> None:
    of = report(24, "blocks.11.mlp.act")
    names = [line.name for line in chosen(lines_of(of, "forward"), "forward", of.first)]
    parts = ["patch_embed", *(f"blocks.{i}" for i in range(24)), "norm", "head", ""]
    assert [name for name in names if is_coarse(name)] == parts
    near = {f"{when}blocks.11.{part}" for when in ("", "before ") for part in PARTS[4:]}
    beside = {"blocks.11.attn", "before blocks.12"}
    assert {name for name in names if not is_coarse(name)} == near | beside
    assert names == [name for name in stages(24) if name in names]


def test_of_parameters_the_worst_and_what_is_not_noise() -> None:
    rows = [row("gradients", f"p{i}", max_abs=i * 1e-14) for i in range(40)]
    rows[3] = row("gradients", "p3", "drift")
    lines = lines_of(report(rows=tuple(rows)), "gradients")
    assert [line.name for line in chosen(lines, "gradients", None)] == [
        *("p3", "p36", "p37", "p38", "p39"),
    ]
    many = [row("gradients", f"p{i}", "departs", max_abs=1.0 + i) for i in range(40)]
    lines = lines_of(report(rows=tuple(many)), "gradients")
    names = [line.name for line in chosen(lines, "gradients", many[2])]
    assert names == ["p2", *(f"p{i}" for i in range(30, 40))]


def test_weights_that_are_the_same_are_no_news() -> None:
    of = report(rows=tuple(row("weights", f"p{i}") for i in range(9)))
    assert chosen(lines_of(of, "weights"), "weights", None) == []
    assert "9 of 9 equal to noise" in printed(of)


@pytest.mark.parametrize(
    ("max_abs", "limit", "wanted"),
    [(1.0, 0.0, math.inf), (0.0, 0.0, 0.0), (math.nan, 1.0, math.inf), (3.0, 2.0, 1.5)],
)
def test_excess_over_the_limit(max_abs: float, limit: float, wanted: float) -> None:
    assert excess(Row("forward", "float64", "a", max_abs, 0.0, 0.0, limit, "noise")) == wanted


# ---------------------------------------------------------------------------- the terminal


def test_all_noise() -> None:
    of = report(2)
    text = printed(of)
    assert "VisionTransformer against mine:make: equal to noise in all" in text
    assert f"all {len(of.rows)} comparisons" in " ".join(text.split())
    assert "DEPARTS" not in text.replace("DEPARTS: more", "")
    assert "Diagnosis" not in text
    assert "blocks.1 " in text
    assert "blocks.1.norm1 " not in text


@pytest.mark.parametrize("colour", [False, True])
def test_the_first_departing_stage_and_why(colour: bool) -> None:
    diagnosis = Diagnosis("gelu", "The model takes the tanh form, PyTorch erf.", False)
    text = printed(
        report(24, "blocks.11.mlp.act", diagnosis=diagnosis, notes=("no pos_embed",)), colour=colour
    )
    assert ("\x1b[" in text) == colour
    words = " ".join(re.sub(r"\x1b\[[\d;]*m", "", text).split())
    assert "departs first at blocks.11.mlp.act (in what it gives): max abs 5.0e-01" in words
    assert "2.5e-01 of the rms, 2.5e+11 times the limit" in words
    assert ">blocks.11.mlp.act 5.0e-01 2.5e-01 1.0e-06 5.0e+05 DEPARTS" in words
    assert "blocks.10 2.0e-14 1.0e-14 1.0e-06 0.20 noise" in words
    assert f"Diagnosis: {diagnosis.text} [gelu] It does not explain all" in words
    # The verdict, the reason and the notes before every row.
    head, _, _ = words.partition("forward: ")
    assert head.startswith("VisionTransformer against mine:make: departs first at ")
    assert head.endswith("note: no pos_embed ")
    # Below the forward section all else departs too: ten lines of it.
    assert "not shown, 63 of them not noise (--all shows them)" in words


def test_drift_and_its_precision() -> None:
    rows = (row("forward", "a"), row("forward", "a", "drift", "float32"))
    rows += (row("forward", "b", "departs"), row("forward", "b", "drift", "float32"))
    of = report(rows=rows, first=rows[1], stage="a")
    words = " ".join(printed(of).split())
    assert ">a 2.0e-14 1.0e-14 1.0e-06 600.00 drift f32" in words
    assert " b 5.0e-01 2.5e-01 1.0e-06 600.00 DEPARTS max abs" in words  # in both
    assert "drifts first at a" in words
    assert "(a, float32)" in words


def test_what_is_not_finite_is_said() -> None:
    rows = (
        row("forward", "a", "departs", max_abs=math.inf),
        row("forward", "b", "departs", max_abs=math.nan, noise=0.0),
        row("forward", "b", "departs", "float32", max_abs=math.nan, noise=0.0),
    )
    words = " ".join(printed(report(rows=rows, first=rows[0], stage="")).split())
    assert ">a inf inf 1.0e-06 - DEPARTS" in words
    assert " b nan nan - - DEPARTS" in words
    assert "first at the model itself: nothing finite to compare" in words


@pytest.mark.parametrize("width", [80, 60])
def test_no_name_and_no_figure_is_cut(width: int) -> None:
    long = "transformer.encoder.layers.11.self_attn.out_projection.weight"
    rows = (row("gradients", long, "departs"), row("forward", "[bold]a[/bold]:smile:"))
    text = printed(report(rows=rows, first=rows[0], stage=long), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    table = text[text.index("gradients:") : text.index("max abs: the largest")]
    column = [line.split("  ")[0].strip().removeprefix(">") for line in table.splitlines()]
    assert long in "".join(column)
    assert "[bold]a[/bold]:smile:" in text.replace("\n", "") or width < 80
    for figure in ("5.0e-01", "2.5e-01", "1.0e-06", "DEPARTS"):
        assert figure in table


def test_everything_is_shown_on_demand() -> None:
    of = report(24, "blocks.11.mlp.act")
    text = printed(of, everything=True)
    assert "not shown" not in text
    shown = {line.split()[0].removeprefix(">") for line in text.splitlines() if line.strip()}
    assert {"blocks.3.attn.proj", "blocks.23.mlp.fc1.weight"} <= shown


def test_a_report_of_nothing_does_not_claim_to_be_right() -> None:
    assert (
        verdict_text(report(rows=()))
        == "VisionTransformer against mine:make: nothing was compared."
    )
    assert draw_svg(report(rows=())) == ""


# -------------------------------------------------------------------------------- JSON


def test_json_holds_all_and_is_strict() -> None:
    lost = row("forward", "z", "departs", max_abs=math.nan)
    of = report(2, "blocks.0.mlp.act", diagnosis=Diagnosis("gelu", "text", True), notes=("n",))
    of = report(rows=(*of.rows, lost), first=of.first, stage=of.stage, diagnosis=of.diagnosis)
    held = json.loads(json.dumps(to_json(of), allow_nan=False))
    assert held["ok"] is False
    assert held["first"]["name"] == held["stage"] == "blocks.0.mlp.act"
    assert held["diagnosis"] == {"fault": "gelu", "text": "text", "complete": True}
    assert held["rows"][-1]["max_abs"] == "nan"
    assert [Row(**r) for r in held["rows"][:-1]] == list(of.rows[:-1])
    assert to_json(report())["first"] is None


# -------------------------------------------------------------------------------- the page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    text, tags = page(report(24, "blocks.11.mlp.act", notes=("a note",)), tmp_path)
    names = {tag for tag, _ in tags.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    for _, attributes in tags.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "url(#" in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert "prefers-color-scheme: dark" in text
    # The verdict, the note, and every stage.
    assert "departs first at blocks.11.mlp.act" in tags.text
    assert "note: a note" in tags.text
    assert "no known fault explains" in tags.text
    assert all(name in tags.text for name in stages(24))
    first = [attributes for tag, attributes in tags.tags if tag == "tr" and attributes]
    assert first == [{"class": "first"}] * 2  # in the short table and in the whole one


def test_names_stay_text(tmp_path: Path) -> None:
    rows = tuple(
        row(section, name, verdict)
        for section in ("forward", "gradients")
        for name, verdict in ((HOSTILE, "departs"), ("b", "noise"), ("c", "noise"))
    )
    of = report(
        rows=rows,
        first=rows[0],
        stage=HOSTILE,
        where=HOSTILE,
        model=HOSTILE,
        reference=HOSTILE,
        diagnosis=Diagnosis(HOSTILE, HOSTILE, True),
        notes=(HOSTILE,),
    )
    text, tags = page(of, tmp_path)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in tags.tags}
    assert tags.text.count(HOSTILE) >= 10
    assert HOSTILE in " ".join(printed(of, width=400).split())


def test_a_page_replaces_the_old_one_or_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("<!DOCTYPE html>old")
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.raises(OSError, match="full"):
            write_html(report(), path)
    assert path.read_text() == "<!DOCTYPE html>old"
    write_html(report(), path)
    assert "equal to noise" in path.read_text()


@pytest.mark.parametrize(
    ("name", "words"), [("report.png", "wanted a file .html"), ("a.html", "is there, and no .html")]
)
def test_a_page_replaces_no_other_file(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=re.escape(words)):
        write_html(report(), tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


# -------------------------------------------------------------------------------- the picture


def test_the_picture_draws_what_the_rows_say() -> None:
    figure = draw(report(2, "blocks.0.mlp.act"))
    assert figure is not None
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == [
        "forward",
        "gradients of the loss by parameters",
        "losses over the optimizer steps",
    ]
    forward = figure.axes[0]
    lines = {line.get_label(): line for line in forward.lines}
    names = stages(2)
    at = names.index("blocks.0.mlp.act")
    values = list(lines["float64"].get_ydata())
    assert values == [1e-14] * at + [0.25] * (len(names) - at)
    assert list(lines["limit of noise, float64"].get_ydata()) == pytest.approx([1e-12] * len(names))
    own = list(lines["PyTorch's own float32 - float64"].get_ydata())
    assert own == pytest.approx([5e-7] * len(names))
    assert forward.get_yscale() == "log"
    assert "(no unit)" in forward.get_ylabel()
    low, high = forward.get_ylim()
    assert low < 1e-14
    assert high > 0.25
    marks = [text for text in forward.texts if text.get_text().startswith("first: ")]
    assert [text.get_text() for text in marks] == ["first: blocks.0.mlp.act (float64)"]
    assert marks[0].xy[0] == at  # type: ignore[attr-defined]


def test_zero_and_what_is_not_finite_stand_at_the_edges() -> None:
    rows = (
        row("forward", "a", max_abs=0.0),
        row("forward", "b"),
        row("forward", "c", "departs", max_abs=math.inf),
        row("forward", "d", "departs", max_abs=math.nan),
    )
    figure = draw(report(rows=rows))
    assert figure is not None
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    edges = [
        (line.get_marker(), list(line.get_xdata()), set(line.get_ydata()))
        for line in axes.lines
        if line.get_linestyle() == "None"
    ]
    assert edges == [("o", [0], {low}), ("x", [2, 3], {high})]


@pytest.mark.parametrize("depth", [1, 2, 24])
def test_labels_do_not_lie_over_each_other(depth: int) -> None:
    figure = draw(report(depth, "blocks.0.norm1"))
    assert figure is not None
    figure.canvas.draw()
    for axes in figure.axes:
        ticks = list(axes.get_xticks())
        # Labels are 9 points high, slanted: as far apart along the axis as they are high.
        width = axes.get_window_extent().width * 72 / figure.dpi
        first, last = axes.get_xlim()
        gaps = [(b - a) / (last - first) * width for a, b in itertools.pairwise(ticks)]
        assert min(gaps) > 9
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {f"blocks.{block}" for block in range(depth)} <= set(labels)


def test_the_picture_is_one_element_in_the_colours_of_the_page() -> None:
    text = draw_svg(report(2, "blocks.0.mlp.act"))
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    for colour in ("currentColor", "var(--float64)", "var(--float32)", "var(--grid)"):
        assert colour in text
    fixed = set(re.findall(r"#[0-9a-f]{6}(?=[;\"])", text))
    assert fixed <= {"#ffffff"}  # of the patches that are not drawn
    assert text == draw_svg(report(2, "blocks.0.mlp.act"))
