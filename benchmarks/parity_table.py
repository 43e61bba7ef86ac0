"""The worst difference from PyTorch of every registered model, as a table.

    python -m benchmarks.parity_table [GLOB] [--steps 10] [--out docs/parity_models.md]

Each name is built at its own size, given random weights, and compared by `vit_jax.parity.compare`
with the PyTorch module of its design (tests/reference, transformers or timm), on one random image,
stage by stage: all values that it computes on its way, and up to 30 M parameters the gradient of
every parameter too; with `--steps` whatever the size, and every parameter after so many steps of
AdamW. Above 120 M parameters the model has two blocks. Run it where the repository is, on a
quiet machine; it needs torch (`pip install -e '.[test]'`). Exit status 1 where a difference is not
noise.
"""

import argparse
import ctypes
import dataclasses
import gc
import pathlib
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import vit_jax
from benchmarks.references import reference_fields, reference_of
from tests.parity.live import randomised
from vit_jax.layers.variables import Frozen
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model
from vit_jax.parity.compare import compare
from vit_jax.parity.optimizers import OptimizerSpec
from vit_jax.parity.result import Report, Row
from vit_jax.parity.torch_trace import trace_torch
from vit_jax.weights.dialects import to_own

GRADIENTS_UP_TO, WHOLE_UP_TO = 30e6, 120e6  # parameters
# A gradient below this part of the largest one is all rounding, as is that of a bias of the keys.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      parameters, macs: of the whole model, one image of its size; frozen tables count.
      float64: largest difference over the rms of what is compared.
      float32: largest difference over the noise of PyTorch's own float32 there.
      ran: what was compared; compared: how many arrays.
      departs: the first row that is not noise, of values, gradients or the gradients of values.
      seconds: of the line, all included.
    """

    name: str
    parameters: int
    macs: int
    float64: Row
    float32: Row
    ran: str
    compared: int
    departs: Row | None
    seconds: float

    @property
    def fault(self) -> str:
        row = self.departs
        return f", **DEPARTS** in {row.section} ({row.precision}) at {row.name}" if row else ""

    @property
    def noise_floors(self) -> float:
        return _noise_floors(self.float32)


def _rms(row: Row) -> float:
    """That of the reference."""
    return row.max_abs / row.relative if row.relative else np.inf


def _noise_floors(row: Row) -> float:
    """A difference over the reference's own; where it has next to none, over an epsilon."""
    floor = max(row.noise, float(np.finfo(np.float32).eps) * _rms(row))
    return row.max_abs / floor if row.max_abs else 0.0


def _rows(report: Report, section: str) -> list[Row]:
    return [row for row in report.rows if row.section == section]


def worst_float64(report: Report) -> Row:
    """The worst row of values and gradients, but for gradients that are all rounding."""
    gradients = _rows(report, "gradients")
    largest = max((_rms(row) for row in gradients if row.relative), default=0.0)
    sound = [row for row in gradients if _rms(row) > _ROUNDING * largest]
    return max((*_rows(report, "forward"), *sound), key=lambda row: row.relative)


def _trained(report: Report) -> str:
    rows = _rows(report, "trained")
    within = [row for row in rows if row.relative <= _ROUNDING]
    worst = max(row.relative for row in rows)
    return f"{len(within)} of {len(rows)} arrays within {_ROUNDING:.0e}, the worst {worst:.1e}"


def measure(name: str, steps: int) -> Line:
    """Compares one registered model; `steps`: of AdamW, or 0."""
    start = time.perf_counter()
    shapes = abstract_model(name)
    # DINOv3's positions are computed: at 256x256 from coordinates that float32 holds exactly.
    size = shapes.img_size if shapes.position_table() is not None else shapes.input_size
    image = jax.ShapeDtypeStruct((1, *size, shapes.in_chans), jnp.float32)
    arrays = jax.tree.leaves(nnx.state(shapes, (nnx.Param, Frozen)))
    parameters = sum(array.size for array in arrays)

    fields = {"depth": 2} if parameters > WHOLE_UP_TO else {}
    is_whole = not fields
    fields |= reference_fields(name)
    grad = steps > 0 or parameters <= GRADIENTS_UP_TO
    optimizer = OptimizerSpec(steps=steps) if steps else None
    reference = randomised(reference_of(name, fields, dropout=False)).eval()
    # Drawing weights takes seconds, and all of them are loaded.
    graph, state = nnx.split(abstract_model(name, **fields))
    model = nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))
    weights = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    vit_jax.load_state_dict(model, to_own(weights)[0])
    model.eval()
    images = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    answers = trace_torch(reference, images, grad=grad, optimizer=optimizer)  # once for both
    wide = compare(
        model,
        answers,
        grad=grad,
        optimizer=optimizer,
        precisions=("float64",),
        diagnose=False,
    )
    narrow = compare(model, answers, grad=False, precisions=("float32",), diagnose=False)
    return Line(
        name,
        parameters,
        count_macs(shapes, image),
        worst_float64(wide),
        max(_rows(narrow, "forward"), key=_noise_floors),
        ", ".join(
            text
            for text, is_so in (
                ("two blocks", not is_whole),
                ("forward", True),
                ("gradients", grad),
                (f"{steps} steps of AdamW: {_trained(wide)}", steps),
            )
            if is_so
        ),
        len([row for row in wide.rows if row.section in ("forward", "gradients", "trained")]),
        wide.first or narrow.first,
        time.perf_counter() - start,
    )


