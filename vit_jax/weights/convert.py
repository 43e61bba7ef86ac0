"""`vit-jax convert`: weights of any form into those of any other."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flax import nnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, create_model
from vit_jax.weights.adapt import OldGrid
from vit_jax.weights.load import (
    LoadReport,
    load_into,
    model_name,
    read_source,
    stated_fields,
)
from vit_jax.weights.save import save_pretrained
from vit_jax.weights.state_dict import torch_shapes
from vit_jax.weights.wrappers import Rules

_DIALECTS = {"own": None, "timm": "timm", "hf": "huggingface", "google": "google", "orbax": "orbax"}
TARGETS = tuple(_DIALECTS)


def convert(
    source: str,
    target: str,
    name: str | None = None,
    *,
    fields: Mapping[str, Any],
    to: str = "own",
    ema: bool | None = None,
    resize: str | None = None,
    old_grid: OldGrid = None,
    head: Literal["drop"] | Sequence[int] | None = None,
    in_chans: bool = False,
    rename: Rules = (),
) -> tuple[VisionModel, LoadReport]:
    """Reads weights into a registered model and writes them in another form.

    The model has as many classes as the source (as indices in `head`), and the fields that the
    source states. `fields` may give other sizes, for which the weights are adapted, and what the
    source does not state; what it contradicts is refused.

    Args:
      source: as `load_pretrained` takes it.
      target: as `save_pretrained` does.
      name: the registered model; None: the source's, or the only one that the weights fit.
      fields: of the design, beside what the source states.
      to: "own" (the names of the design's source; .safetensors or .pth), "timm" (for most designs
        the same), "hf", "google" or "orbax".
      ema: see `load_pretrained`.
      resize: see `load_pretrained`.
      old_grid: see `load_pretrained`.
      head: see `load_pretrained`.
      in_chans: see `load_pretrained`.
      rename: (pattern, replacement) pairs for the names in the source, before anything else.

    Returns:
      The model, and what was loaded; what the new form has no place for is told as left.

    Raises:
      ValueError: see `load_pretrained` and `save_pretrained`.
    """
    if to not in _DIALECTS:
        raise ValueError(f"--to: wanted one of {', '.join(TARGETS)}, got {to!r}")
    weights = read_source(source, ema, rename)
    name = model_name(weights, name, source)
    found = stated_fields(weights, name)
    if head == "drop":
        found.pop("num_classes", None)
    elif head is not None:
        found["num_classes"] = len(head)
    made = {**found, **fields}
    # Nothing is drawn that the weights replace; a dropped head leaves the model its own.
    model = abstract_model(name, **made)
    if head == "drop":
        model = create_model(name, rngs=nnx.Rngs(0), **made)
    report = load_into(
        model, weights, source, resize=resize, old_grid=old_grid, head=head, in_chans=in_chans
    )
    unsaid = save_pretrained(model, target, dialect=_DIALECTS[to])
    return model, dataclasses.replace(report, left=(*report.left, *unsaid))


def print_report(model: VisionModel, report: LoadReport, console: Console) -> None:
    """A table of what was mapped, and lines of what was adapted and left."""
    title = escape(f"{report.source} ({report.dialect or 'own names'})")
    table = Table(title=title, title_justify="left")
    table.add_column("array")
    table.add_column("shape")
    table.add_column("number", justify="right")
    groups: dict[tuple[str, tuple[int, ...]], int] = {}
    for array, shape in torch_shapes(model).items():
        key = (re.sub(r"\.\d+\.", ".*.", array), shape)
        groups[key] = groups.get(key, 0) + 1
    for (array, shape), number in groups.items():
        table.add_row(array, " x ".join(map(str, shape)) or "scalar", str(number))
    console.print(table)
    for label, lines in (("adapted", report.adapted), ("left", report.left)):
        for line in lines:
            console.print(f"{label}: {line}", markup=False)
