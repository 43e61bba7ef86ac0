"""What a compiled program sends between chips."""

import dataclasses
import math
import re
from collections.abc import Iterable

from vit_jax.plan.hlo import Computation, HloProgram, Instruction

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
# XLA for TPU has no operation of its own for a reduce-scatter: it is a fusion of this name, of an
# all-reduce and a slice.
_FUSED_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between the devices of a group.

    Attributes:
      kind: one of `KINDS`.
      count: how often it runs in a step.
      payload_bytes: of one run, on one device: the whole array, before (reduce-scatter, all-reduce,
        all-to-all, collective-permute) or after (all-gather) the exchange.
      group: devices that take part together.
    """

    kind: str
    count: int
    payload_bytes: int
    group: int

    @property
    def bytes(self) -> int:
        """Payload of all runs."""
        return self.count * self.payload_bytes

    @property
    def sent_bytes(self) -> float:
        """What one device has to send in all runs, at the least: as along a ring."""
        others = (self.group - 1) / self.group
        share = {"all-reduce": 2 * others, "collective-permute": 1.0}.get(self.kind, others)
        return self.bytes * share


def collectives(program: HloProgram, devices: int) -> list[Collective]:
    """The exchanges of one run of a program, those in loops as often as they run.

    Args:
      program: compiled.
      devices: of the mesh, for exchanges between all.
    """
    found: list[Collective] = []
    channels: set[str] = set()
    for computation, instruction, runs in program.instructions():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        fused = computation.name in program.fused
        channel = instruction.attribute("channel_id")
        # One that is spread over several fusions, to run beside them, stands in each of them.
        if fused and channel is not None:
            if channel in channels:
                continue
            channels.add(channel)
        group = _group_size(instruction.attributes, devices)
        payload = sum(_operand_bytes(computation, instruction))
        if kind == "all-gather":
            payload *= group
        if fused and computation.name.startswith(_FUSED_SCATTER):
            kind = "reduce-scatter"
        if group > 1:
            found.append(Collective(kind, runs, payload, group))
    return found


@dataclasses.dataclass(frozen=True)
class Total:
    """All exchanges of one kind; `bytes` of payload, `sent_bytes` by one device."""

    kind: str
    count: int
    bytes: int
    sent_bytes: float


def totals(found: Iterable[Collective]) -> list[Total]:
    """One row for each kind that occurs, in the order of `KINDS`."""
    found = list(found)
    rows = []
    for kind in KINDS:
        these = [one for one in found if one.kind == kind]
        if these:
            rows.append(
                Total(
                    kind,
                    sum(one.count for one in these),
                    sum(one.bytes for one in these),
                    sum(one.sent_bytes for one in these),
                )
            )
    return rows


def _operand_bytes(computation: Computation, instruction: Instruction) -> list[int]:
    return [
        sum(shape.bytes for shape in computation.instructions[name].shapes)
        for name in instruction.operands
    ]


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group: `{{0,1},{2,3}}`, `[2,2]<=[4]` or `mesh['a'=2,'b'=2] {'b'}` give 2."""
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if match:
        return match[1].count(",") + 1
    match = re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", attributes)
    if match:
        return int(match[1])
    match = re.search(r"replica_groups=\w+\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
    if match:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    match = re.search(r"source_target_pairs=\{", attributes)
    return devices if match or "replica_groups={}" in attributes else 1
