"""Predictions: those of the evaluation of training, whatever else is among the files."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests.data.conftest import write_png
from tests.inference.broken import write_broken
from tests.training.runs import tiny
from vit_jax import cli
from vit_jax.config import load_config
from vit_jax.data.folder import FolderSource
from vit_jax.data.splits import open_splits
from vit_jax.inference import classifier as classifiers
from vit_jax.inference.predict import predict
from vit_jax.layers.attention import AttentionForm
from vit_jax.training.run import Run, open_run
from vit_jax.weights.run_folder import CONFIG_FILE

pytestmark = pytest.mark.xdist_group("run")


@pytest.fixture(scope="module")
def loaded(run) -> Any:
    return vit_jax.from_pretrained(run)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """The first 40 images of the digits' test split, as PNG."""
    folder = tmp_path_factory.mktemp("digits")
    test = open_splits("digits").test
    assert test is not None
    paths = []
    for i in range(40):
        paths.append(str(folder / f"{i:02d}.png"))
        Image.fromarray(test[i]["image"][..., 0]).save(paths[-1])
    return paths


def probabilities(predictions, classes: int) -> np.ndarray:
    found = np.zeros((len(predictions), classes))
    for row, prediction in zip(found, predictions, strict=True):
        for guess in prediction.top:
            row[guess.index] = guess.probability
    return found


