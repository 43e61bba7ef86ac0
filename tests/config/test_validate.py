"""Each field's type, range and choices; fields that contradict each other; a model's kwargs."""

import ast
import pathlib

import pytest

import vit_jax.config
from tests.config.conftest import FIELDS
from vit_jax.config import TrainConfig, check_kwargs_names, validate
from vit_jax.config.validate import fields_of


def _set(config: TrainConfig, path: str, value: object) -> TrainConfig:
    *groups, name = path.split(".")
    holder = config
    for group in groups:
        holder = getattr(holder, group)
    setattr(holder, name, value)
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, r"config\.data: wanted a DataConfig, got None"),
        ({"model": "vit"}, r"config\.model: wanted a ModelConfig, got 'vit'"),
        ({"mesh": vit_jax.config.LogConfig()}, r"config\.mesh: wanted a MeshConfig, got LogConfig"),
        ({"sede": 3}, r"config\.sede is not a field; did you mean seed"),
        ({"data": ...}, r"config\.data is missing"),
    ],
)
def test_a_config_has_its_groups_and_fields_and_no_others(config, change, message):
    for name, value in change.items():
        delattr(config, name) if value is ... else setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        validate(config)


def test_a_valid_config_passes(config):
    validate(config)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("seed", -1, "an integer >= 0"),
        ("seed", 2**32, "<= 4294967295"),
        ("seed", True, "an integer"),
        ("seed", 1.0, "an integer"),
        ("num_epochs", 0, "an integer >= 1"),
        ("num_epochs", 10**30, "at most 2,147,483,647"),
        ("data.batch_size", 2**31, "at most 2,147,483,647"),
        ("data.padding_crop", 10**11, "<= 32768"),
        ("init_from", 3, "a string, or None"),
        ("parallel", "pjit", '"jit" or "pmap"'),
        ("model.name", 3, "a string"),
        ("model.kwargs", (), "a dict"),
        ("data.source", "disk", '"digits" or "tfds" or "folder"'),
        ("data.batch_size", 0, "an integer >= 1"),
        ("data.batch_size", None, "an integer >= 1"),
        ("data.num_train_examples", 0, "an integer >= 1, or None"),
        ("data.image_size", "224", "an integer >= 1, or None"),
        ("data.mean", (), "a tuple of numbers, or None"),
        ("data.mean", [0.5], "a tuple of numbers, or None"),
        ("data.std", (0.0,), "a tuple of numbers > 0, or None"),
        ("data.rotation_degrees", 46, "a number >= 0 and <= 45"),
        ("data.horizontal_flip", 1, "true or false"),
        ("data.crop_scale", (0.0, 1.0), "a tuple of numbers > 0 and <= 1"),
        ("data.interpolation", "lanczos", '"bilinear" or "bicubic" or "random"'),
        ("data.eval_crop_fraction", 1.5, "a number > 0 and <= 1, or None"),
        ("data.repeated_augmentation", 0, "an integer >= 1"),
        ("data.padding_crop", -1, "an integer >= 0"),
        ("data.color_jitter", -0.1, "a number >= 0"),
        ("data.rand_augment", 9, "a string, or None"),
        ("data.random_erasing", 1.5, "a number >= 0 and <= 1"),
        ("data.random_erasing_mode", "noise", '"const" or "rand" or "pixel"'),
        ("data.worker_kind", "fibre", '"thread" or "process"'),
        ("data.on_device", "maybe", "true or false, or None"),
        ("training.steps_per_dispatch", 0, "an integer >= 1"),
        ("init_weights", "mean", '"raw" or "ema"'),
        ("optimizer.name", "adam", '"adamw" or "sgd" or "lamb" or "lion"'),
        ("optimizer.learning_rate", 0.0, "a number > 0"),
        ("optimizer.learning_rate", float("nan"), "a number > 0"),
        ("optimizer.learning_rate", float("inf"), "a number > 0"),
        ("optimizer.beta1", 1.0, "a number >= 0 and < 1"),
        ("optimizer.gradient_clip_norm", 0.0, "a number > 0, or None"),
        ("optimizer.schedule", "poly", '"constant" or "cosine" or "linear" or "step"'),
        ("optimizer.schedule_unit", "batch", '"step" or "epoch"'),
        ("optimizer.decay_rate", 0.0, "a number > 0 and <= 1"),
        ("optimizer.layer_decay", 1.5, "a number > 0 and <= 1"),
        ("optimizer.frozen", "head", "a tuple of strings, or None"),
        ("optimizer.frozen", ("head", 3), "a tuple of strings, or None"),
        ("optimizer.frozen", ("",), "a tuple of strings, or None"),
        ("ema.decay", 1.0, "a number >= 0 and < 1"),
        ("loss.label_smoothing", 1.0, "a number >= 0 and < 1"),
        ("checkpoint.keep", 0, "an integer >= 1"),
        ("log.progress", "loud", '"auto" or "plain" or "none"'),
        ("mesh.fsdp", -2, "an integer >= -1"),
    ],
)
def test_a_bad_value_names_field_wish_and_value(config, path, value, wanted):
    with pytest.raises(ValueError, match="wanted") as error:
        validate(_set(config, path, value))
    assert str(error.value).startswith(f"config.{path}: wanted ")
    assert wanted in str(error.value)
    assert str(error.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.source": "tfds"}, "config.data.name"),
        ({"data.name": "cifar10"}, "config.data.name"),
        ({"data.source": "folder"}, "config.data.data_dir"),
        ({"data.train_split": ""}, "config.data.train_split"),
        ({"data.mean": (0.5,)}, "config.data.mean and config.data.std"),
        ({"data.mean": (0.5,), "data.std": (0.5, 0.5)}, "config.data.mean and config.data.std"),
        ({"data.crop_scale": (0.5,)}, "config.data.crop_scale"),
        ({"data.crop_ratio": (2.0, 1.0)}, "config.data.crop_ratio"),
        ({"data.color_jitter": 0.4, "data.rand_augment": "rand"}, "config.data.color_jitter"),
        ({"optimizer.warmup_epochs": 3.0}, "config.optimizer.warmup_epochs"),
        ({"optimizer.min_learning_rate": 0.1}, "config.optimizer.min_learning_rate"),
        ({"optimizer.warmup_learning_rate": 0.1}, "config.optimizer.warmup_learning_rate"),
        ({"optimizer.cooldown_epochs": 1.0}, "config.optimizer.cooldown_epochs: wanted 0 but"),
        (
            {
                "optimizer.schedule": "cosine",
                "optimizer.warmup_epochs": 1.0,
                "optimizer.cooldown_epochs": 1.0,
            },
            "config.optimizer.cooldown_epochs: wanted fewer",
        ),
        ({"optimizer.nesterov": True}, "config.optimizer.nesterov"),
        (
            {"optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.momentum": 0.0},
            "config.optimizer.nesterov",
        ),
        ({"ema.warmup": True}, "config.ema.warmup"),
        ({"mesh.data": 0}, "config.mesh.data"),
        ({"data.labels_file": "a.csv"}, 'labels_file: wanted .. but with data.source="folder"'),
        ({"loss.kind": "mse", "loss.label_smoothing": 0.1}, "config.loss.label_smoothing: wanted"),
        ({"loss.kind": "l1", "loss.balanced": True}, "config.loss.balanced: wanted False"),
        ({"loss.kind": "binary_cross_entropy", "mix.mixup_alpha": 0.1}, "config.mix.mixup_alpha"),
        ({"loss.kind": "mse", "data.sampling": "balanced"}, "config.data.sampling: wanted"),
        ({"loss.target_mean": (1.0,)}, 'target_mean: wanted None with loss.kind="cross_entropy"'),
        ({"loss.kind": "mse", "loss.target_mean": (1.0,)}, "config.loss.target_mean and config.l"),
        ({"loss.balanced": True, "loss.class_weights": (1.0,)}, "config.loss.balanced: wanted"),
        ({"data.validation_split": None, "evaluation.patience": 1}, "config.evaluation.patience"),
        ({"optimizer.restarts": (2,)}, "config.optimizer.restarts: wanted whole epochs"),
        ({"optimizer.restarts": (0.5,)}, "config.optimizer.restarts: wanted whole epochs"),
        (
            {"optimizer.restarts": (1,), "optimizer.schedule": "step"},
            "config.optimizer.restarts: wanted None",
        ),
        (
            {"optimizer.restarts": (1,), "optimizer.warmup_epochs": 1.0},
            "config.optimizer.warmup_epochs: wanted less than the 1 epochs",
        ),
        ({"mesh.data": -2}, "config.mesh.data"),
        ({"parallel": "pmap", "mesh.fsdp": 2}, "config.mesh.fsdp"),
        ({"parallel": "pmap", "training.steps_per_dispatch": 2}, "training.steps_per_dispatch"),
        ({"training.reduce_dtype": "float32", "mesh.fsdp": 2}, "training.reduce_dtype"),
    ],
)
def test_fields_that_contradict_each_other(config, changes, named):
    for path, value in changes.items():
        _set(config, path, value)
    with pytest.raises(ValueError, match=named):
        validate(config)


@pytest.mark.parametrize("value", [object(), [1, 2], {"a": 1}, (1, [2])])
def test_model_kwargs_hold_what_json_holds(config, value):
    config.model.kwargs["depth"] = value
    with pytest.raises(ValueError, match=r"config\.model\.kwargs\.depth: wanted None, a bool"):
        validate(config)


def test_unknown_model_kwargs_are_refused():
    check_kwargs_names("vit_a", {"depth": "any"}, FIELDS["vit_a"])
    message = r"kwargs\.depht: vit_a has no such field; did you mean depth; it takes: cl"
    with pytest.raises(ValueError, match=message):
        check_kwargs_names("vit_a", {"depht": 3}, FIELDS["vit_a"])


def test_every_field_is_read_somewhere():
    package = pathlib.Path(vit_jax.config.__file__).parents[1]
    files = [path for path in package.rglob("*.py") if "config" not in path.parts[:-1]]
    read = {
        node.attr
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [i.path for i in fields_of() if i.path.rsplit(".", 1)[-1] not in read] == []


def test_every_field_says_what_it_is():
    assert all(info.help_text for info in fields_of())
    assert len(list(fields_of())) > 40
