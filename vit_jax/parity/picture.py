"""The picture of a parity report: error by depth, forward and backward, and over training."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vit_jax.parity.lines import Line, coarse, display_name, lines_of
from vit_jax.parity.result import Report, Row, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins: in the page they become its own colours, which follow the reader's light or dark mode.
# Marker and line style tell the series apart without colour.
_INK, _GRID = "#010203", "#777778"
_COLOURS = {
    "float64": "#0062a4",
    "float32": "#b85001",
    "bfloat16": "#7a3fa1",
    "float16": "#8a6d01",
}
_VARIABLES = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    **{colour: f"var(--{precision})" for precision, colour in _COLOURS.items()},
}
_MARKERS = {"float64": "o", "float32": "s", "bfloat16": "D", "float16": "^"}
_PANELS: tuple[tuple[Section, str], ...] = (
    ("forward", "forward: values of stages, from the input to the output"),
    ("backward", "backward: gradients of the loss by stages"),
    ("gradients", "gradients of the loss by parameters"),
    ("losses", "losses over the optimizer steps"),
)
_LABELS = 40  # of an x axis, at most


def draw(report: Report) -> "Figure | None":
    """Draws a panel each of stages, gradients and losses; None where none has three.

    Every value is the largest difference from PyTorch in float64 over the rms of PyTorch's value:
    it has no unit. Differences of zero stand at the lower edge, hollow; what is not finite at the
    upper edge, as a cross.
    """
    # Here and not above: matplotlib takes long to import. No pyplot: no display, no global state.
    from matplotlib.figure import Figure

    found = {section: lines_of(report, section) for section, _ in _PANELS}
    panels = [panel for panel in _PANELS if len(found[panel[0]]) > 2]
    if not panels:
        return None
    figure = Figure(figsize=(11, 4.2 * len(panels)), layout="constrained")
    figure.patch.set_alpha(0)
    rows = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (section, title) in zip(rows, panels, strict=True):
        first = report.first if report.first and report.first.section == section else None
        _draw_panel(axes, section, title, found[section], first)
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncol=len(handles),
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
    )
    return figure


def draw_svg(report: Report) -> str:
    """The picture as an SVG element for a page, in the page's colours; "" where there is none.

    The page sets the CSS variables --grid and those of the precisions, such as --float64.
    """
    import matplotlib

    figure = draw(report)
    if figure is None:
        return ""
    # Text stays text; equal reports give equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vit_jax"}):
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text


def _draw_panel(
    axes: "Axes", section: Section, title: str, lines: Sequence[Line], first: Row | None
) -> None:
    scales = [_scale(line) for line in lines]
    series: dict[str, list[float]] = {}
    limits: dict[str, list[float]] = {}
    for precision in _COLOURS:
        rows = [line.rows.get(precision) for line in lines]
        if any(rows):
            series[precision] = [math.nan if row is None else row.relative for row in rows]
            limits[precision] = _over(scales, rows, lambda row: row.limit)
    noise = _over(scales, [line.main for line in lines], lambda row: row.noise)
    low, high = _range([*series.values(), *limits.values(), noise])
    if first is not None:
        high *= 100  # room for its name

    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if any(value > 0 for value in noise):
        kind = "float32" if "float64" in series else next(iter(series))
        label = f"PyTorch's own {kind} - float64"
        axes.plot(noise, color=_INK, linestyle=":", linewidth=1.6, zorder=4, label=label)
    size = 5 if len(lines) <= 80 else 2.5
    # float64 last and finer: where all agree, all are seen.
    for precision in sorted(series):
        values, colour = series[precision], _COLOURS[precision]
        broad = 1 if precision == "float64" else 1.5
        limit = f"limit of noise, {precision}"
        style: dict[str, Any] = {"color": colour, "markersize": size * broad}
        axes.plot(limits[precision], color=colour, linestyle="--", linewidth=1, label=limit)
        drawn = [v if math.isfinite(v) and v > 0 else math.nan for v in values]
        marker = _MARKERS[precision]
        axes.plot(drawn, **style, marker=marker, linewidth=broad, label=precision)
        zeros = [i for i, value in enumerate(values) if value == 0]
        _at_edge(axes, zeros, low, marker, **style, markerfacecolor="none")
        rows = [line.rows.get(precision) for line in lines]
        lost = [i for i, row in enumerate(rows) if row and not math.isfinite(row.max_abs)]
        _at_edge(axes, lost, high, "x", **style | {"markersize": 7})
    if first is not None:
        _mark(axes, [line.name for line in lines], first)
    _finish(axes, section, title, lines)


def _scale(line: Line) -> float:
    """The rms of the reference's value, which the rows do not state; nan where it is unknown."""
    for row in line.rows.values():
        if 0 < row.relative < math.inf and 0 < row.max_abs < math.inf:
            return row.max_abs / row.relative
    return math.nan