def of_training(run: Run, model, source) -> np.ndarray:
    """The probabilities that the evaluation of a run sees."""

    @jax.jit
    def evaluated(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(model(run.prepare_eval(images)))

    batches = run.eval_batches(source)
    return np.concatenate([np.asarray(evaluated(b["image"]))[b["mask"]] for b in batches])


def test_predictions_are_those_of_evaluation(run, loaded, files):
    test = open_splits("digits").test
    assert test is not None
    predictions = list(predict(loaded, files, top=99, batch_size=16))
    assert [prediction.path for prediction in predictions] == files
    wanted = of_training(open_run(load_config(run / CONFIG_FILE)), loaded, test)[:40]
    np.testing.assert_allclose(probabilities(predictions, 10), wanted, atol=1e-6)
    first = predictions[0].top
    assert [guess.index for guess in first] == np.argsort(-wanted[0]).tolist()
    assert first[0].name == str(first[0].index)


def test_predictions_are_those_of_evaluation_on_images_that_vary(tmp_path):
    """A model at 8x8 of pictures of any size: cropped and resized as in training."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(8):
            image = rng.integers(0, 256, (12 + i, 25 - i, 3), dtype=np.uint8)
            write_png(tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png", image)
    config = tiny(
        num_epochs=1,
        data__source="folder",
        data__data_dir=str(tmp_path / "data"),
        data__validation_split=None,
        data__num_train_examples=None,
        data__batch_size=8,
        data__mean=(0.4, 0.5, 0.6),
        data__std=(0.2, 0.3, 0.4),
        data__eval_crop_fraction=0.8,
        data__eval_interpolation="bicubic",
    )
    config.model.kwargs |= {"in_chans": 3, "num_classes": 2}
    run = open_run(config)
    assert run.preprocessing.crop_fraction == 0.8
    model = vit_jax.create_model(config.model.name, rngs=nnx.Rngs(0), **config.model.kwargs)
    model.eval()
    model.spec = run.model.spec
    source = run.data.test
    assert isinstance(source, FolderSource)
    predictions = list(predict(model, source.paths, batch_size=3))
    wanted = of_training(run, model, source)
    np.testing.assert_allclose(probabilities(predictions, 2), wanted, atol=1e-6)


def test_other_sizes_go_through_the_size_of_the_data(loaded, files):
    """A run on 8x8 shown at 16x16: a photo is made 8x8 before, as its training saw them."""
    from vit_jax.inference.classifier import Classifier
    from vit_jax.inference.images import ImageFiles

    assert loaded.spec.preprocessing.resized_from == (8, 8)

    def shown(**fields):
        model = nnx.clone(loaded)
        preprocessing = dataclasses.replace(model.spec.preprocessing, size=(16, 16), **fields)
        model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing)
        return Classifier.of(model)

    classifier = shown()
    images = [np.zeros((30, 40, 1), np.uint8), files[0]]
    (batch,) = classifier.batches(ImageFiles(images, 1), 2, 0)
    assert batch["image"].shape == (2, 8, 8, 1)
    unknown = shown(resized_from=None)
    (batch,) = unknown.batches(ImageFiles(images, 1), 2, 0)
    assert batch["image"].shape == (2, 16, 16, 1)


def test_batches_are_sent_ahead_of_the_one_that_is_waited_for():
    from vit_jax.inference import classifier

    sent: list[int] = []
    here: Any = SimpleNamespace(variables={}, on_device=lambda batch: batch)

    def function(variables, images):
        sent.append(images)
        return images + 1

    batches: Any = [{"image": number, "index": -number} for number in range(9)]
    found = []
    for batch, result in classifier.Classifier.results(here, function, batches):
        found.append((batch, result))
        assert len(sent) == min(len(found) + classifier._IN_FLIGHT, 9)
    assert found == [({"index": -number}, number + 1) for number in range(9)]


def test_arrays_in_any_batches(loaded, files):
    arrays = [np.asarray(Image.open(path))[..., None] for path in files[:7]]
    whole = list(predict(loaded, arrays, batch_size=7))
    parts = list(predict(loaded, arrays, batch_size=3, num_workers=0))
    assert [p.path for p in parts] == [None] * 7
    np.testing.assert_allclose(probabilities(parts, 10), probabilities(whole, 10), atol=1e-6)
    mixed = [files[0], *(Image.open(path) for path in files[1:4]), *arrays[4:]]
    wanted = [dataclasses.replace(whole[0], path=files[0]), *whole[1:]]
    assert list(predict(loaded, mixed, batch_size=7)) == wanted


def test_memory_does_not_grow_with_the_folder(loaded, files, monkeypatch):
    """Files are read a few batches ahead of what is asked for."""
    from vit_jax.inference import images

    read = []
    original = images.read_image
    monkeypatch.setattr(images, "read_image", lambda *a: read.append(a) or original(*a))
    predictions = predict(loaded, files * 25, batch_size=4, num_workers=2)
    next(predictions)
    assert 4 <= len(read) <= 60
    predictions.close()  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"images": []}, "wanted one image or more"),
        ({}, {"top": 0}, "top must be at least 1, got 0"),
        ({}, {"batch_size": -1}, "batch_size must be at least 1"),
        (
            {"in_chans": 2, "num_classes": 9},
            {},
            "image files give 1 or 3 channels, and this model takes 2",
        ),
        ({"in_chans": 1, "num_classes": 0}, {}, "no head"),
    ],
)
def test_what_cannot_be_predicted(loaded, change, options, message):
    if change:
        loaded = SimpleNamespace(**change, spec=loaded.spec)
    with pytest.raises(ValueError, match=message):
        predict(loaded, **{"images": ["a.png"], **options})


def test_a_model_in_train_mode_is_computed_in_eval_mode(tmp_path):
    """One of two heads returns both in train mode; the model stays as it is."""
    model = vit_jax.create_model(
        "deit_tiny_distilled_patch16_224",
        rngs=nnx.Rngs(0),
        img_size=8,
        patch_size=4,
        depth=1,
        embed_dim=8,
        num_heads=2,
    )
    image = np.zeros((8, 8, 3), np.uint8)
    (found,) = predict(model, [image], top=1, num_workers=0)
    assert len(found.top) == 1
    assert not model.deterministic


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "wanted one image or more"),
        (np.zeros((0, 8, 1), np.uint8), r"wanted uint8 \(H, W, 1\), got uint8 \(0, 8, 1\)"),
        (np.zeros((8, 8, 1), np.float32), r"got float32 \(8, 8, 1\)"),
        ("missing.png", "missing.png: No such file"),
    ],
    ids=["none", "empty", "floats", "missing"],
)
def test_images_that_cannot_be_prepared(loaded, given, message):
    with pytest.raises(ValueError, match=message):
        vit_jax.preprocess(loaded, given)


def test_preprocess_takes_what_predict_takes(loaded, files):
    """Paths, PIL images and arrays, one or several."""
    arrays = [np.asarray(Image.open(path))[..., None] for path in files[:3]]
    want = vit_jax.preprocess(loaded, files[:3])
    assert want.shape == (3, 8, 8, 1)
    for same in (arrays, np.stack(arrays), [Image.open(path) for path in files[:3]], iter(arrays)):
        np.testing.assert_array_equal(vit_jax.preprocess(loaded, same), want)
    np.testing.assert_array_equal(vit_jax.preprocess(loaded, files[0]), want[:1])


def test_a_model_without_preprocessing(loaded):
    model = nnx.clone(loaded)
    model.spec = dataclasses.replace(model.spec, preprocessing=None)
    with pytest.raises(ValueError, match="nothing states the mean"):
        next(predict(model, ["a.png"]))


def test_command_prints_names_and_bars(run, files, capsys):
    assert cli.main(["predict", str(run), *files[:2], "--top", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [lines[0], lines[4]] == files[:2]
    top = [float(line.split()[1]) for line in lines[1:4]]
    assert top == sorted(top, reverse=True)
    assert err.splitlines()[-1] == "2 images, 0 could not be read"


def test_command_names_and_skips_what_is_broken(run, loaded, files, tmp_path, capsys):
    broken = write_broken(tmp_path / "b", 22)
    odd = tmp_path / "\x1b[31m.png"
    odd.write_bytes(b"")
    assert cli.main(["predict", str(run), str(tmp_path), files[0], "--json"]) == 1
    out, err = capsys.readouterr()
    found = {row["path"]: row for row in map(json.loads, out.splitlines())}
    same = predict(loaded, list(found))
    assert [json.loads(json.dumps(row.to_dict())) for row in same] == list(found.values())
    assert list(found) == [str(odd), *broken, files[0]]
    for path, readable in broken.items():
        assert ("top" in found[path]) == readable
        assert readable or f"skipped {path}: {found[path]['error']}" in err
    assert len(found[files[0]]["top"]) == 5
    assert found[files[0]]["top"][0].keys() == {"name", "index", "probability"}
    bad = list(broken.values()).count(False) + 1
    assert err.splitlines()[-1] == f"24 images, {bad} could not be read"
    assert "\x1b" not in err


def test_command_without_an_image(run, tmp_path, capsys):
    assert cli.main(["predict", str(run), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no image in")


def test_a_classifier_computes_attention_as_suits_its_devices(loaded, monkeypatch):
    asked, form = [], AttentionForm("heads")
    eval_graph = classifiers.eval_graph
    monkeypatch.setattr(classifiers, "attention_form", lambda device: form)
    monkeypatch.setattr(
        classifiers, "eval_graph", lambda *given: asked.append(given[2]) or eval_graph(*given)
    )
    classifier = classifiers.Classifier.of(loaded)
    images = jax.ShapeDtypeStruct((8, 8, 8, 1), np.uint8)
    logits = jax.eval_shape(classifier.logits, classifier.variables, images)
    assert (logits.shape, asked) == ((8, 10), [form])
