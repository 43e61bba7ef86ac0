"""Exported models: the same numbers, from files alone."""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests import compilation
from tests.commands import run_alone
from tests.models.families import FAMILIES
from tests.tiers import mostly_slow
from vit_jax import cli
from vit_jax.data.augment import make_eval_preprocess, normalize
from vit_jax.inference import export
from vit_jax.inference.export import export_model
from vit_jax.inference.preprocess import shown
from vit_jax.inference.run_exported import told
from vit_jax.models.registry import abstract_model, model_fields

pytestmark = pytest.mark.xdist_group("run")

_ANY_SIZE = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 8, "num_heads": 2}


def small(family: str, **overrides: Any) -> Any:
    """A model of one block in eval mode, with random weights that cost no compilation."""
    name, fields = FAMILIES.get(family, (family, _ANY_SIZE))
    known = model_fields(name)
    depth = {"depth": 1} if "depth" in known else {"block_config": (1, 1)}
    graph, state = nnx.split(
        abstract_model(name, **{"num_classes": 5, **fields, **depth, **overrides})
    )
    generator = np.random.default_rng(0)
    arrays = jax.tree.map(lambda a: 0.3 * generator.normal(size=a.shape).astype(a.dtype), state)
    model = nnx.merge(graph, jax.device_put(arrays))
    model.eval()
    return model


def loaded(model: Any) -> Any:
    names = tuple(f"class {label}" for label in range(model.num_classes))
    model.spec = dataclasses.replace(model.spec, class_names=names, source="nowhere")
    return model


@pytest.fixture
def one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_BATCH_SIZES", (3,))


def read_back(folder: Path) -> jax.export.Exported:
    return jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))


def script(folder: Path) -> types.ModuleType:
    """The folder's run.py."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "family",
    mostly_slow([*FAMILIES, "vit_encoder", "vit_modular"], ["vit", "t2t performer"]),
)
def test_every_design_is_one_program_for_all_platforms(family, tmp_path, one_batch):
    report = export_model(loaded(small(family)), tmp_path / "out")
    assert report.verified_on == "cpu"
    assert report.largest_difference <= report.bound <= 1e-5
    exported = read_back(tmp_path / "out")
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0]) == "float32[batch,8,12,3]"
    assert str(exported.out_avals[0]) == "float32[batch,5]"


@pytest.mark.parametrize(
    ("family", "fields", "out_dtype"),
    [
        ("vit", {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, "float32"),
        ("t2t performer", {"scan_layers": True}, "float32"),
        ("distilled", {"num_classes": 0}, "float32"),
    ],
)
def test_other_forms_of_a_model(family, fields, out_dtype, tmp_path, one_batch):
    report = export_model(loaded(small(family, **fields)), tmp_path / "out", platforms=["cpu"])
    assert report.largest_difference <= report.bound
    assert read_back(tmp_path / "out").out_avals[0].dtype == out_dtype


def test_float64(x64, tmp_path, one_batch):
    report = export_model(
        loaded(small("vit", dtype=jnp.float64, param_dtype=jnp.float64)),
        tmp_path / "out",
        platforms=["cpu"],
    )
    assert report.largest_difference <= 1e-12
    exported = read_back(tmp_path / "out")
    assert exported.in_avals[0].dtype == exported.out_avals[0].dtype == "float64"


_CHILD = """
import pathlib, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("vit_jax", "flax", "optax"), name

sys.meta_path.insert(0, Refused())
import numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    sys.path.insert(0, str(folder))
    import run
    model, about = run.load()
    for path in folder.parent.glob(f"{folder.name}-*.npy"):
        np.save(path.with_suffix(".logits.npy"), model(run.read(str(path), about)))
    del sys.path[0], sys.modules["run"]
"""


def test_a_process_without_the_package(run, tmp_path, one_batch):
    """Batches of 1, 7 and 64 from one file each, of normalised images and of pixels."""
    trained = vit_jax.from_pretrained(run)
    preprocessing = trained.spec.preprocessing
    assert preprocessing is not None
    pixels = np.random.default_rng(0).integers(256, size=(72, 8, 8, 1), dtype=np.uint8)

    @jax.jit
    def live(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = normalize(pixels, preprocessing.mean, preprocessing.std)
        return images, trained(images)

    images, want = map(np.asarray, live(pixels))
    for input, given in (("float32", images), ("uint8", pixels)):
        export_model(trained, tmp_path / input, input=input)
        for first, batch in ((0, 1), (1, 7), (8, 64)):
            np.save(tmp_path / f"{input}-{first}.npy", given[first : first + batch])
    folders = [str(tmp_path / input) for input in ("float32", "uint8")]
    variables = compilation.variables() | {"JAX_PLATFORMS": "cpu"}
    run_alone("-c", _CHILD, *folders, cwd=tmp_path, variables=variables)
    for input in ("float32", "uint8"):
        got = [np.load(tmp_path / f"{input}-{first}.logits.npy") for first in (0, 1, 8)]
        assert [len(logits) for logits in got] == [1, 7, 64]
        np.testing.assert_allclose(np.concatenate(got), want, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of square images, and its export; nothing writes there but another export."""
    model = small("vit", img_size=16)
    folder = tmp_path_factory.mktemp("export") / "out"
    export_model(loaded(model), folder)
    return loaded(model), folder


