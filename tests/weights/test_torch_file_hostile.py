"""PyTorch files that lie, that cost too much, or that would run code."""

import collections
import contextlib
import io
import itertools
import os
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from tests.commands import run_alone
from vit_jax.weights import torch_pickle
from vit_jax.weights.torch_file import MAGIC_NUMBER, read_torch_file

FLOATS = np.arange(4, dtype="<f4").tobytes()  # of storage "0"


def zip_file(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", b"little")
        for key, raw in (storages if storages is not None else {"0": FLOATS}).items():
            archive.writestr(f"a/data/{key}", raw)
    return path


def legacy_file(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    storages = storages if storages is not None else {"0": FLOATS}
    parts = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, {"little_endian": True})]
    parts += [pickled, pickle.dumps(sorted(storages), 2)]
    for key in sorted(storages):
        parts += [struct.pack("<q", len(storages[key]) // 4), storages[key]]
    path.write_bytes(b"".join(parts))
    return path


WRITERS = (zip_file, legacy_file)
FORMS = pytest.mark.parametrize("write", WRITERS, ids=["zip", "legacy"])
Write = Callable[..., Path]


@contextlib.contextmanager
def refused(message: str, case: str = "") -> Iterator[None]:
    """One clear ValueError, soon; what is not refused is of the `case`."""
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            yield
    except BaseException as error:
        error.add_note(case)
        raise
    assert time.process_time() - start < 10
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)


# --- code ---

PLANTED = "planted"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


COMMAND = f"touch {PLANTED}"
SYSTEM = b"cos\nsystem\n"
ARGUMENTS = text(COMMAND) + b"\x85"
STACKED = text("os") + text("system") + b"\x93"
KNOWN = b"ccollections\nOrderedDict\n"
# By the instruction that would run it. Those that Python's unpickler runs as they are: `RUNS`.
PAYLOADS = {
    "REDUCE": b"\x80\x02" + SYSTEM + ARGUMENTS + b"R.",
    "REDUCE protocol 0": b"cos\nsystem\n(V" + COMMAND.encode() + b"\ntR.",
    "STACK_GLOBAL": b"\x80\x04" + STACKED + ARGUMENTS + b"R.",
    "INST": b"(V" + COMMAND.encode() + b"\nios\nsystem\n.",
    "OBJ": b"(" + SYSTEM + text(COMMAND) + b"o.",
    "NEWOBJ": b"\x80\x02" + SYSTEM + ARGUMENTS + b"\x81.",
    "NEWOBJ_EX": b"\x80\x04" + SYSTEM + ARGUMENTS + b"}\x92.",
    "GLOBAL": b"\x80\x02" + SYSTEM + b".",
    "GLOBAL eval": b"cbuiltins\neval\n" + text(f"open({PLANTED!r}, 'w')") + b"\x85R.",
    "GLOBAL getattr": b"cbuiltins\ngetattr\n" + SYSTEM + text("x") + b"\x86R.",
    "GLOBAL dotted": (
        b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + ARGUMENTS + b"R."
    ),
    "GLOBAL of torch": b"ctorch.hub\nload\n" + ARGUMENTS + b"R.",
    "GLOBAL of numpy": b"cnumpy.testing._private.utils\nrunstring\n" + ARGUMENTS + b"R.",
    "BUILD": (
        b"\x80\x02" + KNOWN + b")R}" + text("__setstate__") + SYSTEM + b"s" + ARGUMENTS + b"b."
    ),
    "BUILD on a class": b"cbuiltins\nobject\n}" + text("x") + text("y") + b"sb.",
    "EXT1": b"\x80\x02\x82\xf0" + ARGUMENTS + b"R.",
    "EXT2": b"\x80\x02\x83\xf0\x00" + ARGUMENTS + b"R.",
    "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00" + ARGUMENTS + b"R.",
    "PERSID": b"Pos.system\n.",
    "BINPERSID": b"\x80\x02" + text("module") + SYSTEM + ARGUMENTS + b"\x87Q.",
    "BINPERSID of text": b"\x80\x02" + text("os.system") + b"Q.",
    "storage class": text("storage") + SYSTEM + b"\x86Q.",
    "known class called by OBJ": b"(" + KNOWN + b"o.",
    "known class called by INST": b"(icollections\nOrderedDict\n.",
    "known class called by NEWOBJ_EX": b"\x80\x04" + KNOWN + b")}\x92.",
    "call of a type": b"cbuiltins\nint\n" + text("1") + b"\x85R.",
    "call of a string": text("os.system") + ARGUMENTS + b"R.",
    "tensor with a foreign function": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + SYSTEM + b"ctorch\nTensor\n" + ARGUMENTS
        + b"}tR."
    ),
    "tensor with another known function": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + KNOWN + b"ctorch\nTensor\n)}tR."
    ),
    "default factory": b"ccollections\ndefaultdict\n" + SYSTEM + b"\x85R.",
    "numpy of objects": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01K\x01\x85"
        b"cnumpy\ndtype\n(" + text("O8") + b"\x89\x88tR\x89]" + SYSTEM + ARGUMENTS + b"Ratb."
    ),
}  # fmt: skip
RUNS = [
    "REDUCE", "REDUCE protocol 0", "STACK_GLOBAL", "INST", "OBJ", "GLOBAL eval", "GLOBAL dotted",
]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_payloads_are_live(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler does run them, so that the tests below could fail."""
    monkeypatch.chdir(tmp_path)
    result = pickle.loads(PAYLOADS[name])
    if isinstance(result, io.IOBase):
        result.close()
    assert Path(PLANTED).exists()


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_instruction_runs_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in WRITERS:
        path = write(tmp_path / "a.pth", PAYLOADS[name])
        with refused("cannot be read as a PyTorch file", write.__name__):
            read_torch_file(path)
        assert os.listdir() == ["a.pth"]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_no_code_in_the_heading_of_the_legacy_form(position: int, tmp_path: Path) -> None:
    parts = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, {})]
    parts[position] = PAYLOADS["REDUCE"]
    (tmp_path / "a.pth").write_bytes(b"".join(parts))
    with refused("names os.system"):
        read_torch_file(tmp_path / "a.pth")


class Payload:
    """Runs a command when it is unpickled; the module that a pickle names for it is posix."""

    def __reduce__(self) -> tuple:
        return os.system, (COMMAND,)


@pytest.mark.parametrize("within", ["state dict", "key", "numpy", "parameter", "beside"])
def test_no_object_runs_code(within: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python itself writes it, in each protocol."""
    monkeypatch.chdir(tmp_path)
    obj = {
        "state dict": lambda: {"state_dict": {"weight": Payload()}},
        "key": lambda: {(Payload(), 1): 1},
        "numpy": lambda: {"weight": np.array([Payload()], dtype=object)},
        "parameter": lambda: collections.OrderedDict(a=[1, {2: (Payload(),)}]),
        "beside": lambda: [{"weight": np.ones(2)}, Payload()],
    }[within]()
    names = r"names (posix|nt)\.system, which is no part of weights: it is not read"
    for write, protocol in itertools.product(WRITERS, range(6)):
        path = write(tmp_path / "a.pth", pickle.dumps(obj, protocol))
        what = f"{names}|is of type 'O8', which is no plain number"
        with refused(what, f"{write.__name__}, protocol {protocol}"):
            read_torch_file(path)
        assert os.listdir() == ["a.pth"]


def test_every_instruction_of_pickle_is_settled() -> None:
    """Each is known or refused by name; a new one of a later Python is an error."""
    import pickletools

    known = set(torch_pickle._OPERATIONS) | {ord(".")}
    assert known == {ord(opcode.code) for opcode in pickletools.opcodes}


# --- tensors that lie ---


def tensor(
    shape: tuple = (4,), strides: tuple = (1,), offset: Any = 0, numel: Any = 4, key: str = "0",
    kind: str = "FloatStorage", metadata: Any = None, view: Any = None,
) -> bytes:  # fmt: skip
    """A pickle of {"w": tensor}, by Python's own pickler with torch's names put in."""

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, torch.UntypedStorage):
                return None
            return ("storage", getattr(torch, kind), key, "cpu", numel, view)

    class Tensor:
        def __reduce__(self) -> tuple:
            arguments = (torch.UntypedStorage(0), offset, shape, strides, False, {})
            return _rebuild_tensor_v2, (*arguments, metadata)

    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"w": Tensor()})
    return buffer.getvalue()


