"""Cycles of a TPU's core that XLA expects a compiled program to take."""

import re

from vit_jax.plan.hlo import HloProgram

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COPIES = ("copy", "copy-start", "transpose")


def estimated_cycles(program: HloProgram) -> tuple[int, int]:
    """(all cycles, those of copies from one layout to another) of one run.

    XLA's own estimate, by which it decides what to fuse and in which order; those in loops count in
    every turn.
    """
    total = copies = 0
    for computation, instruction, runs in program.instructions():
        found = _CYCLES.search(instruction.attributes)
        if found is None or computation.name in program.fused:
            continue
        cycles = runs * int(found[1])
        total += cycles
        if instruction.opcode in _COPIES:
            copies += cycles
    return total, copies
