"""PyTorch checkpoints (.pth, .pt, .pth.tar), read without torch; no file can run code.

torch has two forms. The zip form (since 1.6): a pickle `data.pkl`, and an entry `data/KEY` for
each storage. The legacy form: five pickles one after the other (a magic number, the version, facts
about the machine, the object, the keys of the storages) and the storages' raw data.
Source: PyTorch, torch/serialization.py (`_load`, `_legacy_load`).
"""

import mmap
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax.weights.torch_globals import Foreign, Global, UnreadObject, refuse_unknown
from vit_jax.weights.torch_pickle import MAX_LENGTH, read_pickle
from vit_jax.weights.torch_tensors import NumpyArray, NumpyDType, Storage, Tensor, is_count
from vit_jax.weights.torch_zip import ZipEntry, read_directory

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

# Of what a file describes.
MAX_DEPTH = 64
MAX_NODES = 4_000_000
MAX_COPIES = 4  # the tensors' bytes in relation to the file's
FREE_BYTES = 2**26

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})
_SETS = frozenset({set, frozenset})  # of scalars


def read_torch_file(path: str | os.PathLike, *, verify: bool = True) -> Any:
    """What `torch.save` wrote, as nested plain containers with NumPy arrays for tensors.

    The file is not trusted: names of classes and functions in it are looked up in a fixed table of
    what weights consist of, and nothing is imported or called. Time and memory are bounded.

    Arrays are read-only views of the mapped file, which must not be changed in place while they
    live (to replace it is fine). Parameters are their arrays,
    bfloat16 is `ml_dtypes.bfloat16`, an OrderedDict or argparse.Namespace a dict, a torch.Size a
    tuple, a dtype, device or path a string; NumPy's numbers and arrays stay. Of an object of
    another class only "an object of CLASS" is left, an `UnreadObject`, unless it is a kind of dict;
    one that is made by a call is refused. Tensors that share a storage share memory.

    Args:
      path: a file in either of torch's forms, whatever its name.
      verify: compare the tensors' bytes with the checksums of the zip form, which reads the whole
        file (those of the pickle always are; the legacy form has no checksums). Without it nothing
        is read before it is used.

    Raises:
      ValueError: no such file, no PyTorch file, a damaged one, one that names anything that is no
        part of weights (the message says what), or one that describes more than it holds.
    """
    if not Path(path).is_file():
        raise ValueError(f"no PyTorch file {str(path)!r}")
    try:
        return _read(Path(path), verify)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be read as a PyTorch file: {error}") from error


def _read(path: Path, verify: bool) -> Any:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("it is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] == b"PK\x03\x04":
        root = _read_zip(data, verify)
    elif data[257:262] == b"ustar":
        raise ValueError("it is a tar file of torch before 0.1.10: load and save it with torch")
    else:
        root = _read_legacy(data)
    return to_plain(root, len(data))


def read_torch_entry(path: str | os.PathLike, name: str, max_bytes: int) -> bytes | None:
    """A further entry of a file in torch's zip form; None where there is none.

    Args:
      path: the file.
      name: of the entry, beside `data.pkl`.
      max_bytes: that it may have.

    Raises:
      ValueError: the file or the entry is damaged, or the entry larger.
    """
    with Path(path).open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    entries = read_directory(data)
    root = _root_of(entries)
    return _entry(data, entries, root + name, max_bytes) if root + name in entries else None


class _Storages:
    """The storages that a pickle refers to, each made once."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def find(self, identity: tuple) -> Storage:
        """From `("storage", class, key, location, number of elements[, view])`."""
        if len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("the file refers to something outside the pickle that is no storage")
        _, kind, key, _, numel = identity[:5]
        if isinstance(kind, Global):
            refuse_unknown(kind)
        if not (
            isinstance(kind, Global) and kind.dtype is not None and kind.name[-7:] == "Storage"
        ):
            raise ValueError("the file has a storage of no type that is known here")
        if not (isinstance(key, str) and is_count(numel)):
            raise ValueError("the file has a storage without a proper key or number of elements")
        if key not in self.found:
            self.found[key] = self.new(Storage(key, kind.dtype, numel))
        storage = self.found[key]
        if (storage.dtype, storage.numel) != (kind.dtype, numel):
            raise ValueError(f"the file describes storage {key[:40]!r} in two ways")
        view = identity[5] if len(identity) == 6 else None
        return storage if view is None else self.view(storage, view)

    def new(self, storage: Storage) -> Storage:
        return storage

    def view(self, storage: Storage, view: Any) -> Storage:
        if not (type(view) is tuple and len(view) == 3 and all(map(is_count, view[1:]))):
            raise ValueError(f"the file has a damaged view of storage {storage.key!r}")
        return storage.part(view[1], view[2])


# --- the zip form ---


class _ZipStorages(_Storages):
    def __init__(self, data: mmap.mmap, entries: dict[str, ZipEntry], root: str) -> None:
        super().__init__()
        self.raw = np.frombuffer(data, np.uint8)
        self.entries = entries
        self.root = root
        self.big_endian = False
        self.used: list[ZipEntry] = []

    def new(self, storage: Storage) -> Storage:
        name = f"{self.root}data/{storage.key}"
        if name not in self.entries:
            raise ValueError(f"the file has no data for storage {storage.key[:40]!r}")
        entry = self.entries[name]
        self.used.append(entry)
        storage.fill(self.raw[entry.start : entry.end], big_endian=self.big_endian)
        return storage

    def verify(self) -> None:
        """Compares the checksums, in several threads: they take longer than torch's reading."""

        def check(entry: ZipEntry) -> None:
            _check_crc(entry, self.raw[entry.start : entry.end].data)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(check, self.used))  # raises the first error