@FORMS
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"shape": (5,)}, r"reaches past its end: element 4 of 4, with shape \(5,\)"),
        ({"strides": (2,)}, "reaches past its end"),
        ({"offset": 1}, "reaches past its end"),
        ({"offset": -1}, "must be counts from 0"),
        ({"strides": (-1,)}, "must be counts from 0"),
        ({"shape": (-4,)}, "must be counts from 0"),
        ({"shape": (2.0,)}, "must be counts from 0"),
        ({"shape": (True,)}, "must be counts from 0"),
        ({"shape": (2**62,)}, "must be counts from 0"),
        ({"shape": "4"}, "no tuples"),
        ({"shape": (2**40,), "strides": (0,)}, "arrays of .* bytes or more"),
        ({"shape": (0, 2**46), "strides": (1, 1)}, "absurd shape"),
        ({"shape": (2**30, 2**30), "strides": (0, 0)}, "absurd shape"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "33 dimensions"),
        ({"shape": (2, 2)}, "2 dimensions and 1 strides"),
        ({"numel": 2**40, "shape": (2**40,)}, "cut off|holds 16 bytes"),
        ({"numel": -1}, "number of elements"),
        ({"numel": 3, "shape": (3,)}, "holds 16 bytes|4 elements in the data, 3"),
        ({"numel": 8, "kind": "HalfStorage"}, None),
        ({"numel": 16, "kind": "BoolStorage"}, "other bytes than 0 and 1|16 in the pickle"),
        ({"kind": "QInt8Storage"}, "names torch.QInt8Storage"),
        ({"key": "1"}, "no data for storage '1'|its list of storages"),
        ({"key": "../../etc/passwd"}, "no data for storage|its list of storages"),
        ({"metadata": {"conj": True}}, "conjugate"),
        ({"view": ("1", 2, 3)}, "a view of 3 elements at 2 reaches past the end"),
        ({"view": ("1", 2, 2)}, "reaches past its end: element 3 of 2"),
        ({"view": ("1", -2, 2)}, "a damaged view"),
        ({"view": "1"}, "a damaged view"),
    ],
)
def test_tensors_that_lie(lie: dict, message: str | None, write: Write, tmp_path: Path) -> None:
    if lie.get("kind") in ("BoolStorage", "HalfStorage"):
        lie = lie | {"shape": (lie["numel"],)}
        if write is legacy_file:
            pytest.skip("the helper writes elements of four bytes")
    path = write(tmp_path / "a.pth", tensor(**lie))
    if message is None:
        assert read_torch_file(path)["w"].nbytes == 16
        return
    with refused(message):
        read_torch_file(path)


