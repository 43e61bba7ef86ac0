"""Golden files read and written, against PyTorch itself and against the fixtures stored here."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import golden
from tests.reference.t2t_vit import T2TViT
from tests.reference.vit import VisionTransformer
from vit_jax.parity.golden import golden_model, read_golden
from vit_jax.parity.golden_weights import make_labels, make_param
from vit_jax.parity.golden_writer import write_golden
from vit_jax.parity.sampled import Sampled
from vit_jax.parity.torch_trace import trace_torch
from vit_jax.parity.values import Expected, OptimizerSpec, Reference, Whole

FOLDER = Path(golden.__file__).parent


def channels_last(reference: Reference) -> np.ndarray:
    images = reference.images
    return np.moveaxis(images, 1, -1) if images.ndim == 4 else images


def traced(module: nn.Module, reference: Reference, **settings: Any) -> Reference:
    """A live run of what a golden file says was run."""
    module.load_state_dict(
        {name: torch.tensor(array) for name, array in reference.weights.items()}, strict=False
    )
    return trace_torch(module, channels_last(reference), **settings)


def assert_agree(read: Reference, live: Reference) -> None:
    """All that the file knows is in the live run, to 1e-12 of its rms."""

    def assert_close(got: Any, want: Expected | None, name: str) -> None:
        assert isinstance(got, Whole)
        assert want is not None
        assert got.shape == want.shape, name
        assert got.rms == pytest.approx(want.rms, rel=1e-11, abs=1e-14), name
        # A key's bias has an exact gradient of zero: what comes is rounding.
        assert want.error(got.array) < 1e-12 * max(want.rms, 1e-3), name

    assert read.weights.keys() == live.weights.keys()
    assert read.untrained == live.untrained
    assert read.optimizer == live.optimizer
    assert (read.labels is None) == (live.labels is None)
    for stage, value in read.stages.items():
        assert_close(live.stages[stage], value, stage)
    assert_close(live.loss, read.loss, "loss")
    assert_close(live.image_gradient, read.image_gradient, "image")
    assert_close(live.losses, read.losses, "losses")
    for kind in ("gradients", "trained"):
        got, want = getattr(live, kind), getattr(read, kind)
        assert got.keys() == want.keys()
        for name, value in want.items():
            if kind == "trained" and name.endswith(("qkv.bias", "in_proj_bias")):
                continue  # Adam divides the rounding of a key's bias by itself
            assert_close(got[name], value, f"{kind} {name}")


FIXTURES: dict[str, Callable[..., nn.Module]] = {
    "tiny_timm_vit": VisionTransformer,
    "tiny_timm_deit_distilled": lambda **kwargs: VisionTransformer(distilled=True, **kwargs),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_are_what_pytorch_answers(name: str) -> None:
    """The reader, against a live run of the same module."""
    fixture = golden.load(name)
    reference = read_golden(FOLDER / f"{name}.json")
    assert reference.weights.keys() == fixture.params.keys()
    np.testing.assert_array_equal(channels_last(reference), fixture.images)
    assert set(reference.stages) == {*fixture.spec["activations"], ""}
    assert_agree(
        reference,
        traced(FIXTURES[name](**fixture.spec["kwargs"]), reference, optimizer=OptimizerSpec()),
    )


def test_noise_of_a_fixture() -> None:
    spec = golden.load("tiny_timm_vit").spec
    reference = read_golden(FOLDER / "tiny_timm_vit")
    stated = spec["noise_f32_vs_f64"]
    assert reference.stages["blocks.1"].noise == spec["activations"]["blocks.1"]["f32_max_abs"]
    assert reference.stages[""].noise == stated["logits"]["max_abs"]
    assert reference.gradients["head.bias"].noise == stated["grad"]["max_abs"]
    assert reference.losses is not None
    assert reference.losses.noise == pytest.approx(stated["traj_loss"]["max_abs"], rel=0.01)


@pytest.mark.parametrize("name", [*golden.names("tiny"), "full_t2t_vit_7"])
def test_every_fixture_is_read(name: str) -> None:
    fixture = golden.load(name)
    reference = read_golden(FOLDER / name)
    assert all(value.rms > 0 for value in reference.stages.values())
    assert reference.untrained == set(fixture.spec.get("params_without_grad", ()))
    trainable = set(fixture.spec.get("grad_names", ()))
    assert set(reference.trained) == trainable
    assert set(reference.gradients) == trainable - reference.untrained
    assert (reference.loss is None) == (reference.optimizer is None) == (not trainable)
    assert golden_model(FOLDER / name) == (None, {})


# ----------------------------------------------------------------------------------- Sampled


@pytest.mark.parametrize("sample", ["corner", "first8"])
def test_what_a_sample_sees(sample: Any) -> None:
    array = np.random.default_rng(0).normal(size=(2, 6, 20))
    part = array[:, :4, :16] if sample == "corner" else array.ravel()[:8]
    value = Sampled(array.shape, sample, part, float(np.linalg.norm(array)), float(array.mean()), 0)
    assert value.error(array) < 1e-15
    assert value.rms == pytest.approx(np.sqrt(np.mean(array**2)))
    inside, outside, balanced = array.copy(), array.copy(), array.copy()
    inside[0, 0, 3] += 0.5
    assert value.error(inside) == pytest.approx(0.5)
    outside[1, 5, 19] += 0.5
    assert value.error(outside) > 0.49 / array.size  # by the mean
    balanced[1, 5, 18:] += 0.5, -0.5
    assert value.error(balanced) > 1e-4  # by the norm
    assert value.error(array[:1]) == np.inf
    outside[1, 5, 19] = np.nan
    assert value.error(outside) == np.inf


# ----------------------------------------------------------------------------------- writer


def written(folder: Path, module: Callable[[], nn.Module], **settings: Any) -> Path:
    return write_golden(module, folder / "out", **settings)


def test_the_writer_writes_the_stored_fixture(tmp_path: Path) -> None:
    """Number by number, in the same form: the tests' own reader takes it too."""
    fixture = golden.load("tiny_timm_vit")
    path = written(
        tmp_path,
        lambda: VisionTransformer(**fixture.spec["kwargs"]),
        image_shape=(3, 32, 32),
        num_classes=10,
        stages=list(fixture.spec["activations"]),
    )
    spec = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as stored:
        again = golden.Golden("out", spec, dict(stored))
    assert spec.keys() == fixture.spec.keys()
    for key in ("state_dict", "params_sha256", "grad_names", "input", "labels", "trajectory"):
        assert spec[key] == fixture.spec[key]
    for key in ("param_count_total", "param_count_trainable", "npz_arrays", "loss", "outputs"):
        assert spec[key] == fixture.spec[key]
    assert again.params.keys() == fixture.params.keys()
    assert again.arrays.keys() == fixture.arrays.keys()
    for name, want in fixture.arrays.items():
        got = again.arrays[name]
        assert got.dtype == want.dtype
        # Float32 sums depend on the machine; so do ten AdamW steps on the bias of keys.
        atol = 2e-6 if name.endswith("f32") else 5e-11 if name == "traj_param_l2" else 1e-12
        np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


