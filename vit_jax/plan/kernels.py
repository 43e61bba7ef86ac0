"""What a compiled program launches on a GPU."""

from collections import Counter

from vit_jax.plan.hlo import HloProgram, Instruction


def kernels(program: HloProgram) -> int:
    """Kernels, copies, exchanges and calls of libraries in one run, on one device.

    A library may launch several kernels for a call: it counts as one.
    """
    return sum(runs for _, runs in _launched(program))


def library_calls(program: HloProgram) -> dict[str, int]:
    """How often one run calls each function of NVIDIA's libraries, by XLA's names, sorted."""
    found: Counter[str] = Counter()
    for instruction, runs in _launched(program):
        if instruction.opcode == "custom-call":
            found[instruction.target] += runs
    return dict(sorted(found.items()))


def _launched(program: HloProgram) -> list[tuple[Instruction, int]]:
    return [
        (instruction, runs)
        for computation, instruction, runs in program.instructions()
        if computation.name not in program.fused
        and not instruction.names_memory
        and instruction.opcode != "async-start"  # of a computation that is counted itself
    ]
