"""A folder of images to a classifier, in one command, and what is told of a folder before it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageDraw

import vit_jax
from tests import commands
from vit_jax.cli import finetune, jax_setup
from vit_jax.config import find_recipe, load_config, load_recipe
from vit_jax.config.serialize import config_own

pytestmark = [
    pytest.mark.xdist_group("finetune"),
    # Raised by beartype at annotations of the libraries when the commands import their modules.
    pytest.mark.filterwarnings("ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"),
]

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
QUICK = (
    *("--config.num_epochs=2", "--config.optimizer.warmup_epochs=0"),
    "--config.optimizer.learning_rate=0.03",  # too high: the second epoch is worse
    *("--config.log.tensorboard=false", "--config.data.num_workers=0"),
)
NEW = ("--workdir=new", "--model=vit_tiny_patch16_224")
TRAINED_ON_TOO = (
    "warning: 1 of the images that are held out for validation and test are trained on too "
    "(photos/triangle/11.png is photos/triangle/00.png): accuracy will look better than it is\n"
)


def draw_shapes(folder: Path, count: int) -> Path:
    """`count` pictures each of discs, squares and triangles, all different."""
    rng = np.random.default_rng(0)
    for name in ("disc", "square", "triangle"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            width, height = map(int, rng.integers(20, 30, 2))
            image = Image.new("RGB", (width, height), tuple(map(int, rng.integers(0, 100, 3))))
            draw = ImageDraw.Draw(image)
            box, colour = (4, 4, width - 4, height - 4), tuple(map(int, rng.integers(150, 256, 3)))
            if name == "disc":
                draw.ellipse(box, colour)
            elif name == "square":
                draw.rectangle(box, colour)
            else:
                draw.polygon([(4, height - 4), (width - 4, height - 4), (width // 2, 4)], colour)
            image.save(folder / name / f"{number:02d}.png")
    return folder


def weights(path: Path, **fields: Any) -> Path:
    """Of a tiny model of 5 classes, with a normalisation of its own."""
    model = vit_jax.create_model(
        "vit_tiny_patch16_224", rngs=nnx.Rngs(0), num_classes=5, **SIZES, **fields
    )
    vit_jax.save_pretrained(model, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds photos/, w.safetensors and, by the first test, runs/photos; no test changes them."""
    folder = tmp_path_factory.mktemp("finetune")
    shapes = draw_shapes(folder / "photos", 12) / "triangle"
    shutil.copy(shapes / "00.png", shapes / "11.png")  # one of training, one that is held out
    (folder / "photos" / "disc" / "bad.jpg").write_bytes(b"no image")
    weights(folder / "w.safetensors")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[Path, commands.Ended, commands.Ended]:
    """The run, how its command ended, and how it ended at first: an image is damaged."""
    command = ("finetune", "photos/", "--from", "w.safetensors", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        refused = commands.run(*command)
        return place / "runs" / "photos", commands.run(*command, "--skip-damaged"), refused


def test_a_damaged_image_is_refused_and_named(finished):
    *_, refused = finished
    assert refused.status == 2
    assert refused.err.splitlines()[1:] == [
        "error: 1 of 37 images of photos are damaged (disc/bad.jpg): --skip-damaged leaves them "
        "out; `vit-jax data check photos` says what is wrong with each"
    ]


def test_one_command_makes_a_classifier(finished, place):
    workdir, ended, _ = finished
    assert ended.status == 0, ended.err
    assert ended.err.endswith(TRAINED_ON_TOO)
    lines = ended.out.splitlines()
    assert lines[:8] == [
        "1 of 37 images of photos are damaged and left out:",
        "  disc/bad.jpg",
        "photos: train on train, validation on validation+test",
        "class      train  validation",
        "disc           8           4",
        "square         9           3",
        "triangle       8           4",
        "3 classes     25          11",
    ]
    assert "vit_tiny_patch16_224 from w.safetensors, images of 16x16 pixels, 3 classes" in ended.out
    assert "top-5" not in ended.out  # of three classes
    assert "top5" not in ended.out
    config = load_config(workdir / "config.json")
    assert config_own(workdir / "config.json")["images"].startswith("36 images ")
    assert config.data.exclude == ("disc/bad.jpg",)
    assert config.model.kwargs == {**SIZES, "num_classes": 3}
    assert (config.data.mean, config.num_epochs) == ((0.5, 0.5, 0.5), 2)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, last = [row for row in rows if row["split"] == "validation"]
    assert first["top1"] >= last["top1"]
    best, right = first["step"], round(11 * first["top1"])
    assert f"\nloss {first['loss']:.4f}  top-1 {first['top1']:.4f}  " in ended.out
    told = f"the best checkpoint, of step {best}: {right} of 11 images right, {right / 11:.1%}"
    assert told in lines
    assert lines[-1] == "next: vit-jax predict runs/photos:best PHOTO.jpg"
    for name in ("confusion", "accuracy", "loss"):
        assert (workdir / "plots" / f"{name}.png").stat().st_size > 5_000


def test_the_recipe_is_the_runs_own_and_can_be_trained(finished, place, monkeypatch):
    workdir, *_ = finished
    monkeypatch.chdir(place)
    assert load_recipe(workdir / "recipe.py") == load_config(workdir / "config.json")
    again = commands.run("train", f"--config={workdir / 'recipe.py'}", "--workdir=runs/photos")
    assert (again.status, again.err) == (0, TRAINED_ON_TOO)
    assert "the run in runs/photos is finished" in again.out


def test_a_run_does_not_go_on_with_other_images(finished, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = Path("runs/photos")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [json.dumps(row) for row in rows if row["split"] != "test"]
    (run / "metrics.jsonl").write_text("\n".join([*kept, ""]))
    Path("photos/disc/00.png").rename("photos/square/12.png")
    ended = commands.run("train", "--config", str(run / "recipe.py"), "--workdir", str(run))
    assert ended.status == 2
    assert "the images of runs/photos or their labels are not those" in ended.err


def test_the_same_command_says_that_the_run_is_finished(finished, place, monkeypatch):
    _, ended, _ = finished
    monkeypatch.chdir(place)
    again = commands.run("finetune", "photos", "--from=w.safetensors", *QUICK, "--skip-damaged")
    assert again.status == 0
    assert "the run in runs/photos is finished" in again.out
    results = ended.out.partition("the best checkpoint")[2]
    assert again.out.endswith(results)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("photos", "--from=other.pth"),
            "recipe.py has init_from='w.safetensors', and 'other.pth'",
        ),
        (("photos", "--model=vit_base_patch16_224"), "has model.name='vit_tiny_patch16_224', and"),
        (("p", "--workdir=runs/photos"), "recipe.py has data.data_dir='photos', and 'p' was given"),
        (("photos", "--config.data.batch_size=4"), "which differs in data.batch_size (was 8, now"),
        (
            ("photos", "--config.data.validation_split="),
            "needs both; `vit-jax train` needs neither",
        ),
        (("photos", "--labels=l.csv"), "has data.labels_file='', and 'l.csv' was given"),
        (("photos", "--workdir=gs://a/b"), "--workdir gs://a/b: wanted a directory"),
        (("photos", "--workdir=new"), "error: wanted --from SOURCE, trained weights to start from"),
        (("nowhere", "--model=vit_tiny_patch16_224"), "error: there is no folder nowhere; wanted"),
        (("photos", "--workdir=new", "--from=nowhere.pth"), "nowhere.pth"),
        (("photos", *NEW, "--objective=regression"), "--objective regression: wanted --labels FIL"),
        (("photos", *NEW, "--labels=one.csv"), "has the class 7 alone: wanted two or more"),
        (("photos", *NEW, "--labels=one.csv", "--objective=regression"), "the same for all images"),
        (("photos", "--workdir=new", "--from=grey.safetensors"), "takes images of 1 channels, and"),
        (("photos", "--workdir=new", "--model=vit_tinny"), "vit_tinny"),
        (
            ("photos", "--workdir=new", "--model=vit", "--skip-damaged"),
            "error: nothing states the mean and standard deviation that a model takes",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(finished, place, monkeypatch, options, said):
    monkeypatch.chdir(place)
    if not Path("grey.safetensors").exists():
        weights(Path("grey.safetensors"), in_chans=1)
        Path("one.csv").write_text("file,label\ndisc/00.png,7\ndisc/01.png,7\n")
    ended = commands.run("finetune", *options)
    assert ended.status == 2
    assert said in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_epochs=2", "num_epochs=3", "error: the work directory holds a run of another config"),
        ("num_epochs=2", "num_epochs=0", "error: config.num_epochs: wanted an integer >= 1, got 0"),
        ("source=", "sauce=", "recipe.py, line "),
    ],
)
def test_an_edited_recipe(finished, place, monkeypatch, old, new, said):
    """It is read as it stands; the run that it no longer describes does not go on."""
    monkeypatch.chdir(place)
    recipe = finished[0] / "recipe.py"
    text = recipe.read_text()
    recipe.write_text(text.replace(old, new))
    ended = commands.run("finetune", "photos")
    recipe.write_text(text)
    assert ended.status == 2
    assert said in ended.err


