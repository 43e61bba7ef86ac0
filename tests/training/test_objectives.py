"""Several labels an image, numbers, weights; runs that end early, or get more epochs."""

import json
import pathlib
import sys
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import metrics

import vit_jax
from tests.training.runs import arrays, rows, tiny, trained
from tests.training.test_own import Kept, Stop, make_items
from vit_jax.data.folder import FolderSource
from vit_jax.data.own import own_splits
from vit_jax.data.sources import ArraySource
from vit_jax.data.splits import Splits
from vit_jax.inference.evaluate import evaluate
from vit_jax.inference.predict import predict
from vit_jax.models.spec import Target
from vit_jax.training import train
from vit_jax.training.loggers import open_loggers
from vit_jax.training.loop import _Loop
from vit_jax.training.objectives import (
    Classification,
    MultiLabel,
    Regression,
    average_precision,
    best_of,
    make_objective,
)
from vit_jax.training.run import _check_some_label

pytestmark = pytest.mark.xdist_group("runs")

NUMBERS = make_items()
LABELS = [(image, (label > 0.5).astype(np.int32)) for image, label in NUMBERS]


def test_average_precision_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores, there = draw.integers(0, 6, 15) / 5, draw.random(15) < 0.4
        there[0] = True
        want = metrics.average_precision_score(there, scores)
        assert average_precision(scores, there) == pytest.approx(want, abs=1e-12)
    assert np.isnan(average_precision(np.zeros(3), np.zeros(3, bool)))


def test_numbers_are_learned_in_units_of_their_spread() -> None:
    regression = Regression("l1", mean=(50.0, 0.0), std=(10.0, 2.0))
    outputs, labels = jnp.asarray([[0.5, 1.0]]), jnp.asarray([[45.0, 4.0]])
    losses, found = regression.losses(outputs, labels, train=True)
    np.testing.assert_allclose(losses, [1.0])  # (|0.5 - -0.5| + |1 - 2|) / 2
    np.testing.assert_allclose(found, [[55.0, 2.0]])
    errors = {
        name: float(measure(found, labels)[0]) for name, measure in regression.figures.items()
    }
    assert errors == {"mae": 6.0, "rmse": 52.0}  # of the squares, whose root is told
    (squares,), _ = Regression().losses(outputs[:, :1], labels[:, 0], train=False)
    assert float(squares) == 44.5**2


def test_weights_are_of_training_alone_and_balance_the_classes() -> None:
    source = ArraySource(
        np.zeros((8, 1, 1, 1), np.uint8), np.array([0] * 6 + [1] * 2), class_names="ab", name="x"
    )
    balanced = make_objective(tiny(loss__balanced=True), None, source, 2)
    assert balanced == Classification(0.0, (8 / 12, 8 / 4))
    outputs, labels = jnp.zeros((2, 2)), jnp.asarray([0, 1])
    plain, weighted = (balanced.losses(outputs, labels, train=t)[0] for t in (False, True))
    np.testing.assert_allclose(weighted / plain, [8 / 12, 8 / 4], rtol=1e-6)
    items = own_splits(LABELS, ["left", "right"]).train
    several = make_objective(
        tiny(loss__kind="binary_cross_entropy", loss__balanced=True), None, items, 2
    )
    there = np.sum([label for _, label in LABELS], axis=0)
    assert isinstance(several, MultiLabel)
    np.testing.assert_allclose(np.array(several.positive_weights), (48 - there) / there)
    there = jnp.ones((1, 2), jnp.int32)
    plain, weighted = (several.losses(jnp.zeros((1, 2)), there, train=t)[0] for t in (False, True))
    assert float(weighted[0] / plain[0]) == pytest.approx(np.mean(several.positive_weights or ()))
    with pytest.raises(ValueError, match=r"loss\.balanced: no image of x has the label 2"):
        make_objective(tiny(loss__balanced=True), None, source, 3)
    with pytest.raises(ValueError, match=r"class_weights: wanted 2 numbers, .* got 1"):
        make_objective(tiny(loss__class_weights=[1.0]), None, source, 2)