class Mixed(nn.Module):
    """A convolution, a frozen table, BatchNorm, a layer twice and under two names, one unused."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])
        self.blocks.append(self.blocks[0])
        self.table = nn.Parameter(torch.ones(4, 6), requires_grad=False)
        self.same = nn.Identity()
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        x = self.bn(self.conv(images)).flatten(2).mT + self.table
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.same(x).mean(1))


MIXED: dict[str, Any] = {
    "image_shape": (3, 4, 4),
    "keep": ["bn.running_var"],
    "optimizer": OptimizerSpec("sgd", steps=2, learning_rate=0.1, betas=(0.8, 0.99)),
}


def test_written_and_read(tmp_path: Path) -> None:
    path = written(tmp_path, Mixed, batch=3, seed=5, **MIXED)
    reference = read_golden(path)
    assert list(reference.stages) == ["conv", "bn", "blocks.0", "blocks.0#1", "head", ""]
    assert reference.stages["conv"].shape == (3, 6, 2, 2)
    np.testing.assert_array_equal(reference.weights["bn.running_var"], np.ones(6))
    np.testing.assert_array_equal(reference.weights["table"], make_param("table", (4, 6), 5))
    spec = json.loads(path.read_text())
    assert spec["tied"]["blocks.1.weight"] == "blocks.0.weight"
    assert spec["non_trainable"] == ["table", "bn.running_mean", "bn.running_var"]
    assert spec["notes"] == ["bn.num_batches_tracked is no floating-point array: left as built"]
    assert reference.untrained == {"unused.weight", "unused.bias"}
    assert reference.labels is not None
    np.testing.assert_array_equal(reference.labels, make_labels(3, 3))
    live = traced(Mixed(), reference, optimizer=MIXED["optimizer"])
    for alias in ("blocks.1.weight", "blocks.1.bias"):
        del live.weights[alias]  # type: ignore[attr-defined]
    assert_agree(reference, live)


def test_an_optimizer_with_all_its_settings(tmp_path: Path) -> None:
    """Written where they are used, and nothing of them where not."""
    spec = OptimizerSpec(
        "sgd",
        steps=2,
        learning_rate=lambda step: 0.1 / (step + 1),
        nesterov=True,
        clip_norm=0.5,
        groups=(("bias$", {"weight_decay": 0.0, "learning_rate_factor": 2.0}),),
    )
    settings = {**MIXED, "optimizer": spec}
    path = written(tmp_path, Mixed, batch=3, seed=5, **settings)
    stated = json.loads(path.read_text())["trajectory"]
    assert stated["lr"] == [pytest.approx(0.1), pytest.approx(0.05)]
    assert stated.keys() & {"nesterov", "dampening", "clip_norm", "clip_value", "groups"} == {
        "nesterov",
        "clip_norm",
        "groups",
    }
    reference = read_golden(path)
    assert reference.optimizer == spec
    live = traced(Mixed(), reference, optimizer=spec)
    for alias in ("blocks.1.weight", "blocks.1.bias"):
        del live.weights[alias]  # type: ignore[attr-defined]
    assert_agree(reference, live)


def test_tokens_without_classes(tmp_path: Path) -> None:
    """Sequence first: stages are stored batch first."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    path = written(tmp_path, lambda: encoder, image_shape=(5, 8), batch=3)
    reference = read_golden(path)
    assert reference.labels is None
    assert reference.direction is not None
    live = traced(encoder, reference, optimizer=OptimizerSpec())
    np.testing.assert_array_equal(reference.direction, live.direction)
    assert_agree(reference, live)
    transposed = nn.Sequential(encoder)
    transposed.register_forward_pre_hook(lambda _, args: args[0].transpose(0, 1))
    transposed.register_forward_hook(lambda *args: args[2].transpose(0, 1))
    reference = read_golden(written(tmp_path, lambda: transposed, image_shape=(5, 8), batch=3))
    assert reference.stages["0"].shape == reference.stages[""].shape == (3, 5, 8)


