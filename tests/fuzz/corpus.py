"""What the fuzzer damages, all of it tiny: runs, image folders, prepared sets, weights."""

import json
import os
import pathlib
import shutil
import signal
from collections.abc import Callable
from unittest import mock

import numpy as np

from tests.data.conftest import cifar_members, prepare_small, random_images, write_png, write_tar
from tests.training.runs import _BASE, ROOT
from vit_jax import cli
from vit_jax.training import loop

RECIPE = "recipe.py"
FOLDER_RECIPE = "folder_recipe.py"
PREPARED_RECIPE = "prepared_recipe.py"
_GOLDEN = "tiny_seed004"
_TEXT = """from vit_jax.config import from_dict

VALUES = {values!r}


def get_config():
    return from_dict(VALUES)
"""
_COLOUR = {"in_chans": 3, "num_classes": 3, "img_size": 8, "patch_size": 4}


def make(place: pathlib.Path) -> pathlib.Path:
    """Makes all of it in the folder `place`; the names are those of `tests.fuzz.cases`."""
    place.mkdir(parents=True)
    base = _values(_BASE, num_epochs=1, checkpoint={"every_steps": 2, "keep": 3, "keep_best": True})
    base["data"] |= {"num_train_examples": 100, "batch_size": 32}
    base["log"]["every_steps"] = 2
    _recipe(place / RECIPE, base)
    folder = _values(
        base,
        data=base["data"]
        | {
            "source": "folder",
            "data_dir": "images",
            "num_train_examples": None,
            "batch_size": 4,
            "eval_batch_size": 4,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "image_size": 8,
            "test_split": None,
        },
        model={"name": base["model"]["name"], "kwargs": base["model"]["kwargs"] | _COLOUR},
    )
    _recipe(place / FOLDER_RECIPE, folder)
    prepared = _values(folder)
    prepared["data"] |= {
        "source": "tfds",
        "name": "small",
        "data_dir": "sets",
        "image_size": None,
        "validation_split": "test",
        "test_split": "test",
    }
    _recipe(place / PREPARED_RECIPE, prepared)
    _images(place)
    prepare_small(place / "sets", train=8, test=4)
    write_tar(place / "cifar-10-binary.tar.gz", cifar_members("cifar10", train=10, test=4))
    for suffix in ("json", "npz"):
        shutil.copy(ROOT / "tests" / "golden" / f"{_GOLDEN}.{suffix}", place / f"golden.{suffix}")
    _runs(place)
    _weights(place)
    return place


def _values(values: dict, **changes: object) -> dict:
    return json.loads(json.dumps(values)) | changes


def _recipe(path: pathlib.Path, values: dict) -> None:
    path.write_text(_TEXT.format(values=values))


def _images(place: pathlib.Path) -> None:
    images = random_images(16, side=9)
    for number, image in enumerate(images):
        split = "train" if number < 10 else "val"
        write_png(place / "images" / split / "abc"[number % 3] / f"{number:02d}.png", image)
    from PIL import Image

    for suffix in ("jpg", "webp", "gif", "bmp", "tif", "ppm"):
        (place / "formats").mkdir(exist_ok=True)
        Image.fromarray(images[0]).save(place / "formats" / f"one.{suffix}")
    np.save(place / "images.npy", np.zeros((2, 32, 32, 3), np.float32))


def _runs(place: pathlib.Path) -> None:
    _do(place, "train", "--config", RECIPE, "--workdir", "run")
    _do(place, "train", "--config", FOLDER_RECIPE, "--workdir", "folder_run")
    with stopping_after(2):
        _do(place, "train", "--config", RECIPE, "--workdir", "stopped", status=143)


def _weights(place: pathlib.Path) -> None:
    for target in ("weights.safetensors", "weights.pth"):
        _do(place, "convert", "folder_run", target)
    for form, target in (("hf", "hf"), ("google", "google.npz"), ("orbax", "orbax")):
        _do(place, "convert", "folder_run", target, "--to", form)


def _do(place: pathlib.Path, *arguments: str, status: int = 0) -> None:
    before = os.getcwd()
    os.chdir(place)
    try:
        got = cli.main(arguments)
    except SystemExit as end:
        got = end.code
    finally:
        os.chdir(before)
    if got != status:
        raise AssertionError(f"{arguments} ended with status {got}, wanted {status}")


def stopping_after(steps: int) -> "mock._patch[Callable]":
    """A patch: training is stopped by SIGTERM once it has made so many updates."""
    original = loop._Loop._after_step

    def after_step(self: loop._Loop, timer: object) -> None:
        original(self, timer)  # pyright: ignore[reportArgumentType]
        made = getattr(self, "made", 0) + 1
        setattr(self, "made", made)  # noqa: B010
        if made == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    return mock.patch.object(loop._Loop, "_after_step", after_step)