def test_the_best_has_a_figure_and_a_direction() -> None:
    def found(metric: str, mode: str = "auto", own: Any = ()) -> tuple[int, str]:
        config = tiny(evaluation__metric=metric, evaluation__mode=mode)
        return best_of(config, Classification(), dict.fromkeys(own))

    assert found("") == (1, "top1")
    assert found("loss") == (-1, "loss")
    assert found("mine", "min", ["mine"]) == (-1, "mine")
    with pytest.raises(ValueError, match=r"metric: wanted a figure .*\(loss, top1, .* got 'mAP'"):
        found("mAP")
    with pytest.raises(ValueError, match='mode: wanted "max" or "min" for the metric \'mine\''):
        found("mine", own=["mine"])


def test_held_out_images_without_any_label_are_named_before_the_run() -> None:
    def part(*labels: list[int]) -> FolderSource:
        paths = [f"{number}.png" for number in range(len(labels))]
        return FolderSource(paths, np.array(labels, np.float32), class_names="ab", name="made up")

    some, none = part([0, 0], [0, 1]), part([0, 0], [0, 0])
    _check_some_label(Splits(none, some, None))
    with pytest.raises(ValueError, match="made up: no image has a label, and mAP needs some"):
        _check_some_label(Splits(some, some, none))


def test_a_figure_that_is_no_number_is_never_the_best() -> None:
    config = types.SimpleNamespace(evaluation=types.SimpleNamespace(patience=None))
    run = types.SimpleNamespace(best=(1, "mine"), config=config)
    records = types.SimpleNamespace(count=lambda split, after: 0)
    loop: Any = types.SimpleNamespace(run=run, records=records, best=None)
    for step, value in ((1, np.nan), (2, 0.5), (3, np.nan), (4, 0.4)):
        _Loop._note_best(loop, {"split": "validation", "step": step, "mine": value})
    assert loop.best == (0.5, 2)


def labelled(**fields: Any) -> Any:
    return tiny(
        **{
            "num_epochs": 3,
            "loss__kind": "binary_cross_entropy",
            "model__kwargs__num_classes": 2,
            "data__source": "own",
            "data__batch_size": 8,
            "data__eval_batch_size": 8,
            "data__num_train_examples": None,
            "data__mean": (0.5,),
            "data__std": (0.5,),
            "optimizer__learning_rate": 0.01,
            **fields,
        }
    )


def wandb(told: list[Any]) -> types.ModuleType:
    """A module that stands in for Weights & Biases."""
    module = types.ModuleType("wandb")

    def init(**settings: Any) -> Any:
        told.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: told.append((step, values)),
            finish=lambda: told.append("finished"),
        )

    vars(module)["init"] = init
    return module


def test_weights_and_biases_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, told = tiny(log__wandb="digits", log__tensorboard=True), []
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"log\.wandb: Weights & Biases is not installed \(pip"):
        train(config, tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb(told))
    for step in (0, 4):
        tensorboard, logger = open_loggers(config, tmp_path, step)
        for each in (tensorboard, logger):
            each.scalars(step, {"train/loss": 1.0})
            each.close()
    first, point, end, again, _, _ = told
    assert (first["project"], first["name"], first["config"]["seed"]) == (
        "digits",
        tmp_path.name,
        3,
    )
    assert (point, end) == ((0, {"train/loss": 1.0}), "finished")
    assert again["id"] == first["id"]  # a resumed run goes on with its curves
    assert len(list(tmp_path.glob("events.out.*"))) == 2