def test_deterministic_kernels_are_asked_for_before_jax_is_used(monkeypatch, tmp_path):
    asked = []

    def stop(deterministic):
        asked.append(deterministic)
        raise SystemExit(3)

    monkeypatch.setattr(jax_setup, "set_up_jax", stop)
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "recipe.py").write_text(
        "from vit_jax.config import load_recipe, find_recipe\n"
        "def get_config():\n"
        "    config = load_recipe(find_recipe('finetune_folder'))\n"
        "    config.training.deterministic = True\n"
        "    return config\n"
    )
    for arguments in (["--config.training.deterministic=true"], [], ["--workdir=edited"]):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            finetune.run(["photos", *arguments])
    assert asked == [True, False, True]


def test_the_result_is_computed_as_the_run_computed(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("vit_jax.inference.labelled.open_labelled", lambda *_: 1 / 0)
    monkeypatch.setattr(jax_setup, "set_matmul_precision", asked.append)
    config = load_recipe(find_recipe("finetune_folder"))
    config.matmul_precision = "high"
    with pytest.raises(ZeroDivisionError):
        finetune._tell_result(config, tmp_path)
    assert asked == ["high"]


def test_the_best_checkpoint_has_a_name_everywhere(finished, place, monkeypatch):
    workdir, ended, _ = finished
    monkeypatch.chdir(place)
    best = ended.out.partition("of step ")[2].partition(":")[0]
    named = vit_jax.from_pretrained("runs/photos:best")
    assert named.spec.class_names == ("disc", "square", "triangle")
    same = vit_jax.state_dict(vit_jax.from_pretrained(workdir / "checkpoints" / best))
    for name, array in vit_jax.state_dict(named).items():
        np.testing.assert_array_equal(array, same[name])
    predicted = commands.run("predict", "runs/photos:best", "photos/disc/00.png", "--json")
    top = json.loads(predicted.out)["top"]
    assert {guess["name"] for guess in top} == {"disc", "square", "triangle"}
    evaluated = commands.run("evaluate", "runs/photos:best")
    assert evaluated.out.splitlines()[0] in ended.out


def test_data_check_tells_what_training_would_stumble_over(place, tmp_path):
    ended = commands.run("data", "check", str(place / "photos"))
    assert ended.status == 1
    assert ended.out.splitlines()[1:] == [
        "class      train  validation  test",
        "disc           9           1     3",
        "square         9           1     2",
        "triangle       8           2     2",
        "3 classes     26           4     7",
        *[line for line in ended.out.splitlines() if line.startswith("pixels: 2")],
        "copies of other images: 1",
        "damaged: 1",
        "  disc/bad.jpg: is not a readable image (8 bytes): damaged or cut off",
        "equal in several splits: what is trained on is held out too: 1",
        "  triangle/00.png = triangle/11.png",
    ]
    train = tmp_path / "own" / "train"
    shutil.copytree(place / "photos", train, ignore=shutil.ignore_patterns("bad.jpg", "11.png"))
    draw_shapes(tmp_path / "own" / "val", 1)  # the same seed: an image of training
    good = commands.run("data", "check", str(train))
    assert (good.status, good.out.splitlines()[-1][:20]) == (0, "no image is damaged,")
    shutil.copy(train / "disc" / "03.png", train / "square" / "x.png")
    bad = commands.run("data", "check", str(tmp_path / "own"))
    assert bad.status == 1
    assert "equal in several splits: what is trained on is held out too: 1\n" in bad.out
    assert "  train/disc/00.png = val/disc/00.png\n" in bad.out
    assert bad.out.endswith(
        "equal in several classes: one label is wrong: 1\n"
        "  train/disc/03.png = train/square/x.png\n"
    )


@pytest.mark.parametrize(
    ("kind", "column", "label"),
    [
        ("multilabel", "label", lambda shape, number: ";".join([shape, "odd"][: 1 + number % 2])),
        pytest.param(
            "regression", "value", lambda shape, number: len(shape), marks=pytest.mark.slow
        ),
        pytest.param(
            "classification", "label", lambda shape, number: shape, marks=pytest.mark.slow
        ),
    ],
)
def test_a_label_file_makes_what_its_labels_are(place, monkeypatch, tmp_path, kind, column, label):
    """Every command then knows it by itself."""
    monkeypatch.chdir(place)
    labels, run = tmp_path / "labels.csv", tmp_path / "run"
    rows = [
        f"{shape}/{number:02d}.png,{label(shape, number)}"
        for shape in ("disc", "square", "triangle")
        for number in range(11)
    ]
    labels.write_text("\n".join([f"file,{column}", *rows]))
    command = ("finetune", "photos", f"--labels={labels}", "--from=w.safetensors", *QUICK)
    ended = commands.run(*command, f"--workdir={run}")
    assert ended.status == 0, ended.err
    assert f"({kind}): train on train" in ended.out
    config = load_config(run / "config.json")
    assert config.loss.target == kind
    picture, curves, head = {
        "multilabel": ("precision_recall", "accuracy", "odd  "),
        "regression": ("predicted", "error", "mean  "),
        "classification": ("confusion", "accuracy", "disc  "),
    }[kind]
    assert f"\n{head}" in ended.out
    for name in (picture, curves, "loss"):
        assert (run / "plots" / f"{name}.png").stat().st_size > 5_000
    results = ended.out.partition("the best checkpoint")[2]
    evaluated = commands.run(
        *("evaluate", f"{run}:best", f"--labels={labels}", "--data-dir=photos"),
        "--split=validation+test",
    )
    assert evaluated.status == 0, evaluated.err
    assert set(evaluated.out.strip().splitlines()) <= set(results.splitlines())
    predicted = commands.run("predict", f"{run}:best", "photos/disc/00.png", "--json")
    found = json.loads(predicted.out)
    if kind == "regression":
        assert len(found["values"]) == 1
        return
    assert len(found["top"]) == 3 or all(each["probability"] >= 0.5 for each in found["top"])
    if kind == "multilabel":
        data = ("--method=knn", "--train-split=train", "--test-split=validation")
        refused = commands.run("probe", f"{run}", *data)
        assert (refused.status, "wanted classes, one an image" in refused.err) == (2, True)
        checked = commands.run("data", "check", "photos", f"--labels={labels}")
        assert "label     train  validation  test" in checked.out
        labels.write_text("file,value\ndisc/00.png,3\n")  # of one image, and two empty parts
        checked = commands.run("data", "check", "photos", f"--labels={labels}")
        assert "\nmean           3           -     -\n" in checked.out
