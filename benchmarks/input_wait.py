"""How long the training loop waits for its input, as a share of its time.

The loop is `vit_jax.training.train` itself, on all cores and with the loader's default workers:
only `Run.on_device`, from which it takes its batches, is watched. Measured from the ninth step
on, when all is compiled and the workers have made their first batches. On a device that computes
beside the loop, a wait need not delay it: the share is at most what input costs.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from rich.console import Console

from vit_jax.allocator import keep_freed_memory
from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.data.loader import Batches
from vit_jax.training import train
from vit_jax.training.run import Run

# The loop dispatches a few steps ahead before it waits for one: these are not measured.
_FIRST = 8
_LOG = LogConfig(every_steps=10**6, tensorboard=False, progress="none")
_CHECKPOINT = CheckpointConfig(every_steps=10**6, keep_best=False)


def _configs(data_dir: pathlib.Path) -> dict[str, TrainConfig]:
    shared: dict[str, Any] = {"data_dir": str(data_dir), "validation_split": "", "test_split": ""}
    cifar = load_recipe(find_recipe("cifar10_vit"))
    cifar.num_epochs, cifar.log, cifar.checkpoint = 1, _LOG, _CHECKPOINT
    cifar.data = dataclasses.replace(cifar.data, num_train_examples=32 * 60, **shared)
    imagenette = TrainConfig(
        num_epochs=1,
        model=ModelConfig(name="vit_small_patch16_224", kwargs={"num_classes": 10}),
        data=DataConfig(
            source="tfds",
            name="imagenette224",
            train_split="validation",
            num_train_examples=8 * 24,
            batch_size=8,
            **shared,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        log=_LOG,
        checkpoint=_CHECKPOINT,
    )
    return {
        "vit_classifier on cifar10, batch 32": cifar,
        "vit_small on imagenette224, batch 8": imagenette,
    }


def measure_wait(data_dir: pathlib.Path, console: Console) -> list[dict[str, Any]]:
    """The loop's share of waiting in short runs of two models."""
    keep_freed_memory()  # as `vit-jax train` does
    return [_measure(name, config, console) for name, config in _configs(data_dir).items()]


def _measure(name: str, config: TrainConfig, console: Console) -> dict[str, Any]:
    asked: list[float] = []
    got: list[float] = []
    on_device = Run.on_device

    def watched(run: Run, batches: Batches) -> Iterator[Any]:
        found = on_device(run, batches)
        while True:
            asked.append(time.perf_counter())
            batch = next(found, None)
            got.append(time.perf_counter())
            if batch is None:
                return
            yield batch

    with tempfile.TemporaryDirectory() as workdir, mock.patch.object(Run, "on_device", watched):
        train(config, workdir)
    waited = sum(end - start for start, end in zip(asked[_FIRST:], got[_FIRST:], strict=True))
    took = got[-1] - asked[_FIRST]
    steps = len(asked) - 1 - _FIRST
    console.print(
        f"{name}: {1e3 * waited / steps:.2f} ms of {1e3 * took / steps:,.1f} ms a step wait for "
        f"input, {waited / took:.2%}",
        highlight=False,
    )
    return {"run": name, "waited_s": waited, "took_s": took, "share": waited / took}