@pytest.mark.slow
def test_several_labels_an_image(tmp_path: pathlib.Path) -> None:
    """Trained, stopped and resumed to the last bit, evaluated as in training, and predicted."""
    data = {"train": LABELS[:32], "validation": LABELS[32:38], "test": LABELS[38:]}
    given: dict[str, Any] = {"data": data, "class_names": ["left", "right"]}
    config = labelled()
    final = train(config, tmp_path / "whole", **given)
    assert final["test_mAP"] > 0.8
    kept = rows(tmp_path / "whole")
    best = max((r for r in kept if r["split"] == "validation"), key=lambda row: row["mAP"])
    info = next((tmp_path / "whole/checkpoints/12/info").glob("*"))
    assert json.loads(info.read_text())["best_step"] == best["step"]
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", **given, callbacks=[Kept(stop_at=8)])
    assert train(config, tmp_path / "cut", **given) == final
    assert rows(tmp_path / "cut") == kept
    assert arrays(tmp_path / "cut", 12) == arrays(tmp_path / "whole", 12)
    model = vit_jax.from_pretrained(tmp_path / "whole")
    assert model.spec.target == Target("multilabel")
    test = own_splits(data, given["class_names"]).test
    assert test is not None
    found = evaluate(model, test, 8, 0)
    assert found.figures == {k: final[f"test_{k}"] for k in ("loss", "exact", "mAP")}
    images = [np.asarray(image.resize((8, 8)))[..., None] for image, _ in LABELS[38:]]
    for probabilities, told_of in zip(found.probabilities, predict(model, images), strict=True):
        likely = {name for name, p in zip(("left", "right"), probabilities, strict=True) if p > 0.5}
        assert {guess.name for guess in told_of.top} == likely
    (most,) = predict(model, images[:1], top=1)
    assert len(most.top) == 1
    twos = [(image, 2 * label) for image, label in LABELS]
    with pytest.raises(ValueError, match="wanted 0 or 1 each"):
        train(config, tmp_path / "twos", data=twos)
    with pytest.raises(ValueError, match="wanted 0 or 1 each"):
        evaluate(model, own_splits(twos).train, 8, 0)


@pytest.mark.slow
def test_numbers(tmp_path: pathlib.Path) -> None:
    """What `spec.target` says makes predictions numbers in the unit of the labels."""
    items = [(image, 100 + 20 * label) for image, label in NUMBERS]
    spread = {"loss__target_mean": (110.0, 110.0), "loss__target_std": (6.0, 6.0)}
    data = {"train": items[:38], "validation": items[38:]}
    config = labelled(loss__kind="mse", num_epochs=8, **spread)
    final = train(config, tmp_path / "run", data=data)
    model = vit_jax.from_pretrained(tmp_path / "run")
    assert model.spec.target == Target("regression", (110.0, 110.0), (6.0, 6.0))
    validation = own_splits(data).validation
    assert validation is not None
    found = evaluate(model, validation, 8, 0)
    assert found.figures == {k: final[f"validation_{k}"] for k in ("loss", "mae", "rmse")}
    assert found.figures["mae"] == pytest.approx(np.abs(found.predictions - found.labels).mean())
    error = np.sqrt(np.square(found.predictions - found.labels).mean())
    assert found.figures["rmse"] == pytest.approx(error)
    assert found.figures["mae"] < 4
    assert (found.determination > 0).all()
    saved = tmp_path / "w.safetensors"
    vit_jax.save_pretrained(model, saved)
    again = vit_jax.from_pretrained(saved)
    assert again.spec.target == model.spec.target
    again.reset_classifier(3, rngs=nnx.Rngs(0))
    assert again.spec.target is None


def test_a_run_ends_early_as_one_that_was_as_long(
    finished: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no validation is better; stopped on the way; the command then finds it finished."""
    config = tiny(num_epochs=9, evaluation__patience=1, evaluation__metric="loss")
    with pytest.raises(Stop):
        train(config, tmp_path, callbacks=[Kept(stop_at=6)])
    final = train(config, tmp_path)
    held_out = [row for row in rows(finished) if row["split"] != "train"]
    assert [row for row in rows(tmp_path) if row["split"] != "train"] == held_out
    assert trained(tmp_path, 12) == trained(finished, 12)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(config, tmp_path) == final
    assert (tmp_path / "metrics.jsonl").read_text() == before
    # Killed before it was tested:
    lines = before.splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]))
    config.log.progress = "plain"
    assert train(config, tmp_path) == final
    assert "\nends early at step 12: 1 validation without a better loss" in capsys.readouterr().out
    assert rows(tmp_path)[-1] == held_out[-1]


@pytest.mark.slow
def test_a_trace_is_written(tmp_path: pathlib.Path) -> None:
    train(tiny(num_epochs=1, log__profile=True), tmp_path)
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000