def _check_crc(entry: ZipEntry, raw: bytes | memoryview) -> None:
    # torch writes 0 where it was told not to compute them (set_crc32_options).
    if entry.crc != 0 and zlib.crc32(raw) != entry.crc:
        raise ValueError(f"zip entry {entry.name!r} is damaged: its checksum is another")


def _root_of(entries: dict[str, ZipEntry]) -> str:
    """The folder of all entries, with its slash."""
    roots = [name[:-8] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError(
            "it is a zip file, but not of torch.save: wanted one entry NAME/data.pkl, found "
            f"{len(roots)}"
        )
    return roots[0]


def _entry(data: mmap.mmap, entries: dict[str, ZipEntry], name: str, max_bytes: int) -> bytes:
    entry = entries[name]
    if entry.size > max_bytes:
        raise ValueError(f"zip entry {entry.name!r} is of {entry.size:,} bytes")
    raw = data[entry.start : entry.end]
    _check_crc(entry, raw)
    return raw


def _read_zip(data: mmap.mmap, verify: bool) -> Any:
    entries = read_directory(data)
    root = _root_of(entries)
    if f"{root}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program: save its state_dict() with torch.save")
    storages = _ZipStorages(data, entries, root)
    if f"{root}byteorder" in entries:
        order = _entry(data, entries, f"{root}byteorder", 64)
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order!r}: wanted little or big")
        storages.big_endian = order == b"big"
    pickle = _entry(data, entries, f"{root}data.pkl", MAX_LENGTH)
    result, _ = read_pickle(pickle, 0, storages.find)
    if verify:
        storages.verify()
    return result


# --- the legacy form ---


def _no_storage(identity: tuple) -> Any:
    raise ValueError("the file refers to a storage before its object begins")


