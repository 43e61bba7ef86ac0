"""What a run would need on a slice: compiled, counted, and held against the chips."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.config import TrainConfig
from vit_jax.models.macs import count_macs
from vit_jax.plan.collectives import Total, collectives, totals
from vit_jax.plan.compile import Compiled, compile_step
from vit_jax.plan.cycles import estimated_cycles
from vit_jax.plan.flops import matmul_flops, slice_flops, wide_flops
from vit_jax.plan.gpu import COMPILER_OPTIONS, traced_without_device
from vit_jax.plan.hlo import HloProgram
from vit_jax.plan.kernels import kernels, library_calls
from vit_jax.plan.roofline import Roofline, assumptions, roofline
from vit_jax.plan.topology import Topology
from vit_jax.plan.traffic import hbm_bytes
from vit_jax.training.run import model_to_train


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one device does in a step.

    Attributes:
      flops: of matmuls and convolutions in the compiled program; slice_flops: those of them that
        are slices, wide_flops: those of float32 operands, see `vit_jax.plan.flops`.
      model_flops: 2 for each multiply-accumulate of the model, three times: forward, and twice that
        for the backward pass.
      step_flops: the same of the step as it is written: see `Compiled`.
      hbm_bytes: between memory and chip.
      exchanges: between chips, by kind.
      loops: of unknown length, which count as one run; to be empty.
      kernels: that a GPU launches, library_calls: those of them that NVIDIA's libraries bring, by
        XLA's names; see `vit_jax.plan.kernels`. None of a TPU.
      cycles: of a TPU's core, as XLA estimates them; copy_cycles: those of copies from layout to
        layout. None of a GPU.
    """

    flops: int
    slice_flops: int
    wide_flops: int
    model_flops: int
    step_flops: int
    hbm_bytes: int
    exchanges: tuple[Total, ...]
    loops: tuple[str, ...]
    kernels: int | None = None
    library_calls: dict[str, int] | None = None
    cycles: int | None = None
    copy_cycles: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a slice.

    Attributes:
      config: the run.
      topology: the slice.
      compiled: its train step; `counts` and `roofline` are None where XLA does not compile it,
        since it does not fit.
    """

    config: TrainConfig
    topology: Topology
    compiled: Compiled
    counts: Counts | None
    roofline: Roofline | None

    @property
    def fits(self) -> bool:
        needed = self.compiled.needed_bytes
        # XLA compiles for a GPU what takes more than its memory.
        return self.compiled.is_compiled and (needed is None or needed <= self.usable_bytes)

    @property
    def usable_bytes(self) -> int:
        return self.topology.chip.usable_bytes


def make_plan(config: TrainConfig, topology: Topology, devices: Sequence[Any]) -> Plan:
    """Compiles the train step of a run for a slice and counts what it does.

    Args:
      config: the run.
      topology: the slice.
      devices: its own, of `devices_of` in `vit_jax.plan.libtpu` or `vit_jax.plan.gpu`.

    Raises:
      ValueError: batch, model and devices do not fit each other.
    """
    if topology.chip.is_gpu:
        with traced_without_device():
            compiled = compile_step(config, devices, COMPILER_OPTIONS)
    else:
        compiled = compile_step(config, devices)
    if not compiled.is_compiled:
        return Plan(config, topology, compiled, None, None)
    counts = count(config, compiled, topology)
    bound = roofline(
        topology,
        flops=counts.flops,
        wide_flops=counts.wide_flops,
        hbm_bytes=counts.hbm_bytes,
        sent_bytes=sum(row.sent_bytes for row in counts.exchanges),
        model_flops=counts.model_flops,
        batch_size=config.data.batch_size,
    )
    return Plan(config, topology, compiled, counts, bound)


def count(config: TrainConfig, compiled: Compiled, topology: Topology | None = None) -> Counts:
    """What one device does in a step of a compiled run; of no topology: on a CPU."""
    program = HloProgram(compiled.text)
    model = model_to_train(config)
    image = jax.ShapeDtypeStruct((1, *model.img_size, model.in_chans), jnp.float32)
    forward = count_macs(model, image) * config.data.batch_size
    of_platform: dict[str, Any] = {}
    if topology is not None and topology.chip.is_gpu:
        of_platform = {"kernels": kernels(program), "library_calls": library_calls(program)}
    elif topology is not None:
        cycles, copies = estimated_cycles(program)
        of_platform = {"cycles": cycles, "copy_cycles": copies}
    return Counts(
        flops=matmul_flops(program),
        slice_flops=slice_flops(program),
        wide_flops=wide_flops(program),
        model_flops=round(2 * 3 * forward / compiled.devices),
        step_flops=round(compiled.step_flops / compiled.devices),
        hbm_bytes=hbm_bytes(program),
        exchanges=tuple(totals(collectives(program, compiled.devices))),
        loops=tuple(program.unknown_loops),
        **of_platform,
    )


def as_json(plan: Plan, recipe: str) -> dict[str, Any]:
    """The plan in plain types: bytes, seconds, and operations of one device and step."""
    compiled, counts, bound = plan.compiled, plan.counts, plan.roofline
    found: dict[str, Any] = {
        "recipe": recipe,
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "devices": compiled.devices,
        "mesh": compiled.mesh,
        "batch_size": plan.config.data.batch_size,
        "parameters": compiled.parameters,
        "parameter_bytes": compiled.parameter_bytes,
        "inputs": dataclasses.asdict(compiled.inputs),
        "fits": plan.fits,
        "usable_bytes": plan.usable_bytes,
        "needed_bytes": compiled.needed_bytes,
        "compile_seconds": round(compiled.seconds, 1),
        "remark": compiled.remark,
    }
    if compiled.memory is not None:
        found["memory"] = dataclasses.asdict(compiled.memory)
    if counts is not None:
        found["counts"] = dataclasses.asdict(counts)
    if bound is not None:
        found["roofline"] = {
            **dataclasses.asdict(bound),
            "seconds": bound.seconds,
            "bound": bound.bound,
            "assumptions": list(assumptions(plan.topology.chip)),
        }
    return found
