"""Bytes that a compiled program moves between HBM and chip."""

from collections.abc import Mapping

from vit_jax.plan.hlo import Computation, HloProgram, Instruction

_WITHOUT_BYTES = ("custom-call", "iota")
_SLICES = ("dynamic-slice", "slice", "gather")


def hbm_bytes(program: HloProgram) -> int:
    """Bytes that one run reads and writes in HBM, on one device.

    Every operation reads its operands and writes its results once, but for what XLA has put into
    the chip's own memory, and of an array that is only sliced, or written a slice at a time, the
    slices. Inside a fusion nothing is written.
    """
    return sum(
        runs * bytes_of(program, computation, instruction)
        for computation, instruction, runs in program.instructions()
        if computation.name not in program.fused
    )


def bytes_of(program: HloProgram, computation: Computation, instruction: Instruction) -> int:
    """What `hbm_bytes` counts of one instruction outside of fusions, run once."""
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.is_library_call:
        return _results(instruction) + sum(map(_in_hbm, operands))
    if instruction.names_memory or instruction.opcode in _WITHOUT_BYTES:
        return 0
    opcode = instruction.opcode
    if opcode == "fusion":
        inside = program.computations[instruction.attribute("calls") or ""]
        return _fusion(inside, operands, instruction)
    if opcode in ("copy-start", "slice-start"):  # results: (..., where to, ...); the copy's source
        # stands among them
        target = instruction.shapes[0 if opcode == "copy-start" else -2]
        source = operands[0].shapes[0]
        return sum(target.bytes for shape in (target, source) if shape.memory == 0)
    if opcode in _SLICES:
        return sum(
            instruction.shapes[0].bytes
            for shape in (operands[0].shapes[0], instruction.shapes[0])
            if shape.memory == 0
        )
    if opcode == "dynamic-update-slice":
        update = operands[1].shapes[0]
        return sum(update.bytes for shape in (update, instruction.shapes[0]) if shape.memory == 0)
    return _in_hbm(instruction) + sum(map(_in_hbm, operands))


def _results(call: Instruction) -> int:
    """Of a library's function, without its workspace."""
    return sum(shape.bytes for shape in call.shapes if shape.dtype not in ("s8", "u8"))


def _in_hbm(instruction: Instruction) -> int:
    return sum(shape.bytes for shape in instruction.shapes if shape.memory == 0)


def _fusion(inside: Computation, operands: list[Instruction], fusion: Instruction) -> int:
    users: dict[str, list[Instruction]] = {}
    parameters: dict[int, str] = {}
    for instruction in inside.instructions.values():
        for name in instruction.operands:
            users.setdefault(name, []).append(instruction)
        if instruction.opcode == "parameter":
            parameters[int(instruction.literal)] = instruction.name
    moved = 0
    for number, operand in enumerate(operands):
        whole = _in_hbm(operand)
        if whole:
            moved += min(whole, _read(parameters[number], users, inside.instructions))
    root = inside.instructions[inside.root]
    results = (
        [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    for result, shape in zip(results, fusion.shapes, strict=False):
        if shape.memory == 0:
            updated = _through(result, inside.instructions)
            if updated.opcode == "dynamic-update-slice":
                moved += inside.instructions[updated.operands[1]].shapes[0].bytes
            else:
                moved += shape.bytes
    return moved


def _through(instruction: Instruction, within: Mapping[str, Instruction]) -> Instruction:
    """What a chain of renamings renames."""
    while instruction.opcode in ("bitcast", "copy", "reshape"):
        instruction = within[instruction.operands[0]]
    return instruction


def _read(
    name: str, users: Mapping[str, list[Instruction]], within: Mapping[str, Instruction]
) -> int:
    """Bytes of a value that a fusion reads: its slices, where nothing else is made of it."""
    total = 0
    for user in users.get(name, []):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # overwritten in place
        elif user.opcode == "bitcast":
            total += _read(user.name, users, within)
        else:
            return within[name].shapes[0].bytes
    return total
