"""`vit-jax parity` as a user meets it: what is compared, what is printed, and its statuses."""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import vit_jax
from tests.commands import run_alone
from vit_jax import cli
from vit_jax.cli import jax_setup

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tiny_seed004.json"
VIT = "vit_tiny_patch16_224"
GOLDEN_FIELDS = [
    *("--field=img_size=32", "--field=patch_size=8", "--field=embed_dim=48"),
    *("--field=depth=2", "--field=num_heads=4", "--field=norm_eps=1e-5"),
]
FIELDS = [
    *("--field=img_size=8,12", "--field=patch_size=4", "--field=embed_dim=8"),
    *("--field=depth=1", "--field=num_heads=2"),
]
# The module of FIELDS, written as a user would, in a file beside the command.
MINE = """
import torch
from tests.reference.vit import VisionTransformer

def make(**changes):
    fields = dict(img_size=(8, 12), patch_size=4, embed_dim=8, depth=1, num_heads=2)
    return VisionTransformer(num_classes=5, norm_eps=1e-6, **{**fields, **changes})

def make_small():
    return make(img_size=8)

def read_weights():
    raise KeyError("weights.pth")

def make_broken():
    return read_weights()

def make_nothing():
    return None

def make_exit():
    exit(0)

class Exiting(torch.nn.Module):
    def forward(self, images):
        raise SystemExit

class Raising(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))

class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make()

    def forward(self, images):
        return self.inner(images)

instance = make()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x64: None) -> Path:
    """An empty working directory but for the user's module; float64 for this test alone."""
    del x64
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax_setup, "set_up_jax", lambda *, exact=False: None)  # it is for processes
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # the command adds to it
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "unfit.py").write_text("import no_such_package\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit()\n")
    yield tmp_path
    for name in ("mine", "unfit", "script"):
        sys.modules.pop(name, None)


def run(*arguments: str) -> object:
    return cli.main(["parity", *arguments])


# ----------------------------------------------------------------------------- golden files


def test_a_golden_file_all_noise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(VIT, f"--reference={GOLDEN}", *GOLDEN_FIELDS, "--precision=float64", "--grad")
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    words = " ".join(captured.out.split())
    assert "32 of 32 equal to noise" in words
    assert f"{VIT} against" in words
    assert ": equal to noise in all" in words
    for section in ("forward", "gradients", "losses"):
        assert f"\n{section}: " in captured.out
    assert "float32 up to" not in words  # one precision was asked for


def test_other_weights_than_the_golden_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import golden

    model = golden.load("tiny_seed004").build()
    arrays = vit_jax.state_dict(model)
    vit_jax.load_state_dict(model, {**arrays, "norm.bias": arrays["norm.bias"] + 1})
    vit_jax.save_pretrained(model, folder / "w.safetensors")
    status = run(
        *(VIT, f"--reference={GOLDEN}", "--weights=w.safetensors", *GOLDEN_FIELDS),
        *("--precision=float64", "--json"),
    )
    held = json.loads(capsys.readouterr().out)
    assert (status, held["first"]["section"], held["first"]["name"]) == (1, "weights", "norm.bias")


def test_a_golden_file_is_made_and_compared_with(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        VIT, "--make-golden", "mine:make", "g", *FIELDS, "--field=num_classes=5", "--steps=2"
    )
    captured = capsys.readouterr()
    assert (made, captured.err) == (0, "")
    assert captured.out == "wrote g.json and g.npz\n"
    assert {path.name for path in folder.glob("g*")} == {"g.json", "g.npz"}
    # It knows its model.
    options = ["--reference=g.json", "--steps=2", "--precision=float64", "--json"]
    assert run(*options) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["model"] == VIT
    assert {row["section"] for row in held["rows"]} >= {"forward", "gradients", "trained"}
    # A fault is status 1, a page and JSON.
    assert run("--reference=g", "--field=norm_eps=0.01", "--html=out/report.html", "--json") == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    held = json.loads(captured.out)
    assert held["ok"] is False
    assert (held["model"], held["reference"]) == (VIT, "g")
    assert held["first"]["name"] == "blocks.0"  # the golden file has no norm1
    assert {row["precision"] for row in held["rows"]} == {"float64", "float32"}
    # Gradients and training where asked for alone.
    assert {row["section"] for row in held["rows"]} <= {"weights", "forward"}
    page = (folder / "out" / "report.html").read_text()
    assert "departs first at" in page
    assert "<svg" in page


# ----------------------------------------------------------------------------- live modules