@FORMS
def test_a_tensor_that_does_not_lie(write: Write, tmp_path: Path) -> None:
    """What the cases above change one thing of."""
    array = read_torch_file(write(tmp_path / "a.pth", tensor()))["w"]
    np.testing.assert_array_equal(array, np.arange(4, dtype=np.float32))


@FORMS
def test_a_storage_that_views_another(write: Write, tmp_path: Path) -> None:
    """As torch wrote them long ago."""
    content = tensor(shape=(2,), view=("1", 1, 2))
    array = read_torch_file(write(tmp_path / "a.pth", content))["w"]
    np.testing.assert_array_equal(array, np.array([1, 2], np.float32))


@FORMS
def test_a_storage_of_two_types(write: Write, tmp_path: Path) -> None:
    value = [tensor(), tensor(kind="IntStorage")]
    parts = [body[body.index(b"c") :].removesuffix(b"s.") for body in value]
    path = write(tmp_path / "a.pth", b"(" + parts[0] + parts[1] + b"t.")
    with refused("describes storage '0' in two ways"):
        read_torch_file(path)


@FORMS
def test_many_views_of_one_storage_are_bounded(write: Write, tmp_path: Path) -> None:
    """100 names of a storage of 4 MiB: a walk that copies each would take 400 MiB."""
    one = tensor(shape=(2**20,), numel=2**20)
    body = one[one.index(b"X\x01\x00\x00\x00w") :].removesuffix(b"s.")
    value = body[body.index(b"c") :]
    parts = [text(f"w{i}") + value for i in range(100)]
    path = write(tmp_path / "a.pth", b"}(" + b"".join(parts) + b"u.", {"0": bytes(2**22)})
    with refused("arrays of .* bytes or more, which is over 4 times"):
        read_torch_file(path)


