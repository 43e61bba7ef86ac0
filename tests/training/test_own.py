"""Data, loss, metrics and augmentation of the caller: what is trained, and resumed bit for bit."""

import functools
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests.training.runs import arrays, rows, tiny
from vit_jax.data.loader import eval_batches
from vit_jax.data.own import OwnSource, own_splits
from vit_jax.training import train
from vit_jax.training.own import Own, identity
from vit_jax.training.step import _prepared


def make_items(count: int = 48) -> list[tuple[Image.Image, np.ndarray]]:
    """Grey squares of two sizes, and how bright each half is."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        left, right = draw.integers(0, 256, 2)
        pixels = np.full((8 + number % 2, 8), right, np.uint8)
        pixels[:, :4] = left
        found.append((Image.fromarray(pixels), np.array([left, right]) / 255))
    return found


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.square(outputs - labels).mean(axis=-1)


def absolute_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.abs(outputs - labels).mean(axis=-1)


def noisy(key: jax.Array, image: jax.Array) -> jax.Array:
    noise = jax.random.randint(key, image.shape, 0, 8)
    return jnp.clip(image + noise, 0, 255).astype(image.dtype)


ITEMS = make_items()
OWN: dict[str, Any] = {
    "data": {"train": ITEMS[:32], "validation": ITEMS[32:40], "test": ITEMS[40:]},
    "loss": squared_error,
    "metrics": {"absolute_error": absolute_error},
    "augment": noisy,
}


def train_with(given: dict[str, Any], fields: Any, workdir: pathlib.Path, **more: Any) -> Any:
    arguments: Any = {**OWN, **given, **more}
    return train(fields, workdir, **arguments)


def regression(**fields: Any) -> Any:
    classes = {} if "model__kwargs" in fields else {"model__kwargs__num_classes": 2}
    return tiny(
        data__source="own",
        data__batch_size=8,
        data__mean=(0.5,),
        data__std=(0.5,),
        log__every_steps=2,
        **{
            "num_epochs": 3,
            "data__eval_batch_size": 8,
            "data__num_train_examples": None,
            **classes,
            **fields,
        },
    )


class Stop(Exception):
    pass


class Kept:
    """A logger and a callback that remember, and may stop the run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.reports, self.points, self.closed, self.stop_at = [], [], False, stop_at

    def __call__(self, report: Any) -> None:
        self.reports.append((report.kind, report.step))
        if report.step == self.stop_at:
            raise Stop

    def scalars(self, step: int, values: Any) -> None:
        self.points.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_resume_is_bit_for_bit(tmp_path: pathlib.Path) -> None:
    """Own data, loss, metric and augmentation; stopped in mid-epoch by a callback."""
    config, seen = regression(), Kept()
    final = train_with({}, config, tmp_path / "whole", callbacks=[seen], loggers=[seen])
    assert final["test_loss"] < 0.2
    assert set(rows(tmp_path / "whole")[-1]) == {
        *("step", "epoch", "split", "loss", "absolute_error")
    }
    assert seen.reports[-2:] == [("validation", 12), ("end", 12)]
    assert seen.points[0][1].keys() >= {"train/loss", "train/absolute_error"}
    assert seen.closed
    again = Kept()  # a finished run: no row is written again, and the model of the end is had
    assert train_with({}, config, tmp_path / "whole", callbacks=[again], loggers=[again]) == final
    assert again.reports == [("end", 12)]
    assert (again.points, again.closed) == ([], True)
    refused = Kept()
    with pytest.raises(ValueError, match="it holds no images"):
        train_with({"data": []}, config, tmp_path / "none", loggers=[refused])
    with pytest.raises(ValueError, match="wanted a number for each example"):
        train_with({"loss": lambda y, t: 0.0}, config, tmp_path / "none", loggers=[refused])
    assert refused.closed
    stopping = Kept(stop_at=6)
    with pytest.raises(Stop):
        train_with({}, config, tmp_path / "cut", callbacks=[stopping], loggers=[stopping])
    assert stopping.closed
    assert train_with({}, config, tmp_path / "cut") == final
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert arrays(tmp_path / "cut", 12) == arrays(tmp_path / "whole", 12)
    for name, other in (("augment", lambda key, image: image), ("loss", absolute_error)):
        with pytest.raises(ValueError, match=rf"differs in {name}= \(was .*{OWN[name].__name__}"):
            train_with({name: other}, config, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"differs in data= .*train.*augment= .*now None"):
        train_with({"data": ITEMS[:31], "augment": None}, config, tmp_path / "cut")


