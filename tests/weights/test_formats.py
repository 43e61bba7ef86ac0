"""Weight files: every design there and back, and files that are damaged or lie."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch_file

import vit_jax
from tests.models.families import build, images
from tests.tiers import mostly_slow
from tests.weights.designs import (
    ALL,
    assert_close,
    assert_same_weights,
    logits,
    make,
    pytorch_logits,
    redraw,
    reference,
)
from tests.weights.mutate import attack, mutations
from vit_jax.weights.formats import read_description, read_weights

COUNT = int(os.environ.get("VIT_JAX_FUZZ", "0"))
FORMS = {"safetensors": "w.safetensors", "pth": "w.pth", "orbax": "folder"}


@pytest.mark.parametrize("design", mostly_slow(ALL, ["vit", "t2t performer", "modular"]))
def test_every_bit_comes_back(design: str, tmp_path: Path) -> None:
    model, other = make(design), make(design)
    for form, name in FORMS.items():
        dialect = "orbax" if form == "orbax" else None
        vit_jax.save_pretrained(model, tmp_path / name, dialect=dialect)
        redraw(other, seed=1)
        report = vit_jax.load_pretrained(other, tmp_path / name)
        assert_same_weights(other, model)
        assert sorted(report.loaded) == sorted(vit_jax.state_dict(model))
        assert (report.dialect, report.adapted, report.left) == (None, (), ())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(FORMS.values())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("design", mostly_slow(ALL, ["vit", "t2t se", "classifier"]))
def test_pytorch_loads_the_files_strictly_and_has_the_same_logits(
    design: str, tmp_path: Path
) -> None:
    shallow = {} if design == "t2t dense" else {"depth": 1}
    model = make(design, jnp.float64, **shallow)
    model.eval()
    batch = images(jnp.float64)
    want = np.asarray(logits(model, batch))
    for name in ("w.safetensors", "w.pth"):
        vit_jax.save_pretrained(model, tmp_path / name)
        path = tmp_path / name
        stored = load_file(path) if name.endswith("safetensors") else torch.load(path)
        module = reference(design, **shallow)
        module.load_state_dict(stored, strict=True)
        assert_close(pytorch_logits(module, np.asarray(batch)), want)


def test_bfloat16_is_read_as_it_is(tmp_path: Path) -> None:
    model = build("vit")
    half = {
        name: torch.tensor(array).bfloat16() for name, array in vit_jax.state_dict(model).items()
    }
    save_torch_file(half, tmp_path / "w.safetensors")
    vit_jax.load_pretrained(model, tmp_path / "w.safetensors")
    for name, array in vit_jax.state_dict(model).items():
        np.testing.assert_array_equal(array, half[name].float().numpy())


def test_a_type_that_numpy_has_not_is_refused(tmp_path: Path) -> None:
    save_torch_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors' is not a whole"):
        read_weights(tmp_path / "w.safetensors")


# ------------------------------------------------------------------------------------- .npz


def npy(array: np.ndarray, **header: object) -> bytes:
    """An .npy entry whose header may lie."""
    file = io.BytesIO()
    fields = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue() + array.tobytes()


def npz(path: Path, method: int = zipfile.ZIP_STORED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_npz_arrays_of_every_kind(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 3)),
        "a/b": np.arange(4, dtype=">i2"),
        "half": np.arange(3, dtype=np.float16),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
        read = read_weights(tmp_path / "w.npz").arrays
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(ONES, shape=(2, 4)), "has 24 bytes, wanted 32"),
        (npy(ONES, shape=(2, 2)), "has 17 bytes, wanted 16"),
        (npy(ONES, shape=(2**40, 2**40)), "wanted 4835703278458516698824704"),
        (npy(ONES, shape=(-2, -3)), "no header of a plain array"),
        (npy(ONES, descr="|O"), "holds Python objects"),
        (npy(ONES, descr=[("a", "|O"), ("b", "<f4")]), "no header of a plain array"),
        (npy(ONES)[:-1], "has 23 bytes, wanted 24"),
        (npy(ONES)[:20], "not a whole"),
        (b"\x93NUMPY\x09\x00" + npy(ONES)[8:], "unknown form b"),
        (b"", "not a whole"),
    ],
)
def test_npz_headers_that_lie(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_weights(npz(tmp_path / "w.npz", a=data))
    assert "w.npz" in str(error.value)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_an_npz_does_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    np.savez(tmp_path / "w.npz", a=np.array([Payload(ran)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds Python objects"):
        read_weights(tmp_path / "w.npz")
    # Said to be numbers: the pickle is then their bytes, or too long for them.
    pickled = pickle.dumps([Payload(ran)])
    lying = npy(np.frombuffer(pickled, np.uint8))
    read_weights(npz(tmp_path / "w.npz", a=lying))
    assert not ran.exists()
    np.load(tmp_path / "w.npz")
    pickle.loads(pickled)  # the payload is a real one
    assert ran.exists()


def _claims(data: bytes, size: int) -> bytes:
    """The first entry's unpacked size as both of its headers state it."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", changed, changed.index(signature) + offset, size)
    return bytes(changed)