# --- pickles that cost too much, or are damaged ---


def doubled(levels: int, kind: bytes = b"\x86") -> bytes:
    """A tuple of twice the tuple before, `levels` times: 2 ** levels leaves."""
    return b")" + b"".join(b"2" + kind for _ in range(levels)) + b"."


TOO_MANY = "more than 20,000 instructions"  # the limit that the test sets
PICKLES = {
    "deep list": (b"]" * 5000 + b"a" * 4999 + b".", "nests its containers more than 64"),
    "deep tuple": (b")" + b"\x85" * 5000 + b".", "nests its containers more than 64"),
    "deep dict": (b"}" + b"K\x00}" * 1000 + b"s" * 1000 + b".", "nests its containers"),
    "doubled tuples": (doubled(60), "describes more than 4,000,000 objects"),
    "doubled key": (b"}" + doubled(60)[:-1] + b"K\x00s.", "has a key .* of type tuple"),
    "doubled set item": (b"\x8f(" + doubled(60)[:-1] + b"\x90.", "an item\\) of type tuple"),
    "itself": (b"]q\x00h\x00a.", "a container that holds itself"),
    "itself, in a dict": (b"}q\x00(K\x00]h\x00au.", "a container that holds itself"),
    "too many instructions": (b"N0" * 11_000 + b"N.", TOO_MANY),
    "many sets": (b"\x8f" * 21_000 + b".", TOO_MANY),
    "marks": (b"(" * 21_000 + b".", TOO_MANY),
    "copied lists": (
        b"](" + b"N" * 1000 + b"eq\x000" + b"c__builtin__\nset\nh\x00\x85R0" * 100 + b"N.",
        TOO_MANY,
    ),
    "copied bytes": (
        b"V" + b"x" * 10**6 + b"\nq\x000" + b"c_codecs\nencode\nh\x00Vlatin1\n\x86R" * 1000 + b".",
        "makes more bytes than it holds",
    ),
    "repeated set": (
        b"](\x8f(" + b"".join(b"K" + bytes([i]) for i in range(256)) + b"\x90q\x00"
        + b"h\x00" * 17_000 + b"e.",
        "describes more than 4,000,000 objects",
    ),
    "storage of no storage class": (
        b"(" + text("storage") + b"ctorch\nfloat32\n" + text("0") + text("cpu") + b"K\x00tQ.",
        "a storage of no type that is known",
    ),
    "long int": (b"\x8b\x00\x00\x10\x00" + bytes(2**20) + b".", "an int of 1048576 bytes"),
    "written int": (b"I" + b"9" * 5000 + b"\n.", "a number of more than 64 characters"),
    "int that is none": (b"Ix\n.", "holds 'x' as a number"),
    "huge string": (b"\x8d" + b"\xff" * 8 + b"x.", "cut off"),
    "negative length": (b"T\xff\xff\xff\xffx.", "cut off"),
    "no text": (b"X\x02\x00\x00\x00\xff\xfe.", "not utf-8"),
    "no end of line": (b"I12", "a line has no end"),
    "no end": (b"]", "cut off"),
    "nothing": (b".", "finds no operand"),
    "no operand": (b"a.", "finds no operand"),
    "no mark": (b"N0t.", "finds no operand"),
    "no pair": (b"\x86.", "finds no operand"),
    "no memo": (b"h\x07.", "no object 7 to repeat"),
    "written memo": (b"g-1\n.", "as the number of an object"),
    "no instruction": (b"\xfe.", "no pickle instruction"),
    "protocol": (b"\x80\x09N.", "protocol 9"),
    "append to a dict": (b"}Na.", "appends to a dict"),
    "item of a list": (b"]NNs.", "sets items of a list"),
    "items of a list as a set": (b"](N\x90.", "adds items to a list"),
    "odd items": (b"}(Nu.", "a key without a value"),
    "key of a list": (b"}]Ns.", "has a key .* of type list"),
    "long key": (b"}V" + b"x" * 5000 + b"\nNs.", "has a key"),
    "long int key": (b"}L" + b"9" * 40 + b"L\nNs.", "has a key"),
    "state of a list": (b"]}b.", "sets the state of a list"),
    "bytes as text": (b"c_codecs\nencode\nV\\u1234\nVlatin1\n\x86R.", "not Latin-1"),
    "other encoding": (b"c_codecs\nencode\nVx\nVzlib\n\x86R.", "other arguments"),
    "OrderedDict of an int": (KNOWN + b"K\x05\x85R.", "other arguments"),
    "array without data": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR.",
        "without its data",
    ),
    "array of another size": (
        b"cnumpy._core.numeric\n_frombuffer\n(C\x03abccnumpy\ndtype\nVf4\n\x85RK\x01\x85VC\ntR.",
        "has 3 bytes of data",
    ),
    "structured type": (b"cnumpy\ndtype\nVf4,O\n\x85R.", "no plain number"),
}  # fmt: skip