def test_default_stages_of_t2t(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"img_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 2}
    fields |= {"num_classes": 3, "token_dim": 4}
    path = written(
        tmp_path,
        lambda: T2TViT(**fields),
        image_shape=(3, 32, 32),
        optimizer=OptimizerSpec(steps=1),
        model=("t2t_vit_7", {**fields, "img_size": (32, 32)}),
    )
    reference = read_golden(path)
    assert {"tokens_to_token", "pos_drop", "blocks.0", "norm", "head", ""} == set(reference.stages)
    assert golden_model(path) == ("t2t_vit_7", {**fields, "img_size": (32, 32)})
    assert_agree(reference, traced(T2TViT(**fields), reference, optimizer=OptimizerSpec(steps=1)))


def test_two_writes_are_the_same_bytes_and_a_failed_one_leaves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, Mixed, **MIXED)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"out.json", "out.npz"}
    written(tmp_path, lambda: Mixed().half(), **MIXED)  # no weight is rounded on the way
    with pytest.raises(ValueError, match="fields are no JSON"):
        written(tmp_path, Mixed, **MIXED, seed=1, model=("name", {"dtype": np.float32}))

    def savez(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", savez)
        with pytest.raises(OSError, match="disk is full"):
            written(tmp_path, Mixed, **MIXED, seed=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    written(tmp_path, Mixed, **MIXED, seed=1)
    assert all(file.read_bytes() != before[file.name] for file in tmp_path.iterdir())
    assert path.name in before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": []}, "no finite number.* running_var"),
        ({"keep": ["bn.running_var", "nope"]}, r"keep: the module has no nope; it has table, conv"),
        ({"stages": ["conv", "blocks.1"]}, r"stages: the module has no blocks.1; it has conv, bn"),
        ({"num_classes": 7}, r"answers \[2, 3\], not 7"),
        ({"batch": 0}, "batch: wanted whole numbers of at least 1, got 0"),
        ({"image_shape": (3, 4, 4.0)}, "image_shape: .*got 4.0"),
    ],
)
def test_mistakes_of_the_writer(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        written(tmp_path, Mixed, **{**MIXED, **settings})
    with pytest.raises(ValueError, match="to be built, got int"):
        written(tmp_path, lambda: 3, **MIXED)  # type: ignore[arg-type,return-value]
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- reader


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    spec = json.loads(path.read_text())
    edit(spec)
    path.write_text(json.dumps(spec))


def change_arrays(path: Path, edit: Callable[[dict[str, np.ndarray]], Any]) -> None:
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    edit(arrays)
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]