def test_what_is_beside_the_program(exported):
    model, folder = exported
    assert {path.name for path in folder.iterdir()} == {"model.stablehlo", "model.json", "run.py"}
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == [f"class {label}" for label in range(5)]
    assert about["input"]["shape"] == ["batch", 16, 16, 3]
    assert about["input"]["dtype"] == "float32"
    assert about["output"]["shape"] == ["batch", 5]
    assert about["output"]["values"] == "logits"
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["preprocessing"] == json.loads(
        json.dumps(dataclasses.asdict(model.spec.preprocessing))
    )
    assert about["verified"]["batch_sizes"] == [1, 3]
    assert about["verified"]["largest_difference"] <= about["verified"]["bound"] <= 1e-5
    assert about["versions"]["jax"] == jax.__version__
    assert about["calling_convention_version"] == read_back(folder).calling_convention_version


@pytest.mark.parametrize("data_size", [None, (10, 12)])
@pytest.mark.parametrize("size", [(16, 16), (50, 33), (12, 10)])
def test_run_py_makes_images_ready_as_predict_does(exported, tmp_path, size, data_size):
    model, folder = exported
    preprocessing = dataclasses.replace(model.spec.preprocessing, resized_from=data_size)
    model = nnx.clone(model)
    model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing)
    noise = np.random.default_rng(0).normal(size=(5, 4, 3)) * 40 + 128
    pixels = np.asarray(
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    )
    Image.fromarray(pixels).save(tmp_path / "image.png")
    about = json.loads((folder / "model.json").read_text())
    assert about["preprocessing"]["resized_from"] is None
    about["preprocessing"]["resized_from"] = data_size and list(data_size)
    got = script(folder).read(str(tmp_path / "image.png"), about)
    made_ready = preprocessing
    assert made_ready.crop_fraction < 1
    prepare = make_eval_preprocess((16, 16), mean=made_ready.mean, std=made_ready.std)
    want = jax.jit(prepare)(shown(model, pixels)[None])
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    levels = np.abs(got - want) * 255 * np.array(made_ready.std)
    # The second resize, from the size of the data, is the device's: some grey levels away.
    assert levels.mean() < (1e-3 if data_size is None else 1)
    assert levels.max() < (1e-3 if data_size is None else 8)