# Those that take longest are of one reader of pickles in both forms.
LONG = ("deep list", "deep tuple", "deep dict", "too many instructions", "many sets", "marks")
LONG += ("copied lists", "repeated set")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param(name, write, marks=marks, id=f"{name}-{write.__name__}")
        for name, write in itertools.product(PICKLES, WRITERS)
        for marks in [[pytest.mark.slow] if name in LONG and write is legacy_file else []]
        if write is zip_file or name not in ("no end", "no end of line")  # another pickle follows
    ],
)
def test_bombs_and_damage(
    name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_INSTRUCTIONS", 20_000)
    content, message = PICKLES[name]
    with refused(message):
        read_torch_file(write(tmp_path / "a.pth", content, {}))


# The costliest that the limits let through or stop, each in turn.
FULL_SIZE = {
    "sets": b"(" + b"\x8f" * 490_000 + b"t.",
    "lists": b"(" + b"]" * 490_000 + b"t.",
    "instructions": b"N0" * 10_000_000 + b"N.",
    "deep": b")" + b"\x85" * 490_000 + b".",
    "copied text": PICKLES["copied bytes"][0],
    "wide text": b"X"
    + struct.pack("<I", 2**26)
    + "\U0001f600".encode()
    + b"x" * (2**26 - 4)
    + b".",
    "doubled": PICKLES["doubled tuples"][0],
}
READ = """
import json, resource, sys, time
from vit_jax.weights.torch_file import read_torch_file
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        read_torch_file(path)
    except ValueError:
        pass
    assert time.process_time() - start < 10, path
"""


@pytest.mark.skipif(sys.platform != "linux", reason="its memory limit is Linux's")
@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [[name for name in FULL_SIZE if name != "lists"], ["lists"]],
    ids=["all others", "lists"],
)
def test_bombs_at_full_size(names: list[str], tmp_path: Path) -> None:
    """In a process whose memory is bounded to 2 GiB, each in less than 10 seconds."""
    files = [str(zip_file(tmp_path / f"{name}.pth", FULL_SIZE[name])) for name in names]
    run_alone("-c", READ, *files, timeout=None, variables={"OPENBLAS_NUM_THREADS": "1"})


# --- zip files and legacy files that lie ---

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def edit(data: bytes, signature: bytes, index: int, offset: int, raw: bytes) -> bytes:
    """The zip file with bytes of its `index`-th header of a kind replaced."""
    place = -1
    for _ in range(index + 1):
        place = data.index(signature, place + 1)
    return data[: place + offset] + raw + data[place + offset + len(raw) :]