def test_each_part_changes_the_numbers(tmp_path: pathlib.Path) -> None:
    """The best checkpoint is that of the lowest loss; a callback gets the model of its step."""
    models = {}

    def keep(report: Any) -> None:
        models[report.step] = report.model()

    config = regression(num_epochs=1)
    held = ITEMS[32:40:2]  # of 8x8 pixels, and fewer than a batch, which is padded
    data = {"train": ITEMS[:32], "validation": held}
    found = train_with({"data": data}, config, tmp_path / "run", callbacks=[keep])
    images = jnp.stack([np.asarray(image)[..., None] for image, _ in held]) / 127.5 - 1
    outputs, labels = models[4](images), np.stack([label for _, label in held])
    for name, measure in (("loss", squared_error), ("absolute_error", absolute_error)):
        want = measure(outputs, labels).mean()
        np.testing.assert_allclose(found[f"validation_{name}"], want, rtol=1e-5)
    assert (models[2](images) != models[4](images)).all()
    jax.jvp(models[4], (images,), (images,))  # no form of a device, of which some cannot
    plain = train_with({"data": data, "augment": None}, config, tmp_path / "plain")
    assert plain["train_loss"] != found["train_loss"]
    stored = json.loads((tmp_path / "run/config.json").read_text())["own"]
    assert stored.keys() == {"data", "loss", "augment", "metrics.absolute_error"}
    lost = [row["loss"] for row in rows(tmp_path / "run") if row["split"] == "validation"]
    info = next((tmp_path / "run/checkpoints/4/info").glob("*"))
    assert json.loads(info.read_text())["best_top1"] == -min(lost)


def test_an_augmentation_has_a_key_of_seed_epoch_and_image() -> None:
    def drawn(key: jax.Array, image: jax.Array) -> jax.Array:
        return jax.random.bits(key, image.shape, jnp.uint8)

    def prepared(step: int, indices: list[int], seed: int = 3) -> np.ndarray:
        run: Any = types.SimpleNamespace(
            config=types.SimpleNamespace(seed=seed),
            steps_per_epoch=4,
            own=Own(augment=drawn),
            prepare_train=types.SimpleNamespace(
                pixels=lambda keys, images, crop: images, finished=lambda keys, images: images
            ),
        )
        images = jnp.zeros((len(indices), 4, 4, 1), jnp.uint8)
        batch = {"image": images, "index": jnp.asarray(indices)}
        return np.asarray(_prepared(run, jnp.asarray(step), batch))

    first = prepared(0, [5, 6])
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(prepared(3, [6, 5]), first[::-1])
    for other in (prepared(4, [5, 6]), prepared(0, [5, 6], seed=4)):
        assert (other != first).any(axis=(1, 2, 3)).all()