def _over(
    scales: Sequence[float], rows: Sequence[Row | None], value: Callable[[Row], float]
) -> list[float]:
    return [
        math.nan if row is None else value(row) / scale
        for scale, row in zip(scales, rows, strict=True)
    ]


def _range(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Powers of ten around all that can be drawn on a log axis."""
    values = [v for values in series for v in values if math.isfinite(v) and v > 0]
    if not values:
        return 1e-17, 1.0
    return (
        10.0 ** (math.floor(math.log10(min(values))) - 1),
        10.0 ** (math.ceil(math.log10(max(values))) + 1),
    )


def _at_edge(axes: "Axes", at: Sequence[int], edge: float, marker: str, **style: Any) -> None:
    if at:
        heights = [edge] * len(at)
        axes.plot(at, heights, marker=marker, linestyle="", clip_on=False, **style)


def _mark(axes: "Axes", names: Sequence[str], first: Row) -> None:
    at = names.index(first.name)
    axes.axvline(at, color=_INK, linewidth=1)
    left = at > len(names) / 2
    axes.annotate(
        f"first: {display_name(first.name)} ({first.precision})",
        (at, 0.97),
        (-6 if left else 6, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=_INK,
        weight="bold",
        parse_math=False,
    )


def _finish(axes: "Axes", section: Section, title: str, lines: Sequence[Line]) -> None:
    names = [line.name for line in lines]
    if section == "losses" or len(names) <= _LABELS:
        ticks = {float(i): display_name(name) for i, name in enumerate(names)}
    else:
        ticks = _parts(axes, names)
    at: list[float] = []  # no two labels over each other
    for tick in ticks:
        if not at or tick - at[-1] >= len(names) / _LABELS:
            at.append(tick)
    long = max(len(ticks[tick]) for tick in at) > 4
    axes.set_xticks(at)
    axes.set_xticklabels(
        [ticks[tick] for tick in at],
        rotation=60 if long else 0,
        ha="right" if long else "center",
        rotation_mode="anchor",
        fontsize=9,
        parse_math=False,
    )
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_xlabel({"losses": "step", "gradients": "parameter"}.get(section, "stage"))
    axes.set_ylabel("largest error / rms (no unit)")
    axes.set_title(title, loc="left", color=_INK)
    axes.grid(axis="y", color=_GRID, alpha=0.3)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, which="both")
    for spine in axes.spines.values():
        spine.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _parts(axes: "Axes", names: Sequence[str]) -> dict[float, str]:
    """The middle of each part of the model, and its name; draws lines between the parts."""
    ticks, start = {}, 0
    for end in range(1, len(names) + 1):
        if end == len(names) or coarse(names[end]) != coarse(names[start]):
            ticks[(start + end - 1) / 2] = coarse(names[start]) or display_name(names[start])
            if end < len(names):
                axes.axvline(end - 0.5, color=_GRID, linewidth=0.5, alpha=0.4)
            start = end
    return ticks
