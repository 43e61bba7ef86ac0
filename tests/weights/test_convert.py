"""`vit_jax.weights.convert`: one form into another, and training runs as the source."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import vit_jax
from tests.models.families import FAMILIES, build
from tests.training.runs import arrays, tiny
from tests.weights.designs import assert_same_weights, redraw, with_preprocessing
from vit_jax.models.registry import abstract_model
from vit_jax.weights.convert import convert, print_report

pytestmark = pytest.mark.xdist_group("run")

VIT, FIELDS = FAMILIES["vit"]
RUN_FIELDS = tiny().model.kwargs


def of_run(seed: int = 1) -> Any:
    return redraw(abstract_model(VIT, **RUN_FIELDS), seed)


@pytest.mark.parametrize(("place", "step"), [("", 12), ("checkpoints/8", 8)])
def test_a_run_is_a_source(run: Path, place: str, step: int) -> None:
    model = of_run()
    report = vit_jax.load_pretrained(model, run / place)
    assert report.left == (f"step {step} of a run of {VIT}",)
    assert report.dialect is None
    state, stored = vit_jax.state_dict(model), arrays(run, step)
    for name, other in (("pos_embed", "pos_embed"), ("norm.weight", "norm.scale")):
        (found,) = (raw for key, raw in stored.items() if key.endswith(f"model/{other}"))
        assert state[name].tobytes() == found
    assert model.spec.preprocessing is not None
    assert len(model.spec.preprocessing.mean) == 1


@pytest.mark.parametrize(
    ("to", "target"),
    [
        ("timm", "w.safetensors"),
        ("timm", "w.pth"),
        ("hf", "hf"),
        ("google", "w.npz"),
        ("orbax", "folder"),
    ],
)
def test_a_run_into_every_form(run: Path, tmp_path: Path, to: str, target: str) -> None:
    model, _ = convert(str(run), str(tmp_path / target), VIT, fields={}, to=to)  # the run's own
    trained, other = of_run(), of_run()
    vit_jax.load_pretrained(trained, run)
    assert_same_weights(model, trained)
    with_preprocessing(other, None)
    vit_jax.load_pretrained(other, tmp_path / target)
    assert_same_weights(other, trained)
    if target in ("w.safetensors", "hf"):
        assert other.spec.preprocessing is not None
        assert other.spec.preprocessing.mean == trained.spec.preprocessing.mean
        assert other.spec.preprocessing.std == trained.spec.preprocessing.std


def test_a_run_without_averaged_weights(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12" / "ema")
    vit_jax.load_pretrained(of_run(), tmp_path / "run")
    with pytest.raises(ValueError, match="averages no weights"):
        vit_jax.load_pretrained(of_run(), tmp_path / "run", ema=True)


@pytest.mark.parametrize(
    "model",
    ["5", "{}", '{"name": 3, "kwargs": {}}', '{"name": [], "kwargs": {}}', "[" * 100_000]
    + [f'{{"name": "{VIT}", "kwargs": {kwargs}}}' for kwargs in ("5", '{"depht": 1}')],
)
def test_a_damaged_config_of_a_run(run: Path, tmp_path: Path, model: str) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(f'{{"model": {model}}}')
    with pytest.raises(ValueError, match=r"cannot be read|unknown model|unknown field"):
        vit_jax.load_pretrained(of_run(), tmp_path / "run")


def test_a_damaged_checkpoint_of_a_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12" / "model")
    with pytest.raises(ValueError, match="is damaged"):
        vit_jax.load_pretrained(of_run(), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        vit_jax.load_pretrained(of_run(), tmp_path / "run")


def test_a_weights_file_in_a_folder_named_checkpoints(tmp_path: Path) -> None:
    """Somebody else's project, with a config.json of its own."""
    folder = tmp_path / "checkpoints"
    model = build("vit")
    vit_jax.save_pretrained(model, folder / "w.safetensors")
    (tmp_path / "config.json").write_text('{"lr": 1}')
    other = redraw(build("vit"))
    vit_jax.load_pretrained(other, folder / "w.safetensors")
    assert_same_weights(other, model)


