"""The layer table of a model: shapes, parameters, multiply-accumulates, activations.

Flax's `nnx.tabulate` traces every method of a module by itself, and fails at those that return no
arrays, such as `VisionModel.wanted_shape`; its operations are those that XLA estimates.
"""

import dataclasses
from collections import Counter
from typing import Any

import jax
from flax import nnx
from jax.extend import core
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vit_jax.inspect.layer_calls import LayerCalls, call_of
from vit_jax.inspect.recorder import plain
from vit_jax.layers.attention import AttentionForm, SoftmaxAttention
from vit_jax.layers.forms import WIDEST_HEAD
from vit_jax.models.base import VisionModel
from vit_jax.models.macs import count_equation_macs


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One call of a module, or an array that a module with others inside it holds itself.

    Counts are of what is in this row and in no row below it, so that the rows of a table add up to
    its totals.

    Attributes:
      name: PyTorch's path, as `vit_jax.state_dict` has it; `name#1` at the second call of a module;
        "" is the model itself.
      type: the class of the module; Param or Frozen of an array.
      depth: how many rows it stands inside of.
      output_shape: of what the module returns, the first of several; the shape of an array.
      trainable, frozen: parameters, each once, at the first call of what holds it.
      macs: multiply-accumulates, see `vit_jax.models.macs.count_macs`.
      activation_bytes: of the arrays made here that a backward pass keeps, without dropout, without
        `remat`, and before XLA fuses. Attention weights are among them; images and parameters are
        not.
    """

    name: str
    type: str
    depth: int
    output_shape: tuple[int, ...]
    trainable: int = 0
    frozen: int = 0
    macs: int = 0
    activation_bytes: int = 0

    @property
    def parameters(self) -> int:
        return self.trainable + self.frozen


_COUNTS = ("trainable", "frozen", "macs", "activation_bytes")


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layer table of a model and its totals.

    Attributes:
      model: its class.
      input_shape: of the images, (B, H, W, C).
      rows: in the order of the calls, a module before what is inside it.
      attention: how its attention is computed on a GPU of today, see `attention_on_gpus`.
      parameters: trainable and frozen.
      parameter_bytes: of these, in the types that they are kept in.
    """

    model: str
    input_shape: tuple[int, ...]
    rows: tuple[LayerRow, ...]
    parameters: int
    trainable: int
    frozen: int
    parameter_bytes: int
    macs: int
    activation_bytes: int
    attention: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return dataclasses.asdict(self)


def summarize(model: VisionModel, *, batch_size: int = 1, depth: int | None = None) -> Summary:
    """Counts a model layer by layer, by shapes alone: nothing runs and no array is made.

    Args:
      model: built, or of `nnx.eval_shape`; it stays as it is. It is counted as in eval mode, its
        layers one by one whatever `scan_layers` says.
      batch_size: images; MACs and activations are those of all of them.
      depth: a row inside of more than so many others is counted into the one around it; None: all
        rows are shown.

    Raises:
      ValueError: a number below 1 (depth: 0), or a batch that the model does not take.
    """
    if batch_size < 1 or (depth is not None and depth < 0):
        raise ValueError(
            f"wanted a batch_size of at least 1 and a depth of at least 0, got {batch_size} and "
            f"{depth}"
        )
    images = jax.ShapeDtypeStruct((batch_size, *model.img_size, model.in_chans), model.dtype)
    one_by_one: Any = nnx.eval_shape(plain, model)
    graph, params, rest = nnx.split(one_by_one, nnx.Param, ...)
    trace = LayerCalls()

    def forward(params: Any, rest: Any, images: jax.Array) -> Any:
        merged: Any = nnx.merge(graph, params, rest)
        return trace.run(merged, images)

    def backward(params: Any, rest: Any, images: jax.Array) -> Any:
        return jax.vjp(lambda params: forward(params, rest, images), params)[1]

    macs: Counter[int] = Counter()
    for equation in jax.make_jaxpr(forward)(params, rest, images).jaxpr.eqns:
        macs[call_of(equation)] += count_equation_macs(equation)
    kept = _kept_bytes(jax.make_jaxpr(backward)(params, rest, images).jaxpr)
    rows = _rows(trace, macs, kept, depth)
    totals = {count: sum(getattr(row, count) for row in rows) for count in _COUNTS}
    return Summary(
        type(model).__name__,
        images.shape,
        rows,
        parameters=totals["trainable"] + totals["frozen"],
        parameter_bytes=sum(array.size * array.itemsize for array in trace.arrays),
        attention=attention_on_gpus(one_by_one),
        **totals,
    )