def test_a_module_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [VIT, "--torch=mine:make", *FIELDS, "--precision=float64"]
    # It is given no weights file and no number of classes: both are the module's.
    assert run(*options, "--grad", "--json", "--html=r.html") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    held = json.loads(captured.out)
    assert held["ok"] is True
    assert (held["model"], held["reference"]) == (VIT, "mine:make")
    names = {row["name"] for row in held["rows"] if row["section"] == "forward"}
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp", "norm", ""} <= names
    assert "blocks.0.attn.qkv.bias" in {
        row["name"] for row in held["rows"] if row["section"] == "gradients"
    }
    assert "equal to noise" in (folder / "r.html").read_text()


def test_the_first_stage_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(
        *(VIT, "--torch=mine:make", *FIELDS, "--field=norm_eps=0.01", "--precision=float64"),
    )
    words = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert "departs first at blocks.0.norm1" in words
    assert "Diagnosis: " in words


def test_images_and_seeds_reach_the_comparison(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module("vit_jax.parity.command")
    seen: list[tuple] = []

    def compare(model, reference, images, **options):
        seen.append((reference, images, options))
        return made_report()

    monkeypatch.setattr(command, "compare", compare)
    given = np.random.default_rng(3).normal(size=(1, 8, 12, 3))
    np.save("x.npy", given)
    options = [VIT, "--torch=mine:make", *FIELDS]
    assert run(*options, "--images=x.npy") == 0
    assert run(*options, "--batch=3", "--seed=7", "--steps=5", "--optimizer=sgd") == 0
    assert run(*options, "--batch=3", "--seed=7", "--precision=float32") == 0
    assert run(*options) == 0
    assert run(*options, "--precision=bfloat16") == 0
    capsys.readouterr()
    images = [entry[1] for entry in seen]
    np.testing.assert_array_equal(images[0], given)
    assert [x.shape for x in images] == [(n, 8, 12, 3) for n in (1, 3, 3, 2, 2)]
    np.testing.assert_array_equal(images[1], images[2])
    assert not np.array_equal(images[1][:2], images[3])
    weights = [entry[0].state_dict()["head.weight"].numpy() for entry in seen]
    np.testing.assert_array_equal(weights[1], weights[2])
    assert not np.array_equal(weights[1], weights[3])
    settings = [entry[2] for entry in seen]
    assert (settings[1]["optimizer"].name, settings[1]["optimizer"].steps) == ("sgd", 5)
    assert [entry["grad"] for entry in settings] == [False, True, False, False, False]
    assert settings[2]["precisions"] == ("float32",)
    assert settings[3]["precisions"] == ("float64", "float32")
    assert settings[4]["precisions"] == ("bfloat16",)


def made_report():
    from vit_jax.parity.result import Report, Row

    rows = (Row("forward", "float64", "", 0.0, 0.0, 1e-6, 1e-12, "noise"),)
    return Report("model", "reference", rows, None, None, "", None, ())


# ----------------------------------------------------------------------------- mistakes

TORCH = ["--torch=mine:make", *FIELDS]
MAKE = ["--make-golden", "mine:make", "out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([VIT], "one of the arguments --image --reference --torch --make-golden is required"),
        ([VIT, "--torch=mine:make", f"--reference={GOLDEN}"], "not allowed with argument"),
        ([VIT, "--torch=mine:make", "--optimizer=lion"], "invalid choice"),
        (["--torch=mine:make"], "wanted the NAME of a registered model"),
        (["vit_tinny", *TORCH], "unknown model 'vit_tinny'"),
        ([VIT, *TORCH, "--field=depht=3"], "unknown field 'depht'"),
        ([VIT, *TORCH, "--field=depth"], "--field: wanted NAME=VALUE"),
        ([VIT, *TORCH, "--field=depth=2"], "missing: blocks.1."),
        ([VIT, *TORCH, "--steps=0"], "--steps: wanted a number of at least 1, got 0"),
        ([VIT, *TORCH, "--batch=-1"], "--batch: wanted a number of at least 1, got -1"),
        ([VIT, *TORCH, "--classes=3"], "--classes: only with --make-golden"),
        ([VIT, *TORCH, "--images=x.npy", "--batch=2"], "--batch: the file of --images says"),
        ([VIT, *TORCH, "--images=none.npy"], "--images: 'none.npy' cannot be read"),
        ([VIT, *TORCH, "--images=mine.py"], "--images: 'mine.py' cannot be read"),
        ([VIT, *TORCH, "--images=flat.npy"], "--images: wanted a .npy file of (B, H, W, C)"),
        ([VIT, *TORCH, "--images=first.npy"], "channels come last"),
        ([VIT, *TORCH, "--images=bytes.npy"], "--images: wanted normalised floats, got uint8"),
        ([VIT, *TORCH, "--weights=none.pth"], "no weights file"),
        ([VIT, "--torch=mine"], "wanted MODULE:CALLABLE, such as my_models.vit:make, got 'mine'"),
        ([VIT, "--torch=mine:"], "wanted MODULE:CALLABLE"),
        ([VIT, "--torch=:make"], "wanted MODULE:CALLABLE"),
        ([VIT, "--torch=my_models.vit:make"], "no module 'my_models' in"),
        ([VIT, "--torch=mine.vit:make"], "no module 'mine.vit' in"),
        ([VIT, "--torch=unfit:make"], "importing 'unfit' raised ModuleNotFoundError"),
        ([VIT, "--torch=mine:mak"], "'mine' has no 'mak'; near: make"),
        ([VIT, "--torch=mine:instance"], "got a VisionTransformer"),
        ([VIT, "--torch=mine:make_nothing"], "return a torch.nn.Module, got a NoneType"),
        ([VIT, "--torch=mine:make_broken"], "calling 'mine:make_broken' raised KeyError"),
        ([VIT, "--torch=mine:make_exit"], "calling 'mine:make_exit' raised SystemExit: 0"),
        ([VIT, "--torch=script:make"], "importing 'script' raised SystemExit"),
        (["--make-golden", "mine:Exiting", "out", "--image-shape=3,8,12"], "raised SystemExit"),
        ([VIT, "--torch=mine:Named", *FIELDS], "unexpected: inner.cls_token"),
        ([VIT, "--torch=mine:Raising", "--weights=w.safetensors", *FIELDS], "raised RuntimeError"),
        ([f"--reference={GOLDEN}"], "does not say which registered model it is of"),
        ([VIT, f"--reference={GOLDEN}"], "does not fit the model, a vit_tiny_patch16_224"),
        ([VIT, "--reference=none.json"], "none.json"),
        ([VIT, "--reference=."], "a golden file is a .json and an .npz, got '.'"),
        ([VIT, *TORCH, "--images=."], "--images: '.' cannot be read"),
        ([VIT, f"--reference={GOLDEN}", "--batch=2"], "--batch: a golden file brings its own"),
        ([VIT, f"--reference={GOLDEN}", *GOLDEN_FIELDS, "--steps=3"], "--steps: "),
        ([VIT, f"--reference={GOLDEN}", *GOLDEN_FIELDS, "--optimizer=sgd"], "--optimizer: "),
        (MAKE, "wanted --image-shape C,H,W, or the NAME of a model"),
        ([*MAKE, "--image-shape=8"], "--image-shape: wanted C,H,W such as 3,224,224, got '8'"),
        ([*MAKE, "--image-shape=3,8,12", "--field=depth=1"], "--field: wanted the NAME"),
        ([*MAKE, "--image-shape=3,8,12", "--html=x.html"], "--html: not with --make-golden"),
        ([*MAKE, "--image-shape=3,8,12", "--all"], "--all: not with --make-golden"),
        ([*MAKE, "--image-shape=3,8,12", "--classes=4"], "4"),
        ([VIT, *MAKE, "--field=depht=1"], "unknown field 'depht'"),
    ],
)
def test_a_mistake_is_status_2_and_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from tests.models.families import build

    np.save("flat.npy", np.zeros((2, 3)))
    np.save("first.npy", np.zeros((2, 3, 8, 12)))
    np.save("bytes.npy", np.zeros((2, 8, 12, 3), np.uint8))
    if "--weights=w.safetensors" in arguments:
        model = build("vit", depth=1)
        vit_jax.save_pretrained(model, "w.safetensors")
    before = sorted(path.name for path in folder.iterdir())
    status = run(*arguments)
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert status == 2
    assert captured.out == ""
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before