def four(number: int) -> bytes:
    return struct.pack("<I", number)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([(CENTRAL, 2, 24, four(2**31)), (CENTRAL, 2, 20, four(2**31))], "in its own header"),
        ([(CENTRAL, 2, 24, four(15)), (CENTRAL, 2, 20, four(15))], "of 15 bytes in the directory"),
        ([(CENTRAL, 2, 24, four(15))], "is compressed"),
        ([(CENTRAL, 2, 24, four(2**32 - 1))], "does not say its size"),
        ([(CENTRAL, 2, 10, b"\x08\x00")], "is compressed: PyTorch stores"),
        ([(CENTRAL, 2, 8, b"\x01\x00")], "is encrypted"),
        ([(CENTRAL, 2, 42, four(2**31))], "lies outside the file"),
        ([(CENTRAL, 2, 42, four(0))], "is not where the directory says"),
        ([(LOCAL, 2, 26, b"\x09\x00")], "is not where the directory says"),
        ([(LOCAL, 2, 28, b"\xff\xff")], "past the end of the data"),
        ([(CENTRAL, 2, 28, b"\xff\x00")], "directory is damaged"),
        ([(END, 0, 10, b"\x09\x00"), (END, 0, 8, b"\x09\x00")], "within|cut off|damaged"),
        ([(END, 0, 10, b"\x02\x00"), (END, 0, 8, b"\x02\x00")], "of another size"),
        ([(END, 0, 16, four(2**31))], "does not lie within the file"),
        ([(END, 0, 12, four(2**31))], "does not lie within the file"),
        ([(END, 0, 20, b"\x01\x00")], "does not end where"),
        ([(END, 0, 4, b"\x01\x00")], "one of several parts"),
    ],
)
def test_zip_directories_that_lie(edits: list, message: str, tmp_path: Path) -> None:
    path = zip_file(tmp_path / "a.pth", tensor())
    data = path.read_bytes()
    for change in edits:
        data = edit(data, *change)
    path.write_bytes(data)
    with refused(message):
        read_torch_file(path)


def test_overlapping_entries(tmp_path: Path) -> None:
    """An entry within another: how a small zip file unpacks to a large one."""
    inner = LOCAL + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, 4, 4, 8, 0) + b"a/data/1" + b"data"
    path = zip_file(tmp_path / "a.pth", b"N.", {"0": inner, "1": b"data"})
    data = path.read_bytes()
    path.write_bytes(edit(data, CENTRAL, 3, 42, four(data.index(inner))))
    with refused("'a/data/0' and 'a/data/1' overlap"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_named_twice(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "a.pth", tensor())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", FLOATS)
    with refused("two entries 'a/data/0'"):
        read_torch_file(path)


def test_compressed_entries(tmp_path: Path) -> None:
    """A bomb is refused before a byte of it is unpacked."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"N" * 10**7 + b".")
    with refused("'a/data.pkl' is compressed"):
        read_torch_file(path)


def test_many_entries(tmp_path: Path) -> None:
    """A directory of a million: its headers all point to the same place."""
    name = b"a/data.pkl"
    central = CENTRAL + struct.pack("<6H3I5H2I", *(0,) * 9, len(name), *(0,) * 6) + name
    local = LOCAL + struct.pack("<5H3I2H", *(0,) * 8, len(name), 0) + name
    count = 60_000
    directory = central * count
    end = END + struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(local), 0)
    (tmp_path / "a.pth").write_bytes(local + directory + end)
    with refused("two entries"):
        read_torch_file(tmp_path / "a.pth")


@FORMS
def test_every_truncation_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", tensor())
    data = path.read_bytes()
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cannot be read as a PyTorch file"):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("keys", "numel", "message"),
    [
        (["0"], 5, "5 elements in the data, 4 in the pickle"),
        (["0"], -1, "elements in the data, 4 in the pickle"),
        ([], 4, "not that of its tensors"),
        (["0", "0"], 4, "not that of its tensors"),
        (["0", "1"], 4, "not that of its tensors"),
        ([["0"]], 4, "list of storages is damaged"),
        ("0", 4, "list of storages is damaged"),
    ],
)
def test_legacy_storages_that_lie(keys: Any, numel: int, message: str, tmp_path: Path) -> None:
    heading = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, {})]
    parts = [*heading, tensor(), pickle.dumps(keys, 2), struct.pack("<q", numel), FLOATS]
    (tmp_path / "a.pth").write_bytes(b"".join(parts))
    with refused(message):
        read_torch_file(tmp_path / "a.pth")


def test_legacy_version(tmp_path: Path) -> None:
    heading = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1000, {})]
    (tmp_path / "a.pth").write_bytes(b"".join([*heading, tensor()]))
    with refused("another version than 1001"):
        read_torch_file(tmp_path / "a.pth")


def test_codecs_are_loaded_before_a_file_is_read() -> None:
    """Python imports a codec's module at its first use, which is not to be while a file is read."""
    code = (
        "import sys, vit_jax.weights.torch_pickle; "
        "assert 'encodings.raw_unicode_escape' in sys.modules"
    )
    run_alone("-c", code)