def test_classes_of_arrays(tmp_path: pathlib.Path) -> None:
    """Arrays with integer labels train as a set of the package does, with metrics beside top1."""
    from vit_jax.data import open_splits

    digits = open_splits("digits", validation_split=None).train.__getitems__(range(64))
    images = np.stack([example["image"] for example in digits])
    labels = np.array([example["label"] for example in digits])
    config = tiny(
        data__source="own",
        data__num_train_examples=None,
        data__mean=(0.3,),
        data__std=(0.3,),
        num_epochs=1,
    )

    def is_even(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        return outputs.argmax(axis=-1) % 2 == labels % 2

    found = train(config, tmp_path / "a", data=(images, labels), metrics={"parity": is_even})
    assert found.keys() == {"train_loss", "train_top1", "train_top5", "train_parity"}
    assert 0 <= found["train_parity"] <= 1
    names = [str(digit) for digit in range(10)]
    same = train(config, tmp_path / "b", data=(images, labels), class_names=names)
    assert same["train_loss"] == found["train_loss"]
    assert same["train_top1"] == found["train_top1"]
    with pytest.raises(ValueError, match="label 12, but the set declares 10 classes"):
        train(config, tmp_path / "c", data=(images, np.where(labels == 3, 12, labels)))


@pytest.mark.parametrize(
    ("given", "fields", "message"),
    [
        ({"data": None}, {}, 'source: wanted "own" where training.train is given data='),
        ({"loss": None, "metrics": {}}, {}, "float32 of shape .2,.: wanted classes, .* or loss="),
        (
            {"loss": lambda y, t: jnp.mean(y - t)},
            {},
            r"loss: wanted a number for each .*shape \(\)",
        ),
        ({"loss": lambda y, t: y @ t}, {}, r"loss: wanted a number for each .* it fails"),
        ({"metrics": {"loss": absolute_error}}, {}, "metrics: wanted names .* got 'loss'"),
        ({"metrics": {"ema_loss": absolute_error}}, {}, r"already .*, ema_\*\), got 'ema_loss'"),
        ({"data": {"training": ITEMS}}, {}, 'wanted "train", got training'),
        ({"data": {"train": None}}, {}, 'wanted "train", got train'),
        ({"class_names": ["a"]}, {}, r"wanted classes, .* labels of shape \(2,\) float64"),
        ({"metrics": {"a": 3}}, {}, r"metrics\['a'\]: wanted a function, got 3"),
        ({"callbacks": [3]}, {}, r"callbacks\[0\]: wanted a function, got 3"),
        ({"loggers": [print]}, {}, r"loggers\[0\]: wanted an object with scalars\(step, values\)"),
        ({"augment": lambda k, x: x / 2}, {}, r"augment: wanted an image .* uint8 .* float32"),
        ({}, {"mix__mixup_alpha": 0.2}, "config.mix is for the classification loss"),
        ({}, {"data__num_train_examples": 4}, "num_train_examples: wanted None with data="),
        ({"loss": None, "data": [(ITEMS[0][0], 3)] * 8}, {"loss__kind": "l1"}, "wanted floats, s"),
        ({"data": {"train": ITEMS, "valid": ITEMS}}, {}, "train, validation, test, got 'valid'"),
        ({"data": ITEMS}, {"evaluation__patience": 1}, "patience: wanted None without a valid"),
        (
            {"metrics": {"mae": absolute_error}, "loss": None},
            {"loss__kind": "mse"},
            "metrics: the rows of this run have a 'mae' already",
        ),
        ({}, {"loss__kind": "mse"}, 'kind: wanted "cross_entropy" with loss= of the caller'),
        (
            {"loss": None, "metrics": {}},
            {"loss__kind": "l1", "model__kwargs__num_classes": 3},
            "has 2 numbers an image and the head of the model 3 outputs",
        ),
        ({"data": []}, {}, "it holds no images"),
        ({"data": 3}, {}, r"wanted something with len\(\) and an index"),
        ({"data": [np.zeros((8, 8), np.uint8)]}, {}, r"item 0: wanted \(image, label\)"),
        ({"data": [(np.zeros((8, 8)), 1)]}, {}, r"wanted a PIL image or uint8 .* got float64"),
    ],
    ids=range(25),
)
def test_what_does_not_fit_is_named(given, fields, message, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_with(given, regression(**fields), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists() or "augment" in message


def test_items_that_differ_are_named() -> None:
    grey, colour = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)
    mixed = OwnSource([(colour, 0), {"image": Image.fromarray(grey), "label": 1}, (colour, 0.5)])
    assert mixed[1]["image"].shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"label 2 is 0\.5, and the first is a class"):
        mixed[2]
    with pytest.raises(ValueError, match="image 1 is in colour, and the first is grey"):
        OwnSource([(grey, 0), (colour, 0)])[1]
    with pytest.raises(ValueError, match=r"label 1: wanted numbers of shape \(\), as the first"):
        OwnSource([(grey, 0), (grey, [0, 1])])[1]
    several = OwnSource([(grey, [0, 1]), (grey, [0, -1])])
    several.label_limit = 2  # of a run of several labels
    with (
        eval_batches(several, batch_size=2, image_size=4) as batches,
        pytest.raises(ValueError, match=r"image 1 has the labels \[0, -1\]: wanted 0 or 1 each"),
    ):
        next(batches)
    with pytest.raises(ValueError, match=r"channels 3 are not train's, 1"):
        own_splits({"train": [(grey, 0)], "test": [(colour, 0)]})


def test_splits_of_other_labels_and_images_that_cannot_be_read_are_named() -> None:
    grey = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"label_dtype dtype\('float32'\) are not train's"):
        own_splits({"train": [(grey, 0)], "validation": [(grey, 0.5)]})
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"images: image 1: its pixels .F. are numbers"):
        OwnSource([(grey, 0), (floats, 0)], name="images")[1]