def attention_on_gpus(model: VisionModel) -> tuple[str, ...]:
    """Which form its layers of attention have on a GPU of today in a run, and why; of equal ones a
    line."""
    found: Counter[str] = Counter()
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SoftmaxAttention):
            why = module.why_plain(AttentionForm("fused", WIDEST_HEAD))
            found[f"plain: {why}" if why else "fused, by cuDNN"] += 1
        elif hasattr(module, "attention_weights"):
            found[f"plain: {type(module).__name__} has its own"] += 1
    return tuple(f"{count} {form}" for form, count in found.items())


def _kept_bytes(jaxpr: core.Jaxpr) -> Counter[int]:
    """By call, the bytes of what a trace that returns a backward pass has made for it."""
    kept = {id(variable) for variable in jaxpr.outvars}
    sizes: Counter[int] = Counter()
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if id(variable) in kept:
                aval: Any = variable.aval
                sizes[call_of(equation)] += aval.size * aval.dtype.itemsize
    return sizes


def _rows(
    trace: LayerCalls, macs: Counter[int], kept: Counter[int], limit: int | None
) -> tuple[LayerRow, ...]:
    depths: list[int] = []  # of each call
    shown: list[int] = []  # the call in whose row each is counted
    for number, call in enumerate(trace.calls):
        depths.append(0 if call.owner is None else depths[call.owner] + 1)
        is_row = call.owner is None or limit is None or depths[-1] <= limit
        shown.append(number if is_row else shown[call.owner or 0])
    hold_rows = {call.owner for number, call in enumerate(trace.calls) if shown[number] == number}
    counts = {number: Counter[str]() for number in set(shown)}
    for number in range(len(trace.calls)):
        counts[shown[number]] += Counter(macs=macs[number], activation_bytes=kept[number])
    arrays: dict[int, list[LayerRow]] = {number: [] for number in counts}
    for array in trace.arrays:
        owner = shown[array.owner]
        kind = "trainable" if array.is_trainable else "frozen"
        if owner in hold_rows:
            row = LayerRow(
                array.name,
                "Param" if array.is_trainable else "Frozen",
                depths[owner] + 1,
                array.shape,
                **{kind: array.size},
            )
            arrays[owner].append(row)
        else:
            counts[owner][kind] += array.size
    rows: list[LayerRow] = []
    for number, call in enumerate(trace.calls):
        if shown[number] == number:
            row = LayerRow(
                call.name, call.type, depths[number], call.output_shape, **counts[number]
            )
            rows += [row, *arrays[number]]
    return tuple(rows)


def print_summary(summary: Summary, console: Console) -> None:
    """Prints the table, its totals and what they count: whole from 80 columns on."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    table.add_column("type", overflow="fold")
    for title in ("output shape", "parameters", "MACs", "activations"):
        table.add_column(title, justify="right", no_wrap=True)
    inside: list[str] = []  # the names of the rows that the next one stands inside of
    for row in summary.rows:
        del inside[row.depth :]
        outer = inside[-1].partition("#")[0] if inside else ""
        name = row.name.removeprefix(f"{outer}.") if outer else row.name or "(model)"
        inside.append(row.name)
        table.add_row(
            Text("  " * row.depth + name),
            Text(row.type, style="dim" if row.type in ("Param", "Frozen") else ""),
            Text("x".join(map(str, row.output_shape))),
            Text(f"{row.parameters:,}" if row.parameters else "-"),
            Text(_short(row.macs) if row.macs else "-"),
            Text(_bytes(row.activation_bytes) if row.activation_bytes else "-"),
        )
    console.print(table)
    size = "x".join(map(str, summary.input_shape))
    console.print(
        f"parameters   {summary.parameters:,} ({summary.trainable:,} trainable, "
        f"{summary.frozen:,} frozen), {_bytes(summary.parameter_bytes)}\n"
        f"MACs         {_short(summary.macs)}, images {size}\n"
        f"activations  {_bytes(summary.activation_bytes)} kept for a backward pass\n"
        f"attention    on a GPU: {'; '.join(summary.attention) or 'none'}\n\n"
        "A row counts what is in it and in no row below it. MACs: products that are summed, those "
        "of attention among them; FLOPs are about twice as many. Activations: without dropout and "
        "remat, before XLA fuses.",
        highlight=False,
    )


def _short(count: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return str(count)


def _bytes(count: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"
