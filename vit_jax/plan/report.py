"""What `vit-jax plan` prints."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vit_jax.plan.plan import Plan
from vit_jax.plan.roofline import Roofline, assumptions
from vit_jax.plan.search import Attempt

_BAR = 24  # characters
_LIMITS = {"compute": "matmuls", "hbm": "memory", "ici": "exchange"}


def show(plan: Plan, recipe: str, console: Console) -> None:
    """Prints a plan."""
    console.print(_head(plan, recipe))
    console.print(_memory(plan))
    if plan.counts is None or plan.roofline is None:
        return
    console.print(_work(plan))
    console.print(_exchanges(plan))
    console.print(_roofline(plan, plan.roofline))


def show_untried(found: Iterable[Attempt], console: Console) -> None:
    """Prints what could make a run fit, where nothing of it has been compiled."""
    table = _table("To try, each on top of those before (not compiled: --search does that)", 2)
    for attempt in found:
        table.add_row(f"  {' '.join(attempt.added)}", attempt.why)
    console.print(Padding(table, (1, 0, 0, 0)))


def show_attempt(attempt: Attempt, plan: Plan, console: Console) -> None:
    """Prints what one attempt of a search came to."""
    verdict = Text("fits", "bold green") if plan.fits else Text("does not fit", "red")
    needed = plan.compiled.needed_bytes
    needs = f"{_size(needed)} of {_size(plan.usable_bytes)}" if needed else ""
    console.print(Text.assemble("tried  ", (" ".join(attempt.flags), "cyan")))
    console.print(Text.assemble("       ", verdict, f"  {needs}"))


def _device(plan: Plan) -> str:
    """What JAX sees as one device."""
    return plan.topology.chip.word


def _head(plan: Plan, recipe: str) -> Group:
    compiled, chip, config = plan.compiled, plan.topology.chip, plan.config
    title = Text.assemble((recipe, "bold cyan"), " on ", (plan.topology.name, "bold cyan"))
    halves = f", for {chip.devices} devices" if chip.devices > 1 else ""
    mesh = " x ".join(f"{name} {size}" for name, size in compiled.mesh.items())
    batch = config.data.batch_size
    each = batch // compiled.devices
    parts = config.accumulation_steps
    lines = [
        f"{_chips(plan)} {chip.full_name}, {chip.hbm_bytes / 2**30:.0f} GiB each"
        f"{halves}; mesh {mesh}",
        f"{config.model.name}, {compiled.parameters / 1e6:,.2f} M parameters",
        f"batch {batch}, {each} a {_device(plan)}{f', in {parts} parts' if parts > 1 else ''}; "
        f"images {'x'.join(map(str, compiled.image))}; compiled in {compiled.seconds:.0f} s",
    ]
    if config.parallel == "pmap":
        lines.append(
            'planned is the form parallel="jit": pmap is compiled only for devices that are there'
        )
    if compiled.remark:
        lines.append(compiled.remark)
    return Group(title, *(Text(f"  {line}", "dim") for line in lines))


def _chips(plan: Plan) -> str:
    number, is_gpu = plan.topology.chips, plan.topology.chip.is_gpu
    return f"{number} x" if is_gpu else f"{number} chips of"


def _table(title: str, columns: int = 3) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    for number in range(columns):
        table.add_column(justify="right" if number == 1 and columns > 2 else "left")
    return table


def _memory(plan: Plan) -> Padding:
    compiled = plan.compiled
    inputs, memory = compiled.inputs, compiled.memory
    table = _table(f"Memory of a {_device(plan)}")
    table.add_row("  parameters", _size(inputs.parameters))
    table.add_row("  optimizer's moments", _size(inputs.optimizer))
    if inputs.ema:
        table.add_row("  averaged weights", _size(inputs.ema))
    table.add_row("  batch", _size(inputs.batch))
    if memory is not None:
        known = inputs.parameters + inputs.optimizer + inputs.ema + inputs.batch
        table.add_row("  layout", _size(memory.arguments - known), "what padding adds to these")
        table.add_row("  results", _size(memory.outputs), "that do not replace what came in")
        table.add_row("  temporaries", _size(memory.temporaries), "activations, gradients")
        table.add_row("  program", _size(memory.code))
    needed = compiled.needed_bytes
    share = needed / plan.usable_bytes if needed else None
    verdict = Text("  fits", "bold green") if plan.fits else Text("  does not fit", "bold red")
    usable = f"of {_size(plan.usable_bytes)} usable"
    table.add_row(
        verdict,
        Text(_size(needed) if needed else "more", "bold"),
        Text.assemble(
            *_bar(share or 2.0),
            f" {share:.0%} " if share else " ",
            usable,
        ),
    )
    return Padding(table, (1, 0, 0, 0))


def _work(plan: Plan) -> Padding:
    counts = plan.counts
    assert counts is not None
    table = _table(f"A step, on one {_device(plan)}")
    table.add_row("  matmuls, compiled", _flops(counts.flops))
    table.add_row(
        "    as written", _flops(counts.step_flops), _against(counts.flops, counts.step_flops)
    )
    table.add_row(
        "    model's forward x 3",
        _flops(counts.model_flops),
        _against(counts.flops, counts.model_flops),
    )
    if counts.slice_flops:
        table.add_row(
            "    strided slices", _flops(counts.slice_flops), "that XLA writes as matmuls"
        )
    table.add_row("  memory", _size(counts.hbm_bytes), "read and written")
    if counts.kernels is not None:
        table.add_row("  kernels", f"{counts.kernels:,}", "launched one after another")
    for name, calls in (counts.library_calls or {}).items():
        table.add_row(f"    {name}", f"{calls:,}", "calls of a library")
    for loop in counts.loops:
        table.add_row("  unknown", loop, "a loop of unknown length: counted as one run")
    return Padding(table, (1, 0, 0, 0))


def _exchanges(plan: Plan) -> Padding:
    counts = plan.counts
    assert counts is not None
    table = _table("Exchanges of a step", 4)
    for row in counts.exchanges:
        table.add_row(
            f"  {row.kind}",
            f"{row.count:,} times",
            _exact(row.bytes),
            f"a {_device(plan)} sends at least {_size(row.sent_bytes)}",
        )
    if not counts.exchanges:
        table.add_row("  none")
    table.add_row("  (the parameters)", "", _exact(plan.compiled.parameter_bytes), "for comparison")
    return Padding(table, (1, 0, 0, 0))


def _roofline(plan: Plan, bound: Roofline) -> Padding:
    table = _table("The least time of a step")
    for name, label in _LIMITS.items():
        seconds = getattr(bound, name)
        mark = ("  <- bound", "bold yellow") if name == bound.bound else ""
        table.add_row(
            f"  {label}",
            f"{seconds * 1e3:,.3f} ms",
            Text.assemble(*_bar(seconds / bound.seconds), mark),
        )
    chips = plan.topology.chips
    estimate = _estimate(plan)
    rate = Text.assemble(
        "   at most ",
        (f"{bound.images_per_second:,.0f} images/s", "bold"),
        f", {bound.images_per_second / chips:,.0f} a "
        f"{'GPU' if plan.topology.chip.is_gpu else 'chip'}; "
        f"{bound.utilization:.0%} of the peak in the model's own operations",
    )
    notes = Table.grid(padding=(0, 1))
    for assumption in assumptions(plan.topology.chip):
        notes.add_row(Text("   -", "dim"), Text(assumption, "dim"))
    head = Text("   An upper bound on speed, not a promise. It assumes:", "dim")
    return Padding(Group(table, rate, *estimate, Text(), head, notes), (1, 0, 0, 0))


def _estimate(plan: Plan) -> list[Text]:
    """What XLA expects of a TPU, which is no bound and is no promise either."""
    counts, clock = plan.counts, plan.topology.chip.clock_hz
    if counts is None or not counts.cycles:
        return []
    time = f" ({counts.cycles / clock * 1e3:,.3f} ms)" if clock else ""
    copies = f"{(counts.copy_cycles or 0) / counts.cycles:.1%} of them copies between layouts"
    return [Text(f"   XLA's own estimate: {counts.cycles:,} cycles{time}, {copies}")]


def _bar(share: float) -> tuple[Any, ...]:
    filled = min(_BAR, round(share * _BAR))
    style = "red" if share > 1 else "green"
    return (("█" * filled, style), ("░" * (_BAR - filled), "dim"))


def _against(compiled: int, counted: int) -> str:
    return f"compiled are {compiled / counted - 1:+.2%}"


def _size(size: float) -> str:
    """Bytes in the unit that reads best."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= least:
            return f"{size / least:,.2f} {unit}"
    return f"{size:,.0f} B"


def _exact(size: int) -> str:
    """Bytes to the last one."""
    return f"{size:,} B"


def _flops(flops: float) -> str:
    for unit, least in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flops >= least:
            return f"{flops / least:,.3f} {unit}"
    return f"{flops:,.0f} FLOP"