def test_a_hugging_face_data_set_states_its_classes() -> None:
    class Names:
        names = ("cat", "dog")

    class Columns(list):
        def __init__(self, items: Any) -> None:
            super().__init__(items)
            self.features = {"img": None, "label": Names()}

    items = Columns([{"img": np.zeros((4, 4, 3), np.uint8), "label": 1}])
    assert own_splits(items).class_names == ("cat", "dog")


def test_a_function_is_known_by_its_source_and_what_it_was_made_with() -> None:
    def made(factor: Any) -> Any:
        return lambda outputs, labels: factor * outputs

    assert identity(made(2)) == identity(made(2)) != identity(made(3))
    assert identity(made(np.ones(3))) != identity(made(np.zeros(3)))
    assert identity(functools.partial(made, 1)) != identity(functools.partial(made, 2))
    assert identity(squared_error) != identity(absolute_error)

    class Weighted:
        def __init__(self, weight: float) -> None:
            self.weight = weight

        def loss(self, outputs: Any, labels: Any) -> Any:
            return self.weight * outputs

    assert identity(Weighted(1.0).loss) == identity(Weighted(1.0).loss)
    assert identity(Weighted(1.0).loss) != identity(Weighted(2.0).loss)

    def keyword(weight: float) -> Any:
        def loss(outputs: Any, labels: Any, *, by: float = weight) -> Any:
            return by * outputs

        return loss

    assert identity(keyword(1.0)) != identity(keyword(2.0))

    def with_a_module(module: Any) -> Any:
        return lambda outputs, labels: module.abs(outputs)

    assert identity(with_a_module(jnp)) == identity(with_a_module(jnp))
    assert identity(nnx.Dropout(0.1, rngs=nnx.Rngs(0)))  # whose key is no plain array
    assert "test_own.squared_error" in identity(squared_error)
    with pytest.raises(ValueError, match="a resume could not compare"):
        identity(made(object()))
    with pytest.raises(ValueError, match="has no source to be known again by"):
        identity(len)
    marks = []
    for number in (1, 1, 2):  # at a prompt, which keeps no source
        typed: dict[str, Any] = {"__name__": "prompt"}
        exec(f"def scaled(outputs, labels): return outputs * {number}", typed)
        exec(f"class Kind:\n  def f(self): return {number}", typed)
        marks.append([identity(typed["scaled"]), identity(typed["Kind"])])
    assert marks[0] == marks[1]
    assert marks[0][0] != marks[2][0]
    assert marks[0][1] != marks[2][1]
    assert Own().identities == {}


class Net(nnx.Module):
    """A BatchNorm and a dropout, whose keys are those of the call."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.drop = nnx.Dropout(0.2)
        self.out = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        hidden = nnx.relu(self.norm(self.hidden(images.reshape(len(images), -1))))
        return self.out(self.drop(hidden, rngs=rngs))


class Forgetful(Net):
    """Keeps the random state of its dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)


def own_net(**fields: Any) -> Any:
    own = {"model__name": "own", "model__kwargs": {}, "data__image_size": 8, "ema__decay": 0.9}
    return regression(**own | fields)


