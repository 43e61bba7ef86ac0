"""Values that are wrong, odd or hostile, and damage of files and folders."""

import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

from tests.weights.mutate import mutations

NUMBERS = ("0", "-1", "1", "2", "3", "0.5", "-0.0", "1e400", "-1e400", "nan", "inf", "9e39")
NUMBERS += (
    "2147483648",
    "9223372036854775808",
    "1e11",
    "0x10",
    "1_000",
    "٣",
    "²",
    "+1",
    "1" * 5000,
)
TEXTS = ("", " ", "none", "None", "true", "[]", "()", "{}", "(1,2)", "[[[[", "-" * 3000 + "1")
TEXTS += ("a,b", "é☃", "\x1b[31m", "a\nb", "\udcff", "%s", "{}{0}", "x" * 5000, "'", '"', "\\", "=")
TEXTS += ("train[:0]", "train[:-1]", "train[5:2]", "test[999%:]", "shuffled(train)[:50%]", "nosuch")
PATHS = (".", "..", "/", "", "~", "~nosuchuser", "~nosuchuser/x.png", "nosuch", "nosuch/x/y.png")
PATHS += ("/dev/null", "/proc/self/mem", "/dev/full", "x\0y", "x" * 300, "x/" * 2000, "gs://x/y")
PATHS += (
    "s3://",
    "http://x/y",
    "hf:",
    "hf:../x",
    "hf://x",
    "file:///etc",
    "fifo",
    "loop",
    "dangling",
)
PATHS += ("run", "stopped", "images", "weights.pth", "run/config.json", "run/metrics.jsonl", "hf")
PATHS += ("run/checkpoints", "run/checkpoints/4", "empty", "empty.png", "out.png", "out.jpg", "-")
PATHS += ("out.pth", "out.safetensors", "out.npz", "out_folder", "out", "out.PNG", "locked/x.png")
JSON_VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 10**30, "", "x", [], [None], {}, {"a": []})
JSON_VALUES += (
    [[1, 2], [3]],
    "é" * 500,
    float("inf"),
    float("nan"),
    {"name": "x"},
    [0.5, 0.5, 0.5],
)
OVERSIZED = (30_000, 60_000)  # pixels a side, stated in a header


def any_value(rng: random.Random) -> str:
    return rng.choice(rng.choice((NUMBERS, TEXTS, PATHS)))


def oddities(folder: pathlib.Path) -> None:
    """What a path may name beside files and folders, in every case's folder."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing_there.png")
    (folder / "empty").mkdir()
    (folder / "empty.png").touch()


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder with its links, and without what would be waited for."""

    def pipes(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if (pathlib.Path(folder) / name).is_fifo()]

    shutil.copytree(source, target, symlinks=True, ignore=pipes)


def damage_bytes(path: pathlib.Path, rng: random.Random) -> None:
    data = path.read_bytes()
    if not data or rng.randrange(6) == 0:
        path.write_bytes(rng.choice((b"", b"\0" * len(data), b"{", b"\xff\xfe" + data[::-1])))
        return
    path.write_bytes(list(mutations(data, rng.randrange(2**31), 5))[rng.randrange(5)])


def damage_json(path: pathlib.Path, rng: random.Random) -> None:
    """Replaces, removes, adds or moves one value somewhere in a JSON file."""
    try:
        values = json.loads(path.read_text())
    except ValueError:
        return damage_bytes(path, rng)
    if rng.randrange(12) == 0:
        path.write_text(rng.choice(("[" * 100_000, "null", "[]", '"x"', "1e400", "{}", "")))
        return None
    holders = _holders(values)
    if not holders:
        return damage_bytes(path, rng)
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key = rng.choice(list(keys)) if len(holder) else None
    what = rng.randrange(5)
    if key is None or what == 0:
        if isinstance(holder, dict):
            holder[rng.choice(("more", "", "step", "name", "é"))] = rng.choice(JSON_VALUES)
        else:
            holder.append(rng.choice(JSON_VALUES))
    elif what == 1:
        del holder[key]
    else:
        holder[key] = rng.choice(JSON_VALUES)
    path.write_text(json.dumps(values))
    return None


def _holders(values: Any) -> list[Any]:
    """All objects and lists of a JSON value, the outer ones first."""
    if not isinstance(values, dict | list):
        return []
    inner = values.values() if isinstance(values, dict) else values
    return [values, *(found for value in inner for found in _holders(value))]


def _remove(path: pathlib.Path, rng: random.Random) -> None:
    path.unlink()


def _rename(path: pathlib.Path, rng: random.Random) -> None:
    path.rename(path.with_name(rng.choice(("7", "x", path.name + ".bak", path.name.upper() + "_"))))


def _swap(path: pathlib.Path, rng: random.Random) -> None:
    """Takes the place of another file of the same folder, or of one that is named alike."""
    others = [p for p in sorted(path.parents[1].rglob("*")) if p.is_file() and p != path]
    if others:
        shutil.copy(rng.choice(others), path)


def _fifo(path: pathlib.Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: pathlib.Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(("nothing", path.name, "/dev/zero", "/dev/full", "..", "/dev/null")))


def _folder(path: pathlib.Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _double(path: pathlib.Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


_DAMAGES: tuple[Callable[[pathlib.Path, random.Random], object], ...] = (
    *(damage_bytes, damage_bytes, damage_bytes, damage_json, damage_json, damage_json),
    *(_remove, _remove, _rename, _swap, _swap, _fifo, _link, _folder, _double),
)


def damage_file(path: pathlib.Path, rng: random.Random) -> str:
    """Damages a file in one way; returns its name."""
    if not path.is_file():  # a damage before this one
        return "nothing"
    is_json = path.suffix == ".json" or path.parent.name == "info"
    damages = [d for d in _DAMAGES if is_json or d is not damage_json]
    damage = rng.choice(damages)
    damage(path, rng)
    return damage.__name__.strip("_")


def png_that_states(width: int, height: int) -> bytes:
    """A PNG whose header states a size that its pixels do not have."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