def test_what_says_that_it_is_large_is_not_unpacked(tmp_path: Path) -> None:
    path = npz(tmp_path / "w.npz", zipfile.ZIP_DEFLATED, a=npy(ONES))
    path.write_bytes(_claims(path.read_bytes(), 2**29))
    with pytest.raises(ValueError, match="would unpack to 536,870,9"):
        read_weights(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_larger_than_it_says_is_not_unpacked(tmp_path: Path, method: int) -> None:
    path = npz(tmp_path / "w.npz", method, a=npy(np.zeros(2**24, np.uint8)))
    path.write_bytes(_claims(path.read_bytes(), 10_000))  # zipfile reads 4096 ahead
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"w\.npz' is not a whole"):
        read_weights(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_an_array_of_zeros_may_be_packed_well(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", head=np.zeros((4000, 768), np.float32))
    assert read_weights(tmp_path / "w.npz").arrays["head"].shape == (4000, 768)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_npz_with_two_entries_of_a_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for value in (ONES, 2 * ONES):
            archive.writestr("a.npy", npy(value))
    with pytest.raises(ValueError, match="two entries a"):
        read_weights(tmp_path / "w.npz")


def test_a_changed_byte_of_an_array_is_noticed(tmp_path: Path) -> None:
    path = npz(tmp_path / "w.npz", a=npy(ONES))
    data = bytearray(path.read_bytes())
    data[data.index(ONES.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        read_weights(path)


# --------------------------------------------------------------------- folders and their JSON


def folder_of(path: Path, shards: int = 0) -> Path:
    """Two arrays and a config.json; in as many shards."""
    path.mkdir()
    arrays = {"a": ONES, "b": 2 * ONES}
    (path / "config.json").write_text("{}")
    if not shards:
        save_file(arrays, path / "model.safetensors")
        return path
    names = {}
    for number, (name, array) in enumerate(arrays.items()):
        names[name] = f"model-{number + 1}.safetensors"
        save_file({name: array}, path / names[name])
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def test_shards_are_read_together(tmp_path: Path) -> None:
    read = read_weights(folder_of(tmp_path / "f", shards=2)).arrays
    assert sorted(read) == ["a", "b"]
    np.testing.assert_array_equal(read["b"], 2 * ONES)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f", shards=2)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the shard model-2\.safetensors is missing"):
        read_weights(folder)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "d/x.safetensors", "x.pth", "..", 3, None]
)
def test_shards_lie_in_the_folder(tmp_path: Path, shard: object) -> None:
    folder = folder_of(tmp_path / "f", shards=2)
    save_file({"a": ONES, "b": ONES}, tmp_path / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard, "b": shard}}))
    with pytest.raises(ValueError, match="wanted a weight_map of names to shards beside it"):
        read_weights(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "index"])