def test_an_error_in_the_users_code_says_where(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = MINE.splitlines().index('    raise KeyError("weights.pth")') + 1
    assert run(VIT, "--torch=mine:make_broken") == 2
    assert capsys.readouterr().err == (
        "error: calling 'mine:make_broken' raised KeyError: 'weights.pth' "
        f"({folder / 'mine.py'}, line {line})\n"
    )


def test_without_torch(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vit_jax.parity.torch_module  # noqa: F401 - before torch is out of reach

    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(VIT, *TORCH) == 2
    error = capsys.readouterr().err
    assert "needs PyTorch" in error
    assert "golden file" in error


# ----------------------------------------------------------------------------- the process


def test_float64_and_full_precision_are_for_this_command_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = {"jax_enable_x64": True, "jax_default_matmul_precision": "highest"}
    for exact in (False, True):
        options: dict[str, object] = {}
        monkeypatch.setattr(jax.config, "update", options.__setitem__)
        jax_setup.set_up_jax(exact=exact)
        assert {k: v for k, v in options.items() if k in wanted} == (wanted if exact else {})


def test_help_needs_no_jax() -> None:
    code = (
        "import sys\nfrom vit_jax import cli\n"
        "try:\n    cli.main(['parity', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('jax', 'torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = run_alone("-c", code)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "they run its code" in " ".join(done.stdout.split())