# ------------------------------------------------------------------------------------ fields


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 5 classes, of images of 8 x 12."""
    path = tmp_path_factory.mktemp("source") / "w.safetensors"
    vit_jax.save_pretrained(build("vit"), path)
    return path


def converted(source: Path, tmp_path: Path, **options: Any) -> tuple[Any, Any, dict]:
    fields = {**FIELDS, **options.pop("fields", {})}
    target = str(tmp_path / "o.pth")
    model, report = convert(str(source), target, VIT, fields=fields, **options)
    return model, report, {k: v.numpy() for k, v in torch.load(target).items()}


def test_the_number_of_classes_is_the_sources(source: Path, tmp_path: Path) -> None:
    model, report, state = converted(source, tmp_path)
    assert model.num_classes == 5
    assert report.adapted == ()
    want = vit_jax.state_dict(build("vit"))
    assert state.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(state[name], array)
    with pytest.raises(ValueError, match=r"head\.weight wanted \(7, 8\), got \(5, 8\)"):
        converted(source, tmp_path, fields={"num_classes": 7})


def test_a_head_dropped_or_cut(source: Path, tmp_path: Path) -> None:
    want = vit_jax.state_dict(build("vit"))
    model, report, state = converted(source, tmp_path, head=[2, 0])
    assert model.num_classes == 2
    np.testing.assert_array_equal(state["head.weight"], want["head.weight"][[2, 0]])
    assert "head.weight" in report.loaded
    model, report, state = converted(source, tmp_path, head="drop", fields={"num_classes": 7})
    assert state["head.weight"].shape == (7, 8)
    assert not {"head.weight", "head.bias"} & set(report.loaded)
    assert "norm.weight" in report.loaded
    assert len(report.adapted) == 1


def test_another_image_size_and_other_channels(source: Path, tmp_path: Path) -> None:
    fields = {"img_size": 16, "in_chans": 1}
    old = build("vit", img_size=8)
    vit_jax.save_pretrained(old, tmp_path / "square.safetensors")
    with pytest.raises(ValueError, match="grid of 2x2 patches, this model's for 4x4"):
        converted(tmp_path / "square.safetensors", tmp_path, fields={"img_size": 16})
    options = {"fields": fields, "resize": "source", "in_chans": True}
    model, report, state = converted(tmp_path / "square.safetensors", tmp_path, **options)
    assert state["pos_embed"].shape == (1, 17, 8)
    want = vit_jax.state_dict(old)["patch_embed.proj.weight"].sum(1, keepdims=True)
    np.testing.assert_allclose(state["patch_embed.proj.weight"], want, rtol=1e-6, atol=1e-7)
    assert len(report.adapted) == 2
    assert model.spec.preprocessing is None
    assert report.left == ("its preprocessing, of 3 channels",)


def test_fields_that_the_source_states(tmp_path: Path) -> None:
    vit_jax.save_pretrained(
        build("vit", img_size=8, norm_eps=1e-3, num_heads=4), tmp_path / "f", dialect="huggingface"
    )
    fields = {key: value for key, value in FIELDS.items() if key != "num_heads"} | {"img_size": 8}
    model, _ = convert(str(tmp_path / "f"), str(tmp_path / "o.pth"), VIT, fields=fields)
    assert (model.config.norm_eps, model.config.num_heads, model.num_classes) == (1e-3, 4, 5)
    with pytest.raises(ValueError, match=r"norm_eps=0\.001, this one has 1e-05"):
        convert(
            str(tmp_path / "f"),
            str(tmp_path / "o.pth"),
            VIT,
            fields={**fields, "norm_eps": 1e-5},
        )


def test_the_averaged_or_the_raw_weights(tmp_path: Path) -> None:
    raw = {name: torch.tensor(array) for name, array in vit_jax.state_dict(build("vit")).items()}
    averaged = {name: tensor + 1 for name, tensor in raw.items()}
    path = tmp_path / "w.pth.tar"
    torch.save({"state_dict": raw, "state_dict_ema": averaged, "epoch": 3}, path)
    for ema, want in ((None, raw), (False, raw), (True, averaged)):
        _, report, state = converted(path, tmp_path, ema=ema)
        np.testing.assert_array_equal(state["pos_embed"], want["pos_embed"].numpy())
        assert any("epoch" in line for line in report.left)


@pytest.mark.parametrize(
    ("target", "to", "message"),
    [
        ("o.pth", "torch", "--to: wanted one of own, timm, hf, google, orbax, got 'torch'"),
        ("o.npz", "timm", r"weights are written as \.safetensors"),
        ("o.pth", "google", r"written as \.npz"),
        ("there", "hf", "holds 'thesis.txt': give the path of a new folder"),
        ("there", "orbax", "holds 'model.safetensors': give the path of a new folder"),
        ("there/thesis.txt", "orbax", "is a file"),
        ("there.safetensors", "timm", "is a folder"),
    ],
)
def test_targets_that_are_refused(
    source: Path, tmp_path: Path, target: str, to: str, message: str
) -> None:
    for folder in ("there", "there.safetensors"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thesis.txt").write_text("years of work")
    shutil.copy(source, tmp_path / "there" / "model.safetensors")
    fields = {**FIELDS, "patch_size": 4, "img_size": (8, 12)}
    with pytest.raises(ValueError, match=message):
        convert(str(source), str(tmp_path / target), VIT, fields=fields, to=to)
    for folder in ("there", "there.safetensors"):
        assert (tmp_path / folder / "thesis.txt").read_text() == "years of work"


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path) -> None:
    first = build("vit", img_size=8)
    second = redraw(build("vit", img_size=8), seed=5)
    with_preprocessing(second, None)
    for dialect in ("huggingface", "orbax"):
        for model in (first, second):
            vit_jax.save_pretrained(model, tmp_path / dialect, dialect=dialect)
        vit_jax.load_pretrained(first, tmp_path / dialect)
        assert_same_weights(first, second)
    assert not (tmp_path / "huggingface" / "preprocessor_config.json").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["huggingface", "orbax"]


def test_a_head_that_is_no_matrix_is_an_error_of_the_model(source: Path, tmp_path: Path) -> None:
    state = vit_jax.state_dict(build("vit"))
    state["head.weight"] = np.float32(3)  # type: ignore[assignment]
    np.savez(tmp_path / "w.npz", allow_pickle=False, **state)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"misshapen: head\.weight wanted .* got \(\)"):
        converted(tmp_path / "w.npz", tmp_path)


def test_the_table_counts_every_array(source: Path, tmp_path: Path) -> None:
    """Also of a source whose name looks like rich's markup."""
    odd = tmp_path / "[red]a[/b].safetensors"
    odd.parent.mkdir()
    shutil.copy(source, odd)
    model, report, _ = converted(odd, tmp_path, head="drop")
    file = io.StringIO()
    print_report(model, report, Console(file=file, width=200))
    text = file.getvalue()
    assert "[red]a[/b].safetensors (own names)" in text
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    numbers = {row[0].strip(): int(row[2]) for row in rows}
    assert sum(numbers.values()) == len(vit_jax.state_dict(model))
    assert numbers["blocks.*.attn.qkv.weight"] == 3
    assert numbers["head.weight"] == 1
    assert any(line.startswith("adapted: head: dropped") for line in text.splitlines())
    assert json.dumps(report.left) == "[]"