def spec_edit(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: change(path, edit)


def array_edit(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    return lambda path: change_arrays(path, edit)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no json": (Path.unlink, "there is no .*out.json"),
    "no npz": (lambda path: path.with_suffix(".npz").unlink(), "there is no .*out.npz"),
    "no JSON in it": (lambda path: path.write_text("{"), "is not JSON"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe{"), "is not JSON"),
    "a list": (lambda path: path.write_text("[]"), "wanted a JSON object, got list"),
    "no npz in it": (lambda p: p.with_suffix(".npz").write_bytes(b"PK"), "not a whole .npz"),
    "no labels": (spec_edit(lambda s: s.pop("labels")), "its labels is missing"),
    "a number for a name": (spec_edit(lambda s: s.update(name=3)), "its name is missing"),
    "no noise": (spec_edit(lambda s: s["noise_f32_vs_f64"].clear()), "KeyError 'logits'"),
    "another seed": (spec_edit(lambda s: s.update(param_seed=9)), "weights .* have the sha256"),
    "another input": (spec_edit(lambda s: s["input"].update(seed=9)), "input .* another sha256"),
    "labels out of range": (spec_edit(lambda s: s.update(labels=[0, 3])), r"labels \[0, 3\] do"),
    "too many labels": (spec_edit(lambda s: s.update(labels=[0, 1, 1])), "do not fit 2 inputs"),
    "another loss": (spec_edit(lambda s: s.update(loss="hinge")), "wanted the loss 'cross ent"),
    "another optimizer": (
        spec_edit(lambda s: s["trajectory"].update(optimizer="Lion")),
        "wanted the optimizer AdamW, Adam, SGD or RMSprop, got 'Lion'",
    ),
    "no steps": (spec_edit(lambda s: s["trajectory"].update(steps=0)), "at least one optimizer"),
    "a short entry": (
        spec_edit(lambda s: s["state_dict"][0].pop()),
        r"state_dict: wanted entries \[name, shape, type\]",
    ),
    "no such parameter": (
        spec_edit(lambda s: s["grad_names"].__setitem__(0, "nope")),
        "KeyError 'nope'",
    ),
    "no stage": (array_edit(lambda a: a.pop("act/conv")), "the array act/conv is missing"),
    "a short stage": (
        array_edit(lambda a: a.update({"act/conv": a["act/conv"][:1]})),
        r"wanted act/conv as floats \[2, 4, 2, 2\], got float64 \[1, 4, 2, 2\]",
    ),
    "gradients of fewer": (
        array_edit(lambda a: a.update(grad_l2=a["grad_l2"][:-1])),
        "wanted grad_l2 as floats",
    ),
    "whole logits": (
        array_edit(lambda a: a.update(logits_f64=a["logits_f64"].astype(int))),
        "wanted logits_f64 as floats .* got int64",
    ),
    "no kept array": (
        array_edit(lambda a: a.pop("computed/bn.running_var")),
        "wanted the array computed/bn.running_var",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("golden"), Mixed, **MIXED)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage: str, sound: Path, tmp_path: Path) -> None:
    """One error that says which file and what is wrong; before the damage it was sound."""
    edit, message = DAMAGES[damage]
    for file in sound.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / sound.name
    read_golden(path)
    edit(path)
    with pytest.raises(ValueError, match=message) as raised:
        read_golden(path)
    assert str(tmp_path / "out") in str(raised.value)


def test_other_forms_are_refused(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the golden file of a whole model"):
        read_golden(FOLDER / "prim_unfold")
    reference = read_golden(sound)
    read_golden(sound, channels_last(reference))
    with pytest.raises(ValueError, match="answers for images of its own"):
        read_golden(sound, channels_last(reference) + 1)
    for file in sound.parent.iterdir():
        shutil.copy(file, tmp_path)
    change(tmp_path / sound.name, lambda spec: spec.update(model={"name": "vit"}))
    with pytest.raises(ValueError, match='wanted "model" as an object with a name and fields'):
        golden_model(tmp_path / sound.name)


def test_a_name_may_hold_dots(tmp_path: Path) -> None:
    path = write_golden(Mixed, tmp_path / "vit.v1", **MIXED)
    assert path.name == "vit.v1.json"
    for name in ("vit.v1", "vit.v1.json", "vit.v1.npz"):
        assert read_golden(tmp_path / name).name == "vit.v1"


@pytest.mark.parametrize("name", ["config.json", "config.npz"])
def test_files_of_others_are_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"seed": 0}')
    with pytest.raises(ValueError, match=rf"{name}' is there, and no golden file"):
        write_golden(Mixed, tmp_path / "config", **MIXED)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, '{"seed": 0}')]