@pytest.mark.parametrize("text", [b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_damaged_json(tmp_path: Path, name: str, text: bytes) -> None:
    folder = folder_of(tmp_path / "f", shards=2)
    name = "model.safetensors.index.json" if name == "index" else name
    (folder / name).write_bytes(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_weights(folder)


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("pretrained_cfg", ["5", "null", '"mean std"', "[]"])
def test_a_pretrained_cfg_that_is_none(tmp_path: Path, pretrained_cfg: str) -> None:
    folder = folder_of(tmp_path / "f")
    (folder / "config.json").write_text(f'{{"pretrained_cfg": {pretrained_cfg}}}')
    assert read_weights(folder).spec.preprocessing is None


@pytest.mark.parametrize(
    "fields",
    [
        '{"mean": [0.5], "std": [0]}',
        '{"mean": [0.5], "std": [0.5, 0.5]}',
        '{"mean": [NaN], "std": [0.5]}',
        '{"mean": [0.5], "std": [Infinity]}',
        f'{{"mean": [{HUGE}], "std": [0.5]}}',
        '{"mean": 3, "std": [0.5]}',
        '{"mean": [[]], "std": [0.5]}',
        '{"mean": [0.5], "std": [0.5], "crop_pct": 0}',
        '{"mean": [0.5], "std": [0.5], "crop_pct": 1.5}',
        '{"mean": [0.5], "std": [0.5], "crop_pct": {}}',
        '{"mean": [0.5], "std": [0.5], "interpolation": "lanczos"}',
        '{"mean": [0.5], "std": [0.5], "interpolation": []}',
    ],
)
def test_preprocessing_of_timm_that_is_none(tmp_path: Path, fields: str) -> None:
    folder = folder_of(tmp_path / "f")
    (folder / "config.json").write_text(f'{{"pretrained_cfg": {fields}}}')
    with pytest.raises(ValueError, match=r"config\.json': its description cannot be read"):
        read_weights(folder)


def test_preprocessing_of_timm(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "f")
    stated = {"mean": [0.1], "std": [0.2], "crop_pct": 0.8, "interpolation": "bilinear"}
    for config in ({"pretrained_cfg": stated}, stated):
        (folder / "config.json").write_text(json.dumps(config))
        read = read_weights(folder).spec.preprocessing
        assert read is not None
        assert (read.mean, read.std) == ((0.1,), (0.2,))
        assert (read.crop_fraction, read.interpolation) == (0.8, "bilinear")


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "3", HUGE])
def test_damaged_metadata(tmp_path: Path, text: str) -> None:
    save_file({"a": ONES}, tmp_path / "w.safetensors", metadata={"preprocessing": text})
    with pytest.raises(ValueError, match="description cannot be read"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, ""),
        ("3", "wanted a JSON object, got int"),
        ("{}", "wanted spec_version as a whole number, got None"),
        ('{"spec_version": 2}', r"by a later version of vit_jax \(spec_version 2; .* upgrade"),
        ('{"spec_version": true}', "wanted spec_version as a whole number, got True"),
        ('{"spec_version": 1}', "wanted a name and the fields of a model"),
        ('{"spec_version": 1, "name": "vit", "fields": {}, "class_names": [1]}', "a list of str"),
        ('{"spec_version": 1, "name": "vit", "fields": {}, "preprocessing": 3}', ""),
    ],
    ids=lambda value: value[:20],
)
def test_a_description_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    save_file({"a": ONES}, tmp_path / "w.safetensors", metadata={"vit_jax": text})
    with pytest.raises(ValueError, match=f"description cannot be read.*{message}"):
        read_weights(tmp_path / "w.safetensors")


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "w.xyz").write_bytes(b"x")
    for name, message in (
        ("missing.npz", "no weights file .*wanted a .safetensors file, a PyTorch file"),
        ("w.xyz", r"wanted a .safetensors file, .*got '.*w\.xyz'"),
        (".", "no weights in the folder .*wanted a .safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)


def test_an_orbax_folder_that_is_damaged_or_of_something_else(tmp_path: Path) -> None:
    vit_jax.save_pretrained(build("vit"), tmp_path / "f", dialect="orbax")
    os.mkfifo(tmp_path / "f" / "pipe")  # among the arrays it would be waited for
    with pytest.raises(ValueError, match=r"'.*f' cannot be read: .*not a regular file: .*pipe"):
        read_weights(tmp_path / "f")
    (tmp_path / "f" / "pipe").unlink()
    (tmp_path / "f" / "_METADATA").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"the Orbax folder '.*f' cannot be read"):
        read_weights(tmp_path / "f")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.npz"])
@pytest.mark.parametrize("read", [read_weights, read_description])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read: not a regular file"):
        read(tmp_path / name)


def test_averaged_weights_are_of_pytorch_files_alone(tmp_path: Path) -> None:
    model = build("vit")
    vit_jax.save_pretrained(model, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"averaged weights .*ema=True"):
        vit_jax.load_pretrained(model, tmp_path / "w.safetensors", ema=True)
    vit_jax.load_pretrained(model, tmp_path / "w.safetensors", ema=False)


# ----------------------------------------------------------------------------------- fuzzing


def read(path: str) -> dict[str, np.ndarray]:
    return read_weights(path).arrays


def _weights(path: Path) -> Path:
    width = 1000 if COUNT else 8
    generator = np.random.default_rng(0)
    arrays = {f"blocks.{i}.w": generator.normal(size=(width, width)) for i in range(3)}
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    else:
        save_file(arrays, path, metadata={"preprocessing": PREPROCESSING})
    return path


PREPROCESSING = json.dumps(
    {"mean": [0.5], "std": [0.5], "crop_fraction": 1.0, "interpolation": "bicubic"}
)


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_random_damage_is_refused_or_harmless(tmp_path: Path, name: str) -> None:
    path = _weights(tmp_path / name)
    whole, loaded = read(str(path)), 0
    for damaged in mutations(path.read_bytes(), seed=7, count=300):
        path.write_bytes(damaged)
        try:
            arrays = read(str(path))
        except ValueError:
            continue
        loaded += 1
        if name == "w.npz":  # its checksums tell; safetensors has none
            for array_name, array in arrays.items():
                if array_name in whole and array.shape == whole[array_name].shape:
                    np.testing.assert_array_equal(array, whole[array_name])
    assert loaded < 300


@pytest.mark.skipif(not COUNT, reason="VIT_JAX_FUZZ=N takes as many mutations of 24 MB")
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("name", ["w.npz", "w.safetensors"])
def test_random_damage_of_large_files(tmp_path: Path, name: str) -> None:
    figures = attack("tests.weights.test_formats:read", _weights(tmp_path / name), 7, COUNT)
    print(name, figures)
    figures.check()
