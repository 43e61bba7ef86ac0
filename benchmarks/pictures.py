"""The pictures of `benchmarks.run`."""

import pathlib
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.contestants import BASE, CONTESTANTS, Workload

_COLOURS = ("#0072B2", "#999999", "#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7")


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**grid)


def draw_ratios(report: dict[str, Any], path: pathlib.Path) -> None:
    """Bars: how many times as fast as PyTorch eager, a group for each workload."""
    results = report["results"]
    present = {timing["contestant"] for result in results for timing in result["timings"]}
    entered = [name for name in CONTESTANTS if name in present and name != BASE]
    figure, axes = _figure(8, 0.9 + 0.5 * len(results))
    height = 0.8 / max(len(entered), 1)
    for number, name in enumerate(entered):
        for row, result in enumerate(results):
            medians = {
                timing["contestant"]: statistics.median(timing["seconds"])
                for timing in result["timings"]
            }
            if name in medians and BASE in medians:
                axes.barh(
                    row + (number - (len(entered) - 1) / 2) * height,
                    medians[BASE] / medians[name],
                    height,
                    color=_COLOURS[list(CONTESTANTS).index(name)],
                    label=name,
                )
    axes.axvline(1.0, color="black", linewidth=1)
    names = [f"{Workload(**result['work']).name}, {result['form']}" for result in results]
    axes.set_yticks(range(len(results)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast as {BASE} (line: equal)")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside upper center", ncols=4)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def draw_scale(report: dict[str, Any], path: pathlib.Path) -> None:
    """Measured times, and those of the FLOPs at the speed of each series' largest point."""
    series: dict[str, list[dict[str, Any]]] = {}
    for row in report["scale"]:
        series.setdefault(row["series"], []).append(row)
    figure, grid = _figure(10, 6, nrows=2, ncols=3)
    all_axes: list[Axes] = list(grid.flat)
    for axes, (name, rows) in zip(all_axes, series.items(), strict=True):
        values = [row["value"] for row in rows]
        axes.loglog(
            values,
            [1e3 * row["seconds"] for row in rows],
            "o-",
            color=_COLOURS[0],
            label="measured",
        )
        speed = rows[-1]["flops"] / rows[-1]["seconds"]
        axes.loglog(
            values,
            [1e3 * row["flops"] / speed for row in rows],
            ":",
            color=_COLOURS[3],
            label="as the FLOPs",
        )
        axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("ms a step")
        axes.grid(alpha=0.3)
    all_axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
