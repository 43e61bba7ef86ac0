"""Runs that many of these tests look at, each made once, and programs that equal runs share."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.data.conftest import write_png
from tests.training.runs import shared_programs, tiny
from vit_jax.config import TrainConfig
from vit_jax.training import loop, train

# Tests that look at one run are of the group "runs": one process makes it.


@pytest.fixture(autouse=True, scope="module")
def full_precision() -> Iterator[None]:
    """As in the tests themselves, also for what is made for a module: they share programs."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True)
def quick_runs() -> Iterator[None]:
    """Runs in this process are traced once for each config."""
    with shared_programs():
        yield


def uninterrupted(config: TrainConfig, workdir: pathlib.Path) -> pathlib.Path:
    with jax.default_matmul_precision("highest"), shared_programs():
        train(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The tiny run of 12 steps, uninterrupted; no test changes it."""
    return uninterrupted(tiny(), tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def every_method(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """24 steps: colour images of varying size, and all that may happen to them and to the weights.

    Taught by a model of `TEACHER` with fields of its own.
    """
    folder = tmp_path_factory.mktemp("every_method")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 16)):
        for i in range(count):
            image = rng.integers(0, 256, (20 + i % 7, 31 - i % 5, 3), dtype=np.uint8)
            write_png(folder / split / "ab"[i % 2] / f"{i:02d}.png", image)
    fields = {"img_size": 16, "patch_size": 8, "num_classes": 2, "embed_dim": 16, "depth": 1}
    fields |= {"num_heads": 2, "drop_rate": 0.1}
    teacher = vit_jax.create_model("vit_tiny_patch16_224", rngs=nnx.Rngs(5), **fields)
    vit_jax.save_pretrained(teacher, folder / "teacher.safetensors")
    return tiny(
        num_epochs=4,
        accumulation_steps=2,
        model__kwargs=fields | {"drop_path_rate": 0.1, "distilled": True},
        data__source="folder",
        data__data_dir=str(folder),
        data__test_split=None,
        data__num_train_examples=None,
        data__batch_size=8,
        data__eval_batch_size=8,
        data__mean=(0.5, 0.5, 0.5),
        data__std=(0.25, 0.25, 0.25),
        data__random_resized_crop=True,
        data__interpolation="random",
        data__repeated_augmentation=3,
        data__padding_crop=2,
        data__horizontal_flip=True,
        data__rand_augment="rand-m9-mstd0.5-inc1",
        data__random_erasing=0.5,
        optimizer__name="lamb",
        optimizer__learning_rate=1e-2,
        optimizer__schedule="cosine",
        optimizer__schedule_unit="epoch",
        optimizer__warmup_epochs=1.0,
        optimizer__warmup_learning_rate=5e-3,
        optimizer__layer_decay=0.8,
        optimizer__backbone_factor=0.5,
        optimizer__frozen=["pos_embed"],
        optimizer__decay_mask="matrices",
        optimizer__gradient_clip_norm=1.0,
        loss__label_smoothing=0.1,
        mix__mixup_alpha=0.8,
        mix__cutmix_alpha=1.0,
        distillation__kind="hard",
        distillation__teacher=str(folder / "teacher.safetensors"),
        distillation__teacher_model="vit_tiny_patch16_224",
        distillation__teacher_kwargs=fields,
        ema__decay=0.9,
        ema__warmup=True,
        checkpoint__every_steps=3,
        log__every_steps=2,
    )


@pytest.fixture(scope="session")
def every_method_finished(
    every_method: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run of `every_method`, uninterrupted; no test changes it."""
    return uninterrupted(every_method, tmp_path_factory.mktemp("every_method_finished"))


FirstState = Callable[[TrainConfig], tuple[dict[str, np.ndarray], str]]


@pytest.fixture
def first_state(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> FirstState:
    """A function: config to (the state dict that a run begins with, what it said).

    With an average of the weights their names begin with "ema/".
    """

    def look(config: TrainConfig) -> tuple[dict[str, np.ndarray], str]:
        seen = {}

        def stop(self: Any) -> None:
            graph, state = self.run.train_graph, self.state
            for prefix, params in (("", state.params), ("ema/", state.ema)):
                if params is not None:
                    arrays = vit_jax.state_dict(nnx.merge(graph, params, state.frozen))
                    seen.update({prefix + name: array for name, array in arrays.items()})
            raise SystemExit

        with mock.patch.object(loop._Loop, "train", stop), pytest.raises(SystemExit):
            train(config, tmp_path / "new")
        return seen, capsys.readouterr().out

    return look
