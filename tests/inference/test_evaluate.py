"""Evaluation: the test row of a run, and figures that anyone can compute."""

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import confusion_matrix, recall_score

import vit_jax
from tests.data.conftest import write_png
from tests.training.runs import rows
from vit_jax import cli
from vit_jax.config import DataConfig
from vit_jax.data.own import OwnSource
from vit_jax.data.sources import ArraySource
from vit_jax.inference.evaluate import Evaluation, _labels_of, evaluate
from vit_jax.inference.labelled import open_labelled

pytestmark = pytest.mark.xdist_group("run")


@pytest.fixture(scope="module")
def loaded(run) -> Any:
    return vit_jax.from_pretrained(run)


@pytest.fixture(scope="module")
def found(run, loaded) -> Evaluation:
    labelled = open_labelled(run)
    return evaluate(loaded, labelled.source, labelled.batch_size, 0)


def made_up(count: int = 500, classes: int = 7) -> Evaluation:
    """Random figures; class 6 has no example."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes - 1, count)
    predictions = np.where(rng.random(count) < 0.5, labels, rng.integers(0, classes, count))
    confidences = rng.random(count)
    confidences[:4] = 1.0, 1 / 15, 2 / 15, 1e-30  # edges belong to the bin below
    names = tuple(f"class {i}" for i in range(classes))
    return Evaluation("made up", 1.0, 0.5, 0.9, names, labels, predictions, confidences)


def test_the_test_row_of_a_run_to_the_last_bit(run, found):
    row = rows(run)[-1]
    assert row["split"] == "test"
    assert (found.loss, found.top1, found.top5) == (row["loss"], row["top1"], row["top5"])
    assert len(found.labels) == 360


def test_averaged_weights_give_their_row(run):
    labelled = open_labelled(run)
    found = evaluate(
        vit_jax.from_pretrained(run, ema=True), labelled.source, labelled.batch_size, 0
    )
    row = rows(run)[-1]
    assert (found.loss, found.top1) == (row["ema_loss"], row["ema_top1"])


def test_figures_of_examples_agree_with_the_sums(found):
    assert (found.labels == found.predictions).mean() == found.top1
    assert np.trace(found.confusion) / found.confusion.sum() == found.top1
    assert ((found.confidences >= 0.1) & (found.confidences <= 1)).all()  # of ten classes


def test_confusion_is_sklearns():
    found = made_up()
    wanted = confusion_matrix(found.labels, found.predictions, labels=range(7))
    np.testing.assert_array_equal(found.confusion, wanted)
    recalls = recall_score(found.labels, found.predictions, labels=range(6), average=None)
    np.testing.assert_allclose(found.class_accuracy[:6], recalls)
    assert np.isnan(found.class_accuracy[6])
    np.testing.assert_array_equal(found.class_counts, wanted.sum(axis=1))


@pytest.mark.parametrize("bins", [15, 10])
def test_calibration_by_hand(bins):
    found = made_up()
    calibration = found.calibration(bins)
    error = 0.0
    for i in range(bins):
        inside = (found.confidences > calibration.edges[i]) & (
            found.confidences <= calibration.edges[i + 1]
        )
        assert calibration.count[i] == inside.sum()
        accuracy = (found.labels == found.predictions)[inside].mean()
        confidence = found.confidences[inside].mean()
        np.testing.assert_allclose(calibration.accuracy[i], accuracy)
        np.testing.assert_allclose(calibration.confidence[i], confidence)
        error += inside.mean() * abs(accuracy - confidence)
    assert calibration.count.sum() == 500
    np.testing.assert_allclose(calibration.error, error)


def test_an_empty_bin_is_no_number():
    found = dataclasses.replace(made_up(), confidences=np.full(500, 0.5))
    calibration = found.calibration()
    assert np.isnan(calibration.accuracy).sum() == 14
    accuracy = (found.labels == found.predictions).mean()
    assert calibration.error == pytest.approx(abs(accuracy - 0.5))


def source_of(*names: str, channels: int = 1) -> ArraySource:
    images = np.zeros((len(names), 8, 8, channels), np.uint8)
    return ArraySource(images, np.arange(len(names)), class_names=names, name="made up")


def test_labels_go_by_name_where_there_are_names(loaded):
    named = nnx.clone(loaded)
    named.spec = dataclasses.replace(named.spec, class_names=tuple("abcdefghij"))
    by_name, notes = _labels_of(named, source_of("c", "a"))
    assert (by_name.tolist(), notes) == ([2, 0], ())
    assert _labels_of(named, source_of("a", "b"))[0].tolist() == [0, 1]
    by_index, notes = _labels_of(named, source_of(*"abcdefghix"))
    assert by_index.tolist() == list(range(10))
    assert "classes go by index: made up names class 9 'x', the model 'j'" in notes[0]
    with pytest.raises(ValueError, match="class 'x' of made up is none of the model's 10"):
        _labels_of(named, source_of("a", "x"))


def test_labels_go_by_index_where_nothing_names_the_classes(loaded):
    """Numbers are no names: class "10" of eleven sorted folders is the third."""
    unnamed = nnx.clone(loaded)
    unnamed.spec = dataclasses.replace(unnamed.spec, class_names=None)
    by_index, notes = _labels_of(
        unnamed, source_of(*sorted(["0", "1", "10", "2", "3", "4", "5", "6", "7", "8"]))
    )
    assert by_index.tolist() == list(range(10))
    assert notes == ("classes go by index: nothing names the model's 10",)
    with pytest.raises(ValueError, match="names the model's 10 classes, and made up has 2"):
        _labels_of(unnamed, source_of("0", "1"))
    for label, message in ((9, None), (10, "image 0 has label 10, but the set declares 10")):
        items = OwnSource([(np.zeros((8, 8), np.uint8), label)])  # which nothing names either
        with (
            contextlib.nullcontext()
            if message is None
            else pytest.raises(ValueError, match=message)
        ):
            assert evaluate(loaded, items, 1, 0).labels.tolist() == [label]


def test_relabelled_examples_are_counted_where_they_belong(loaded):
    labels = ("7", "3")
    found = evaluate(loaded, source_of(*labels), 4, 0)
    assert found.labels.tolist() == [7, 3]
    assert found.class_counts[[7, 3]].tolist() == [1, 1]


def test_another_number_of_channels(loaded):
    with pytest.raises(ValueError, match="have 3 channels and the model takes 1"):
        evaluate(loaded, source_of("0", channels=3))


def test_data_of_a_run_a_recipe_or_the_command_line(run, tmp_path):
    own = open_labelled(run)
    assert (own.source.name, own.batch_size, own.num_workers) == ("digits test", 64, 0)
    assert len(open_labelled(run / "checkpoints" / "12", split="train[:50]").source) == 50
    recipe = DataConfig(source="digits", batch_size=1, test_split=None)
    assert open_labelled(run, recipe).source.name == "digits validation"
    for name in ("cat", "dog"):
        write_png(tmp_path / "set" / name / "1.png", np.zeros((9, 9, 3), np.uint8))
    options = {"source": "folder", "data_dir": tmp_path, "name": "set", "split": "all"}
    folder = open_labelled(run, **options, batch_size=2)
    assert folder.source.class_names == ("cat", "dog")
    assert folder.batch_size == 2
    with pytest.raises(ValueError, match="names no data: wanted --source"):
        open_labelled(tmp_path)
    with pytest.raises(ValueError, match="neither a test nor a validation split"):
        open_labelled(run, dataclasses.replace(recipe, validation_split=None))


def test_command_prints_a_table_and_a_matrix(run, found, tmp_path, capsys):
    picture = tmp_path / "e.png"
    assert cli.main(["evaluate", str(run), "--plot", str(picture)]) == 0
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "digits test: 360 images"
    assert lines[1].startswith(f"loss {found.loss:.4f}  top-1 {found.top1:.4f}  top-5 ")
    table = [line.split() for line in lines[4:14]]
    assert [int(row[1]) for row in table] == found.class_counts.tolist()
    matrix = np.loadtxt(lines[-10:], dtype=int)
    np.testing.assert_array_equal(matrix[:, 1:], found.confusion)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_command_gives_all_figures_as_json(run, found, capsys):
    recipe = ["--config", "digits_vit", "--config.data.num_workers=0", "--batch-size=64"]
    assert cli.main(["evaluate", str(run), "--json", *recipe]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], told["loss"]) == (360, found.loss)
    assert told["confusion"] == found.confusion.tolist()
    assert [each["images"] for each in told["classes"]] == found.class_counts.tolist()
    calibration = told["calibration"]
    assert calibration["expected_calibration_error"] == found.calibration().error
    assert [each["images"] for each in calibration["bins"]] == found.calibration().count.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "folder", "--data-dir", "nowhere"], "error: there is no folder nowhere"),
        (["--split", "nope"], "error: there is no split 'nope'"),
        (["--splot", "nope"], "error: "),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, message):
    assert cli.main(["evaluate", str(run), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_of_many_classes_the_worst():
    from vit_jax.cli.evaluate import as_text

    lines = as_text(made_up(4000, 120))
    assert "the 20 worst of 119 classes (all: --json)" in lines
    worst = [float(line.split()[3]) for line in lines[5:]]
    assert worst == sorted(worst)
    assert len(worst) == 20
