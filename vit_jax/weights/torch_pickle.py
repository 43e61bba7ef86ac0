"""A small interpreter of pickle, which can make tensors and plain containers and nothing else.

Python's own unpickler imports what a file names and calls it. This one knows the instructions that
move data, and for names the fixed table of `torch_globals`; every other instruction is an error.
What a file can cost is bounded: see the limits below.
Source: `pickletools.py` of CPython, which documents the instructions.
"""

import codecs
import mmap
import struct
from collections.abc import Callable
from types import UnionType
from typing import Any

from vit_jax.weights.torch_globals import (
    Foreign,
    Global,
    find_global,
    key_of,
    refuse_unknown,
    set_state,
)

# Python loads a codec's module at its first use: now, so that reading a file loads nothing.
for _encoding in ("ascii", "latin-1", "utf-8", "raw-unicode-escape"):
    codecs.lookup(_encoding)

MAX_LENGTH = 2**27  # bytes of a pickle; tensors are not in it
_MAX_LINE = 2**20
MAX_INSTRUCTIONS = 500_000  # of a pickle; a ViT-B with its optimizer takes about 20,000
_MAX_INT_BYTES = 32
_FREE_COPIES = 2**20  # bytes

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_EMPTY: dict[bytes, type] = {b"]": list, b"}": dict, b"\x8f": set}
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
# Opcode -> form of the length that goes before, and the encoding (None: bytes).
_STRINGS = {
    b"X": ("<I", "utf-8"),
    b"\x8c": ("<B", "utf-8"),
    b"\x8d": ("<Q", "utf-8"),
    b"U": ("<B", "latin-1"),  # Python 2's strings, text and bytes alike
    b"T": ("<i", "latin-1"),
    b"B": ("<I", None),
    b"C": ("<B", None),
    b"\x8e": ("<Q", None),
    b"\x96": ("<Q", None),
}
_LONGS = {b"\x8a": "<B", b"\x8b": "<i"}
_GETS = {b"h": "<B", b"j": "<I"}
_PUTS = {b"q": "<B", b"r": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_REFUSED = {
    b"P": "PERSID",
    b"S": "STRING",
    b"i": "INST",
    b"o": "OBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"\x97": "NEXT_BUFFER",
    b"\x98": "READONLY_BUFFER",
}


class Cursor:
    """A place in the bytes of a pickle: reads forward, and refuses what is not there."""

    def __init__(self, data: bytes | mmap.mmap, start: int) -> None:
        self.data = data
        self.position = start
        self.end = min(len(data), start + MAX_LENGTH)

    def take(self, length: int) -> bytes:
        if not 0 <= length <= self.end - self.position:
            if self.end < len(self.data) and length >= 0:
                raise ValueError(f"the pickle is longer than {MAX_LENGTH:,} bytes")
            raise ValueError(
                f"the pickle is cut off at byte {self.position}: {length} bytes wanted, "
                f"{self.end - self.position} left"
            )
        self.position += length
        return self.data[self.position - length : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, encoding: str = "utf-8", max_length: int = _MAX_LINE) -> str:
        stop = min(self.end, self.position + max_length)
        end = self.data.find(b"\n", self.position, stop)
        if end < 0:
            raise ValueError(f"the pickle is cut off at byte {self.position}: a line has no end")
        return self.text(self.take(end + 1 - self.position)[:-1], encoding)

    def text(self, raw: bytes, encoding: str) -> str:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            raise ValueError(
                f"the pickle is damaged before byte {self.position}: a text is not {encoding}"
            ) from None


def read_pickle(
    data: bytes | mmap.mmap, start: int, find_storage: Callable[[tuple], Any]
) -> tuple[Any, int]:
    """Runs the pickle that begins at byte `start`.

    Args:
      find_storage: from a persistent id (a tuple, not checked further) to what it stands for.

    Returns:
      The object, of containers, scalars and the classes of `torch_globals` and `torch_tensors`, and
      the byte after the pickle. Objects may be shared, and a list may hold itself.

    Raises:
      ValueError: the pickle is damaged, asks for something that is no part of weights, or is
        beyond the limits.
    """
    machine = _Machine(data, start, find_storage)
    try:
        result = machine.run()
    except IndexError:
        raise ValueError(
            f"the pickle is damaged at byte {machine.position}: an instruction finds no operand"
        ) from None
    return result, machine.position


def _operation(*opcodes: bytes) -> Callable:
    """Registers a method as what the opcodes do; it gets its own opcode."""

    def register(method: Callable) -> Callable:
        _OPERATIONS.update((opcode[0], (method, opcode)) for opcode in opcodes)
        return method

    return register


_OPERATIONS: dict[int, tuple[Callable, bytes]] = {}


class _Machine(Cursor):
    """The stack machine. `stack` is the part above the last mark, `marked` the parts below."""

    def __init__(self, data: bytes | mmap.mmap, start: int, find_storage: Callable) -> None:
        super().__init__(data, start)
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.work = 0
        self.copied = 0
        self.max_copied = 2 * (self.end - start) + _FREE_COPIES

    def run(self) -> Any:
        while True:
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            operation = _OPERATIONS.get(code[0])
            if operation is None:
                raise ValueError(
                    f"byte {self.position - 1} of the file's pickle is no pickle instruction"
                )
            self.charge(1)
            operation[0](self, operation[1])

    def charge(self, work: int) -> None:
        self.work += work
        if self.work > MAX_INSTRUCTIONS:
            raise ValueError(f"the pickle takes more than {MAX_INSTRUCTIONS:,} instructions")

    def charge_arguments(self, arguments: Any) -> None:
        """Counts what a call may copy: the same long list or text can be an argument many times."""
        if isinstance(arguments, tuple | list):
            for argument in arguments:
                if isinstance(argument, str | bytes):
                    self.copied += len(argument)
                elif isinstance(argument, list | tuple | dict | set | frozenset):
                    self.charge(len(argument))
        elif isinstance(arguments, dict):
            self.charge(len(arguments))
        if self.copied > self.max_copied:
            raise ValueError("the pickle makes more bytes than it holds")

    # --- the stack ---

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def top(self, kind: type | UnionType, doing: str) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"the pickle {doing} a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"the pickle is damaged: it has no object {index} to repeat")
        self.stack.append(self.memo[index])

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, "sets items of")
        if len(items) % 2:
            raise ValueError("the pickle is damaged: a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key_of(key)] = value

    # --- instructions ---

    @_operation(*_CONSTANTS)
    def constant(self, code: bytes) -> None:
        self.stack.append(_CONSTANTS[code])

    @_operation(*_EMPTY)
    def empty(self, code: bytes) -> None:
        self.stack.append(_EMPTY[code]())

    @_operation(*_NUMBERS)
    def fixed_number(self, code: bytes) -> None:
        self.stack.append(self.number(_NUMBERS[code]))

    @_operation(*_LONGS)
    def long_number(self, code: bytes) -> None:
        length = self.number(_LONGS[code])
        if length > _MAX_INT_BYTES:
            raise ValueError(f"the pickle holds an int of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    @_operation(b"I", b"L", b"F")
    def written_number(self, code: bytes) -> None:
        line = self.line()
        if code == b"I" and line in ("00", "01"):
            self.stack.append(line == "01")
            return
        if len(line) > 64:
            raise ValueError("the pickle holds a number of more than 64 characters")
        try:
            number = float(line) if code == b"F" else int(line.removesuffix("L"))
        except ValueError:
            raise ValueError(f"the pickle holds {line!a} as a number") from None
        self.stack.append(number)

    @_operation(*_STRINGS)
    def string(self, code: bytes) -> None:
        form, encoding = _STRINGS[code]
        raw = self.take(self.number(form))
        self.stack.append(raw if encoding is None else self.text(raw, encoding))

    @_operation(b"V")
    def written_string(self, code: bytes) -> None:
        self.stack.append(self.line("raw-unicode-escape", self.end))

    @_operation(b"\x80", b"\x95")
    def heading(self, code: bytes) -> None:
        """The protocol's number, and the length of a frame: neither changes what follows."""
        if code == b"\x95":
            self.number("<Q")
        elif (protocol := self.number("<B")) > 5:
            raise ValueError(f"the pickle is of protocol {protocol}: 0 to 5 are known")

    @_operation(b"(")
    def mark(self, code: bytes) -> None:
        self.marked.append(self.stack)
        self.stack = []

    @_operation(b"0", b"1", b"2")
    def shuffle(self, code: bytes) -> None:
        if code == b"0":
            self.stack.pop()
        elif code == b"1":
            self.pop_mark()
        else:
            self.stack.append(self.stack[-1])

    @_operation(*_GETS, b"g")
    def get(self, code: bytes) -> None:
        self.recall(self.number(_GETS[code]) if code in _GETS else self.written_index())

    @_operation(*_PUTS, b"p", b"\x94")
    def put(self, code: bytes) -> None:
        if code == b"\x94":
            self.remember(len(self.memo))
        else:
            self.remember(self.number(_PUTS[code]) if code in _PUTS else self.written_index())

    def written_index(self) -> int:
        line = self.line()
        if not (line.isascii() and line.isdigit() and len(line) <= 10):
            raise ValueError(f"the pickle holds {line[:40]!a} as the number of an object")
        return int(line)

    @_operation(*_TUPLES)
    def short_tuple(self, code: bytes) -> None:
        size = _TUPLES[code]
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    @_operation(b"t", b"l", b"\x91")
    def marked_items(self, code: bytes) -> None:
        items = self.pop_mark()
        if code == b"\x91":
            self.stack.append(frozenset(map(key_of, items)))
        else:
            self.stack.append(tuple(items) if code == b"t" else items)

    @_operation(b"d")
    def marked_dict(self, code: bytes) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    @_operation(b"a", b"e")
    def append(self, code: bytes) -> None:
        items = [self.stack.pop()] if code == b"a" else self.pop_mark()
        self.top(list | Foreign, "appends to").extend(items)

    @_operation(b"\x90")
    def add_items(self, code: bytes) -> None:
        items = self.pop_mark()
        self.top(set, "adds items to").update(map(key_of, items))

    @_operation(b"s", b"u")
    def set_item(self, code: bytes) -> None:
        if code == b"u":
            items = self.pop_mark()
        else:
            value, key = self.stack.pop(), self.stack.pop()
            items = [key, value]
        self.set_items(items)

    @_operation(b"c", b"\x93")
    def name(self, code: bytes) -> None:
        if code == b"c":
            module, name = self.line(), self.line()
        else:
            name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(find_global(module, name))

    @_operation(b"R", b"\x81")
    def call(self, code: bytes) -> None:
        """A call of a known name, or a new object: both are what the table makes."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Global) and not function.is_known and code == b"\x81":
            self.stack.append(Foreign(function.name))
            return
        if isinstance(function, Global):
            refuse_unknown(function)
        if not (isinstance(function, Global) and function.make and type(arguments) is tuple):
            what = function.name if isinstance(function, Global) else type(function).__name__
            raise ValueError(f"the file calls {what}, which weights do not do: it is not read")
        self.charge_arguments(arguments)
        self.stack.append(function.make(arguments))

    @_operation(b"b")
    def build(self, code: bytes) -> None:
        state = self.stack.pop()
        self.charge_arguments(state)
        set_state(self.stack[-1], state)

    @_operation(b"Q")
    def persistent(self, code: bytes) -> None:
        identity = self.stack.pop()
        if type(identity) is not tuple:
            raise ValueError("the file refers to something outside the pickle that is no storage")
        self.stack.append(self.find_storage(identity))

    @_operation(*_REFUSED)
    def refuse(self, code: bytes) -> None:
        named = f" of {self.line()}.{self.line()}" if code == b"i" else ""
        raise ValueError(
            f"the file uses the pickle instruction {_REFUSED[code]}{ascii(named)[1:-1]}, which is "
            "no part of weights: it is not read"
        )
