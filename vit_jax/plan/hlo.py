"""Reads the text of a compiled program, and how often each part of it runs.

XLA's own cost analysis counts the body of a loop once, however often it runs; `scan_layers` and
`accumulation_steps` are loops. Here each computation has its number of runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bytes of an element; four-bit types are packed, and tokens and opaque values have none.
_BITS = re.compile(r"[a-z]+?(\d+)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


# Opcodes that give memory a name, end what another began, or run computations that are counted
# themselves; and those that end in "-done".
NAMES_MEMORY = frozenset(
    [
        "parameter",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "constant",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "async-update",
    ]
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type, sizes, and the memory it lies in (0: HBM)."""

    dtype: str
    dims: tuple[int, ...]
    memory: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without the padding of its layout."""
        if self.dtype == "pred":
            return self.size
        bits = _BITS.match(self.dtype)
        return -(-self.size * int(bits[1]) // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, without the braces or the % around it; None: not there."""
        match = re.search(rf"[, ]{name}=(?:\{{([^{{}}]*)\}}|%?([\w.\-]+))", self.attributes)
        return None if match is None else match[1] if match[1] is not None else match[2]

    @property
    def target(self) -> str:
        """What a custom call calls; empty of another instruction."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def names_memory(self) -> bool:
        """Whether it moves and computes nothing itself: see `NAMES_MEMORY`."""
        return self.opcode in NAMES_MEMORY or self.opcode.endswith("-done")

    @property
    def is_library_call(self) -> bool:
        """Whether it is a function of NVIDIA's libraries."""
        return self.target.startswith(("__cublas", "__cudnn", "__cusolver", "__cub$"))


@dataclasses.dataclass
class Computation:
    """A function of the program, by the order of its lines."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""


class HloProgram:
    """A compiled program.

    Args:
      text: of `jax.stages.Compiled.as_text()`.

    Attributes:
      computations: by name.
      entry: the name of the first one.
      unknown_loops: names of the loops whose number of runs is not to be seen; they count as one.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.unknown_loops: list[str] = []
        current: Computation | None = None
        for line in text.splitlines():
            if line.startswith((" ", "\t")) and current is not None:
                match = _INSTRUCTION.match(line)
                if match:
                    instruction = _instruction(match[1], match[2])
                    current.instructions[instruction.name] = instruction
                    if line.lstrip().startswith("ROOT "):
                        current.root = instruction.name
                continue
            match = _HEADER.match(line)
            if match and not line.startswith("HloModule"):
                current = Computation(match[2], {})
                self.computations[current.name] = current
                if match[1]:
                    self.entry = current.name
        self._callers: dict[str, list[tuple[str, int]]] = {name: [] for name in self.computations}
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                for callee, times in self._calls(instruction):
                    if callee in self._callers:
                        self._callers[callee].append((computation.name, times))

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in one run of the program; what nothing calls, never."""
        known = {self.entry: 1}

        def runs(name: str) -> int:
            if name not in known:
                known[name] = sum(runs(caller) * times for caller, times in self._callers[name])
            return known[name]

        return {name: runs(name) for name in self.computations}

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """The computations inside fusions, whose values are never in memory."""
        found: set[str] = set()
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "fusion":
                    found.add(instruction.attribute("calls") or "")
        # A fusion may hold a call or another fusion.
        pending = list(found)
        while pending:
            inside = self.computations.get(pending.pop())
            for instruction in inside.instructions.values() if inside else ():
                for callee, _ in self._calls(instruction):
                    if callee not in found:
                        found.add(callee)
                        pending.append(callee)
        return frozenset(found)

    def instructions(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Each instruction that runs, with its computation and how often."""
        for name, runs in self.runs.items():
            if runs:
                computation = self.computations[name]
                for instruction in computation.instructions.values():
                    yield computation, instruction, runs

    def _calls(self, instruction: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often. Not those of a reduction."""
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.attribute("body") or ""
            condition = instruction.attribute("condition") or ""
            trips = self._trips(instruction, condition)
            return [(body, trips), (condition, trips)]
        if opcode == "conditional":
            branches = [instruction.attribute(f"{name}_computation") for name in ("true", "false")]
            listed = instruction.attribute("branch_computations") or ""
            return [(name, 1) for name in (*branches, *_NAME.findall(listed)) if name]
        called = instruction.attribute("to_apply" if opcode == "call" else "calls")
        return [(called, 1)] if called else []

    def _trips(self, loop: Instruction, condition: str) -> int:
        """Runs of a loop: as XLA states them, or from `i < N`, with i counting up from 0."""
        stated = _TRIPS.search(loop.attributes)
        if stated:
            return int(stated[1])
        inside = self.computations.get(condition)
        test = inside.instructions[inside.root] if inside else None
        if inside and test and test.opcode == "compare" and "direction=LT" in test.attributes:
            bound = inside.instructions.get(test.operands[1])
            if bound and bound.opcode == "constant" and bound.literal.isdigit():
                return int(bound.literal)
        self.unknown_loops.append(loop.name)
        return 1


def _instruction(name: str, text: str) -> Instruction:
    text = _COMMENT.sub("", text)
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    end = _closing(text, start)
    inside = text[start + 1 : end - 1]
    operands = () if text.startswith("constant(") else tuple(_NAME.findall(inside))
    return Instruction(name, shapes(kind), text[:start], operands, inside.strip(), text[end:])


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type, those of a tuple one after another."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(memory[1]) if memory else 0))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Just past the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced parentheses in the program's text: {text[:80]!r}")
