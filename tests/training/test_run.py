"""What a config makes of the images before they cross to the device."""

import functools
import os
import pathlib
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.conftest import write_png
from tests.training.runs import tiny
from vit_jax.cli.jax_setup import set_up_jax
from vit_jax.training.run import _check_deterministic, open_run
from vit_jax.training.step import _prepared


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Twelve images of two classes and of varying size."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(12):
            image = rng.integers(0, 256, (20 + i, 31 - i, 3), dtype=np.uint8)
            write_png(tmp_path / split / "ab"[i % 2] / f"{i:02d}.png", image)
    return tmp_path


def of_folder(folder: pathlib.Path, **overrides):
    return open_run(
        tiny(
            data__source="folder",
            data__data_dir=str(folder),
            data__test_split=None,
            data__num_train_examples=None,
            data__batch_size=4,
            data__mean=(0.5, 0.5, 0.5),
            data__std=(0.5, 0.5, 0.5),
            model__kwargs__in_chans=3,
            **overrides,
        )
    )


def first(batches):
    with batches:
        return next(batches)


def test_training_images_are_cropped_and_repeated(folder: pathlib.Path) -> None:
    plain, cropped, bicubic = (
        of_folder(folder, **fields)
        for fields in (
            {},
            {"data__random_resized_crop": True, "data__repeated_augmentation": 2},
            {
                "data__random_resized_crop": True,
                "data__crop_scale": (0.3, 0.3),
                "data__crop_ratio": (1.0, 1.0),
                "data__interpolation": "bicubic",
            },
        )
    )
    assert plain.steps_per_epoch == cropped.steps_per_epoch == 3
    assert cropped.splits.train is not plain.splits.train
    batches = [first(run.train_batches(0)) for run in (plain, cropped, bicubic)]
    assert [batch["image"].shape for batch in batches] == [(4, 8, 8, 3)] * 3
    assert len({batch["image"].tobytes() for batch in batches}) == 3
    assert len(set(batches[1]["index"] % 12)) == 2
    assert (batches[1]["index"] // 12).tolist() == [0, 1, 0, 1]


def test_classes_that_the_config_leaves_alone_are_counted(folder: pathlib.Path) -> None:
    """Else a design's default, 1000 classes, is trained on two; a head that is asked for stays."""
    config = tiny(data__source="folder", data__data_dir=str(folder), data__test_split=None)
    del config.model.kwargs["num_classes"]
    config.model.kwargs["in_chans"] = 3
    config.data.num_train_examples = None
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"2 classes, and vit_\w+ left alone has 1000: set config"):
        open_run(config)
    assert of_folder(folder).model.num_classes == 10


def test_evaluation_crops_as_the_config_says(folder: pathlib.Path) -> None:
    seen = {}
    for fraction, interpolation in ((None, "bilinear"), (0.5, "bilinear"), (0.5, "bicubic")):
        run = of_folder(
            folder, data__eval_crop_fraction=fraction, data__eval_interpolation=interpolation
        )
        expected = 0.9 if fraction is None else fraction  # the model's own
        assert run.preprocessing.crop_fraction == expected
        assert run.preprocessing.interpolation == interpolation
        assert run.data.validation is not None
        batch = first(run.eval_batches(run.data.validation))
        seen[batch["image"].tobytes()] = fraction
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__eval_crop_fraction": 0.9}, "eval_crop_fraction and eval_interpolation are for"),
        ({"data__eval_interpolation": "bicubic"}, r"got None and 'bicubic'"),
    ],
)
def test_images_of_one_size_are_evaluated_whole(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_run(tiny(**fields))


def test_images_of_one_size_are_cropped_by_the_step() -> None:
    crops = {"data__random_resized_crop": True, "data__crop_scale": (0.1, 0.5)}
    plain, cropped = open_run(tiny()), open_run(tiny(**crops))
    batches = [first(run.train_batches(0)) for run in (plain, cropped)]
    assert (batches[0]["image"] == batches[1]["image"]).all()
    whole, part = (
        jax.jit(functools.partial(_prepared, run))(jnp.int32(0), batch)
        for run, batch in zip((plain, cropped), batches, strict=True)
    )
    assert whole.shape == part.shape
    assert (whole != part).any((1, 2, 3)).all()


def test_deterministic_gpus_are_started_so(monkeypatch) -> None:
    gpu: Any = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    config = tiny(training__deterministic=True)
    monkeypatch.setenv("XLA_FLAGS", "--another")
    with pytest.raises(
        ValueError, match=r"wanted --xla_gpu_deterministic_ops=true among XLA_FLAGS"
    ):
        _check_deterministic(config, gpu)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    set_up_jax(deterministic=True)
    assert os.environ["XLA_FLAGS"] == "--another --xla_gpu_deterministic_ops=true"
    _check_deterministic(config, gpu)