def _read_legacy(data: mmap.mmap) -> Any:
    position = 0
    heading = []
    wanted = "it is no zip file, and does not begin with the magic number of torch's older form"
    for _ in range(3):
        try:
            value, position = read_pickle(data, position, _no_storage)
        except ValueError as error:
            raise ValueError(f"{wanted}: {error}") from error
        heading.append(value)
        if heading[0] != MAGIC_NUMBER:
            raise ValueError(wanted)
    if heading[1] != _PROTOCOL_VERSION:
        raise ValueError(f"its form is of another version than {_PROTOCOL_VERSION}")
    storages = _Storages()
    result, position = read_pickle(data, position, storages.find)
    keys, position = read_pickle(data, position, _no_storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    if len(set(keys)) != len(keys) or set(keys) != storages.found.keys():
        raise ValueError("its list of storages is not that of its tensors")
    raw = np.frombuffer(data, np.uint8)
    for key in keys:
        storage = storages.found[key]
        start = position + 8
        if start + storage.nbytes > len(data):
            raise ValueError(f"it is cut off: the data of storage {key[:40]!r} is not whole")
        numel = int.from_bytes(data[position:start], "little")
        if numel != storage.numel:
            raise ValueError(
                f"storage {key[:40]!r} has {numel} elements in the data, {storage.numel} in the "
                "pickle"
            )
        position = start + storage.nbytes
        # Little-endian on every machine, whatever the facts about the machine say: torch swaps.
        storage.fill(raw[start:position], big_endian=False)
    return result


class _Plain(NamedTuple):
    """A finished object: its value, and what it measures as a tree."""

    source: Any  # kept alive: finished objects are found by identity
    value: Any
    depth: int
    nodes: int
    nbytes: int


def to_plain(root: Any, file_bytes: int) -> Any:
    """The object with dicts, lists, tuples, sets, scalars and NumPy arrays in place of all else.

    Objects that the pickle shares stay shared, so a small file can describe a large tree, and a
    tensor with strides of 0 a large array. The bounds hold for the tree as one who walks it sees
    it: `MAX_DEPTH` levels, `MAX_NODES` objects, and arrays of `MAX_COPIES` times the file's bytes
    (and `FREE_BYTES` more).

    Raises:
      ValueError: a bound is passed, a container holds itself, or an array is not whole.
    """
    if isinstance(root, Foreign) and not root:
        raise ValueError(f"it is an object of {root.name}: save its state_dict() with torch.save")
    max_bytes = MAX_COPIES * file_bytes + FREE_BYTES
    done: dict[int, _Plain] = {}
    unfinished: set[int] = set()
    waiting = [root]
    while waiting:  # a walk without recursion: the depth is not known to be bounded yet
        node = waiting[-1]
        if id(node) in done:
            waiting.pop()
            continue
        items = _items(node)
        missing = [i for i in items if type(i) not in _SCALARS and id(i) not in done]
        if missing:
            if id(node) in unfinished:
                raise ValueError("the file describes a container that holds itself")
            unfinished.add(id(node))
            waiting += missing
            continue
        waiting.pop()
        done[id(node)] = _finish(node, items, done, max_bytes)
    return done[id(root)].value


def _items(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []


def _finish(node: Any, items: list[Any], done: dict[int, _Plain], max_bytes: int) -> _Plain:
    """The object's value from those of its items, and its measures, held to the bounds."""
    children = [done[id(item)] for item in items if type(item) not in _SCALARS]
    is_unread = isinstance(node, Foreign) and not node
    if isinstance(node, dict | list | tuple) and not is_unread:
        values = [item if type(item) in _SCALARS else done[id(item)].value for item in items]
        if isinstance(node, dict):
            value: Any = dict(zip(node, values, strict=True))
        else:
            value = values if isinstance(node, list) else tuple(values)
    else:
        value = _leaf(node)
    depth = 1 + max((child.depth for child in children), default=0)
    nodes = 1 + len(items) - len(children) + sum(child.nodes for child in children)
    nodes += len(node) if type(node) in _SETS else 0
    nbytes = sum(child.nbytes for child in children)
    nbytes += value.nbytes if isinstance(value, np.ndarray) else 0
    if depth > MAX_DEPTH:
        raise ValueError(f"the file nests its containers more than {MAX_DEPTH} deep")
    if nodes > MAX_NODES:
        raise ValueError(f"the file describes more than {MAX_NODES:,} objects")
    if nbytes > max_bytes:
        raise ValueError(
            f"the file describes arrays of {nbytes:,} bytes or more, which is over {MAX_COPIES} "
            "times what it holds"
        )
    return _Plain(node, value, depth, nodes, nbytes)


def _leaf(node: Any) -> Any:
    if isinstance(node, Tensor | Storage):
        return node.array()
    if isinstance(node, Foreign):
        return UnreadObject(f"an object of {node.name}")
    if isinstance(node, Global):
        refuse_unknown(node)
        return node.name
    if isinstance(node, NumpyDType):
        return str(node.dtype())
    if isinstance(node, NumpyArray):
        if node.array is None:
            raise ValueError("the file describes a NumPy array without its data")
        return node.array
    return node