def row(line: Line) -> str:
    """The row of the page."""
    return (
        f"| `{line.name}` | {line.parameters / 1e6:.2f} | {line.macs / 1e9:.2f} "
        f"| {line.float64.relative:.1e} | {line.noise_floors:.1f} | {line.ran}{line.fault} "
        f"| {line.compared} |"
    )


def rows_of(page: pathlib.Path) -> dict[str, str]:
    """The rows of a page by their names; none where there is no page."""
    text = page.read_text() if page.exists() else ""
    return {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", text, re.MULTILINE)}


def markdown(rows: Mapping[str, str]) -> str:
    """The page that `--out` writes."""
    return "\n".join(
        [
            "# Every registered model beside PyTorch",
            "",
            "Written by `python -m benchmarks.parity_table --out docs/parity_models.md` (2 CPU "
            "cores, at most 17 GiB), or with a glob, which measures the rows of those names anew: "
            f"jax {jax.__version__}, flax {flax.__version__}, torch {torch.__version__}, "
            f"{platform.machine()}.",
            "",
            "Each model has random weights and sees one random image; its reference is the plain "
            "PyTorch module of its design in tests/reference; of CaiT timm's; of BEiT, CLIP, "
            "DINOv2, DINOv3, MAE, SigLIP and Swin transformers'.",
            "",
            "- **parameters**: with the frozen tables. **GMACs**: multiply-accumulates of one "
            "image in matmuls (those of attention too) and convolutions.",
            "- **float64**: largest difference over the rms, of every stage and, where gradients "
            "ran, of every parameter's gradient (but the biases of keys: theirs is zero).",
            "- **float32**: largest difference of a stage from PyTorch's float64, over that of "
            "PyTorch's own float32: 1 is as exact as PyTorch.",
            "- **ran**: gradients up to 30 M parameters; above 120 M the model has two blocks. "
            "**Steps of AdamW** were run for one name a design (`--steps 10`). AdamW divides a "
            "gradient by its own size, and so makes large what is rounding, as in the biases of "
            "keys, which stand in one array with others: such arrays depart by more than 1e-12.",
            "",
            "| model | parameters (M) | GMACs | float64 | float32 | ran | arrays compared |",
            "|---|---|---|---|---|---|---|",
            *(rows[name] for name in sorted(rows)),
            "",
        ]
    )


def _release() -> None:
    """Gives free memory back, of which glibc else keeps what the largest model so far had."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _peak_gib() -> float:
    """The most memory that this process has held; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description="parity with PyTorch of all registered models")
    parser.add_argument("glob", nargs="?", default="*", help="which names, such as 't2t*'")
    parser.add_argument(
        "--out", type=pathlib.Path, help="the page, whose rows of other names stay as they are"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="of AdamW, after gradients of models of any size"
    )
    arguments = parser.parse_args()
    names = vit_jax.list_models(arguments.glob)
    if not names:
        parser.error(f"no model matches {arguments.glob!r}; `vit-jax models` lists all")
    start, lines = time.perf_counter(), []
    rows = rows_of(arguments.out) if arguments.out else {}
    for name in names:
        line = measure(name, arguments.steps)
        lines.append(line)
        rows[name] = row(line)
        if arguments.out:
            arguments.out.write_text(markdown(rows))
        print(
            f"{name:34}{line.parameters / 1e6:8.2f} M {line.macs / 1e9:7.2f} GMACs  "
            f"{line.float64.relative:.1e} ({line.float64.section} {line.float64.name})  "
            f"{line.noise_floors:.1f} ({line.float32.name})  {line.ran}, {line.compared} arrays"
            f"{line.fault}  {line.seconds:.1f} s, {_peak_gib():.1f} GiB",
            flush=True,
        )
        _release()
    seconds = time.perf_counter() - start
    print(f"{len(lines)} models in {seconds / 60:.1f} minutes")
    return int(any(line.departs for line in lines))


if __name__ == "__main__":
    sys.exit(main())