def test_any_module_is_trained_and_resumed(tmp_path: pathlib.Path) -> None:
    """With running statistics, dropout and an average of the weights."""
    nets: dict[int, Any] = {}

    def keep(report: Any) -> None:
        nets[report.step] = report.model()

    config = own_net()
    final = train_with({"model": Net}, config, tmp_path / "whole", callbacks=[keep])
    assert (nets[12].norm.mean[...] != nets[2].norm.mean[...]).all()
    assert nets[12].drop.deterministic
    assert nets[12].norm.use_running_average
    stored = arrays(tmp_path / "whole", 12)
    averaged, last = (stored[f"{item}/net.out.bias"] for item in ("ema", "model"))
    assert np.asarray(nets[12].out.bias[...]).tobytes() == averaged != last
    with pytest.raises(Stop):
        train_with({"model": Net}, config, tmp_path / "cut", callbacks=[Kept(stop_at=6)])
    assert train_with({"model": Net}, config, tmp_path / "cut") == final
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert arrays(tmp_path / "cut", 12) == arrays(tmp_path / "whole", 12)
    with pytest.raises(ValueError, match=r"differs in model= \(was .*Net .* now .*Forgetful"):
        train_with({"model": Forgetful}, config, tmp_path / "cut")
    with pytest.raises(ValueError, match=r"was given in Python, as model= of training\.train"):
        vit_jax.from_pretrained(tmp_path / "whole")


def test_a_module_that_is_made_keeps_its_arrays(tmp_path: pathlib.Path) -> None:
    net = Net(rngs=nnx.Rngs(5))
    before = jax.tree.map(np.asarray, nnx.state(net))
    first = train_with({"model": net}, own_net(num_epochs=1), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net), before)
    net.out.kernel[...] *= 2
    other = train_with({"model": net}, own_net(num_epochs=1), tmp_path / "other")
    assert first["train_loss"] != other["train_loss"]


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (None, {}, 'config.model.name: wanted "own" where training.train is given model='),
        (Forgetful, {}, "model: drop.rngs.* is random state that the module keeps"),
        (lambda rngs: 3, {}, "wanted a function that makes an nnx.Module, got 3"),
        (lambda rngs: nnx.Dropout(0.1), {}, "it has no nnx.Param, so nothing to train"),
        (3, {}, "model: wanted a function, got 3"),
        (Net, {"data__image_size": None}, "image_size: wanted the side .* vary in size"),
        (Net, {"accumulation_steps": 2}, "running statistics are of a whole batch, and config.acc"),
        (Net, {"optimizer__layer_decay": 0.5}, "layer_decay is for a registered model"),
        (Net, {"model__kwargs": {"depth": 1}}, "model.kwargs is for a registered model"),
    ],
    ids=range(9),
)
def test_models_that_do_not_fit_are_named(model, fields, message, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_with({"model": model}, own_net(**fields), tmp_path / "run")


def test_metrics_of_classes_see_what_the_prediction_is_read_from(tmp_path: pathlib.Path) -> None:
    """Of two heads the mean of their logits; a loss in bfloat16 is summed in float32."""
    seen = []

    def is_right(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        seen.append(outputs)
        return outputs.argmax(axis=-1) == labels

    config = tiny(model__kwargs__distilled=True, num_epochs=1)
    found = train(config, tmp_path / "run", metrics={"is_right": is_right})
    assert found["test_is_right"] == pytest.approx(found["test_top1"])
    assert {(output.shape[1:], output.dtype) for output in seen} == {((10,), np.dtype("float32"))}
    narrow = {
        "data": {"train": ITEMS[:8], "validation": (ITEMS * 7)[:301]},  # 301 is 300 in bfloat16
        "loss": lambda y, t: squared_error(y, t).astype(jnp.bfloat16),
        "metrics": {"count": lambda y, t: jnp.ones(len(y))},
    }
    config = regression(num_epochs=1, data__eval_batch_size=301)
    assert train_with(narrow, config, tmp_path / "narrow")["validation_count"] == 1