def test_run_py_takes_the_high_byte_of_16_bits(exported, tmp_path):
    model, folder = exported
    deep = np.random.default_rng(0).integers(0, 2**16, (16, 20), np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    about = json.loads((folder / "model.json").read_text())
    got = script(folder).read(str(tmp_path / "deep.png"), about)
    want = vit_jax.preprocess(model, tmp_path / "deep.png")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_run_py_names_the_classes(exported, tmp_path, capsys):
    model, folder = exported
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    script(folder).main([str(tmp_path / "images.npy")])
    shares = np.asarray(jax.jit(lambda images: jax.nn.softmax(model(images)))(images)[0])
    words = ", ".join(f"class {i} {shares[i]:.4f}" for i in np.argsort(-shares))
    assert capsys.readouterr().out == f"{tmp_path / 'images.npy'}: {words}\n"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_run_py_says_what_it_is(exported, capsys, arguments):
    script(exported[1]).main(arguments)
    assert capsys.readouterr().out.startswith("Runs an exported model: python run.py IMAGE...\n")


def test_what_differs_is_not_written(exported, tmp_path, monkeypatch):
    """Another program than the model's is refused, and an export that was there stays."""
    model, folder = exported
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write = export._write_stablehlo

    def other(function, images, platforms, path):
        write(lambda images: function(images) + 2e-5, images, platforms, path)

    monkeypatch.setattr(export, "_write_stablehlo", other)
    for out in (folder, tmp_path / "out"):
        with pytest.raises(
            ValueError, match=r"differs from the live one by [12]\S*e-05 at batch size"
        ):
            export_model(model, out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert not list(tmp_path.iterdir())


def test_an_export_takes_the_place_of_one(exported, one_batch):
    model, folder = exported
    report = export_model(model, folder, platforms=["cpu", "tpu"])
    assert read_back(folder).platforms == ("cpu", "tpu") == report.platforms
    assert {path.name for path in folder.iterdir()} == {"model.stablehlo", "model.json", "run.py"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"platforms": ["cpu", "gpu"]}, "wanted some of cpu, cuda, tpu, each once, got cpu, gpu"),
        ({"platforms": []}, "wanted some of cpu, cuda, tpu, each once, got none"),
        ({"platforms": ["cpu", "cpu"]}, "each once, got cpu, cpu"),
        ({"platforms": ["tpu"]}, "this machine has none of tpu, .* add cpu"),
        ({"format": "torch"}, "format must be one of"),
        ({"format": "onnx", "platforms": ["cpu"]}, "platforms are StableHLO's, not ONNX's"),
        ({"format": "onnx", "dtype": "bfloat16"}, "wanted a model of dtype float32, got bfloat16"),
        ({"input": "int8"}, "input must be one of"),
        ({"input": "uint8"}, "does not know how its images are normalised"),
        ({"out": "file"}, "is a file: give the path of a new folder"),
        ({"out": "."}, "holds 'file': give the path of a new folder"),
        ({"largest": 1000}, "weights of 0.00 GiB: a file holds at most"),
    ],
)
def test_mistakes(given, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    model = small("vit", in_chans=4, dtype=given.pop("dtype", "float32"))
    monkeypatch.setattr(export, "_LARGEST_WEIGHTS", given.pop("largest", export._LARGEST_WEIGHTS))
    out = tmp_path / given.pop("out", "out")
    with pytest.raises(ValueError, match=message):
        export_model(loaded(model), out, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jax2onnx
def test_onnx(tmp_path):
    """By hand where the packages of the extra "onnx" are installed: the tests do not need them."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    model = small("t2t performer")
    report = export_model(loaded(model), tmp_path / "out", format="onnx", input="uint8")
    assert report.largest_difference <= report.bound <= 1e-4
    assert {path.name for path in report.folder.iterdir()} == {"model.onnx", "model.json", "run.py"}
    session = runtime.InferenceSession(report.folder / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 8, 12, 3]
    pixels = np.random.default_rng(0).integers(256, size=(7, 8, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    run = script(report.folder)
    call, about = run.load()
    assert about["versions"]["onnxruntime"] == runtime.__version__
    images = normalize(
        jnp.asarray(pixels), model.spec.preprocessing.mean, model.spec.preprocessing.std
    )
    got = call(run.read(str(tmp_path / "pixels.npy"), about))
    np.testing.assert_allclose(got, jax.jit(model)(images), rtol=0, atol=report.bound)


def test_onnx_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"format onnx needs .*: pip install 'vit-jax\[onnx\]'"):
        export_model(loaded(small("vit")), tmp_path / "out", format="onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(run, tmp_path, capsys, one_batch):
    out = tmp_path / "out"
    assert (
        cli.main(["export", str(run), str(out), "--platforms=cpu", "--input=uint8", "--ema"]) == 0
    )
    said = capsys.readouterr().out
    assert "on cpu, with batches of 3, it differs from the live model by at most" in said
    assert f"wrote {out}; run it: python {out / 'run.py'} IMAGE" in said
    about = json.loads((out / "model.json").read_text())
    assert about["preprocessing"]["resized_from"] == [8, 8]
    assert about["vit_jax"]["spec_version"] == 1
    pixels = np.random.default_rng(0).integers(256, size=(2, 8, 8, 1), dtype=np.uint8)
    model = vit_jax.from_pretrained(run, ema=True)
    made_ready = model.spec.preprocessing
    assert made_ready is not None

    @jax.jit
    def live(pixels: jax.Array) -> jax.Array:
        return model(normalize(pixels, made_ready.mean, made_ready.std))

    want = live(pixels)
    np.testing.assert_allclose(read_back(out).call(pixels), want, rtol=0, atol=1e-6)


def test_a_mistake_in_the_command_is_one_line(run, tmp_path, capsys):
    assert cli.main(["export", str(run), str(tmp_path / "out"), "--platforms=cpu,gpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: platforms: wanted some of cpu, cuda, tpu")
    assert error.count("\n") == 1


def test_what_an_exported_model_tells():
    logits, names = np.array([-1.0, 2.0, 0.5]), ["a", "b", "c"]
    assert told(logits, names, None) == ["b 0.7856", "c 0.1753", "a 0.0391"]
    assert told(logits, names, {"kind": "multilabel"}) == ["b 0.8808", "c 0.6225"]
    regression = {"kind": "regression", "mean": [], "std": []}
    assert told(logits, names, regression) == ["-1", "2", "0.5"]
    spread = {"kind": "regression", "mean": [1, 1, 1], "std": [10, 1, 2]}
    assert told(logits, names, spread) == ["-9", "3", "2"]
