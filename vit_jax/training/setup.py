"""From a config to all that the loop needs, every check of it made before anything is written."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax.config import TrainConfig
from vit_jax.data.host_crop import RandomResizedCrop
from vit_jax.data.loader import Batches, eval_batches, steps_per_epoch, train_batches
from vit_jax.data.sources import ImageSource
from vit_jax.data.splits import Splits, open_splits
from vit_jax.data.statistics import STATISTICS, Statistics
from vit_jax.models.base import VisionModel
from vit_jax.training.mesh import process_rows, put_batch
from vit_jax.training.program import (
    Program,
    abstract_model_of,
    config_mesh,
    image_size,
    make_program,
)
from vit_jax.training.step import Batch


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run that could start.

    Attributes:
      config: what it was made from.
      program: the computation.
      splits: the data.
      steps_per_epoch, total_steps: updates.
      image_size: (height, width) that the model is given.
      preprocessing: how images are made ready, for the checkpoints.
    """

    config: TrainConfig
    program: Program
    splits: Splits
    steps_per_epoch: int
    total_steps: int
    image_size: tuple[int, int]
    preprocessing: dict[str, Any]

    def train_batches(self, start_step: int) -> Batches:
        """This process's rows of the batches of the updates from `start_step` on, on the host."""
        data = self.config.data
        return train_batches(
            self.splits.train,
            batch_size=data.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            num_steps=self.total_steps - start_step,
            num_workers=data.num_workers,
            worker_kind=data.worker_kind,  # pyright: ignore[reportArgumentType]
            image_size=self._host_size(self.splits.train),
            crop=None if self.splits.train.image_shape else random_crop(self.config),
            repeats=data.repeated_augmentation,
            rows=process_rows(self.program.mesh, data.batch_size),
        )

    def eval_batches(self, source: ImageSource) -> Batches:
        """All examples of a split, this process's rows of each batch, on the host."""
        data = self.config.data
        return eval_batches(
            source,
            batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            worker_kind=data.worker_kind,  # pyright: ignore[reportArgumentType]
            image_size=self._host_size(source),
            crop_fraction=self.preprocessing["crop_fraction"],
            interpolation=self.preprocessing["interpolation"],
            rows=process_rows(self.program.mesh, data.eval_batch_size),
        )

    def on_device(self, batches: Batches) -> Iterator[Batch]:
        """Sends each batch on its way to the devices, divided between them, without waiting."""
        for batch in batches:
            yield put_batch(self.program.mesh, batch)

    def _host_size(self, source: ImageSource) -> tuple[int, int] | None:
        # Images of one size cross to the device as they are and are resized there.
        return None if source.image_shape else self.image_size


def random_crop(config: TrainConfig) -> RandomResizedCrop | None:
    """The random resized crop of training images.

    The loader makes it where images vary in size. Those of one size cross to the device whole, and
    the step crops them.
    """
    data = config.data
    if not data.random_resized_crop:
        return None
    (small, large), (narrow, wide) = data.crop_scale, data.crop_ratio
    return RandomResizedCrop((small, large), (narrow, wide), data.interpolation)


def _crop_fraction(config: TrainConfig, model: VisionModel, source: ImageSource) -> float:
    """Of evaluation. Images that come in one size are shown whole."""
    data = config.data
    if source.image_shape:
        if data.eval_crop_fraction is not None or data.eval_interpolation != "bilinear":
            raise ValueError(
                "config.data.eval_crop_fraction and eval_interpolation are for images that vary in "
                f"size; those of {source.name} are all {source.image_shape[:2]} and are shown "
                'whole: wanted None and "bilinear", got '
                f"{data.eval_crop_fraction!r} and {data.eval_interpolation!r}"
            )
        return 1.0
    if data.eval_crop_fraction is not None:
        return data.eval_crop_fraction
    return model.preprocessing.crop_fraction if model.preprocessing else 1.0


def statistics_of(config: TrainConfig, channels: int) -> Statistics:
    """Mean and standard deviation that images are normalised with.

    Raises:
      ValueError: the config gives none and none are known for the set, or not one a channel.
    """
    data = config.data
    if data.mean is not None and data.std is not None:
        found = Statistics(data.mean, data.std)
    else:
        key = (
            data.source
            if data.source == "digits"
            else (data.name or "").split("/")[0].split(":")[0]
        )
        # ImageNet's subsets share its statistics.
        key = "imagenet" if key.startswith("imagenet") else key
        if key not in STATISTICS:
            raise ValueError(
                f"no channel statistics are known for {data.name or data.source!r}: set "
                f"config.data.mean and config.data.std (known: {', '.join(sorted(STATISTICS))})"
            )
        found = STATISTICS[key]
    if len(found.mean) != channels:
        raise ValueError(
            f"config.data.mean and std: wanted one number for each of the {channels} channels of "
            f"the images, got {found.mean!r}"
        )
    return found


def _check_model(model: VisionModel, config: TrainConfig, source: ImageSource) -> None:
    channels = source.channels
    if model.in_chans != channels:
        raise ValueError(
            f"the images of {source.name} have {channels} channels and the model takes "
            f"{model.in_chans}: set config.model.kwargs.in_chans={channels}"
        )
    if model.num_classes < source.num_classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes and the model's head only "
            f"{model.num_classes}: set config.model.kwargs.num_classes={source.num_classes}"
        )
    # A model that does not take images of this size says so itself.
    batch = config.data.batch_size
    images = jax.ShapeDtypeStruct((batch, *image_size(config, model), channels), np.float32)
    logits = nnx.eval_shape(lambda m, x: m(x, rngs=nnx.Rngs(dropout=0)), model, images)
    for part in jax.tree.leaves(logits):
        if part.shape != (batch, model.num_classes):
            raise ValueError(
                f"config.model.kwargs: the model's output has shape {part.shape}, wanted logits of "
                f"shape {(batch, model.num_classes)}: choose another global_pool"
            )


def build(config: TrainConfig) -> Setup:
    """Opens the data, makes the mesh and the steps. Nothing is compiled or written yet.

    Raises:
      ValueError: data, model, batch and devices do not fit each other.
    """
    mesh = config_mesh(config)
    data = config.data
    splits = open_splits(
        data.source,
        data.name or None,
        data.data_dir,
        train_split=data.train_split,
        validation_split=data.validation_split or None,
        test_split=data.test_split or None,
        seed=config.seed,
        num_train_examples=data.num_train_examples,
    )
    epoch = steps_per_epoch(splits.train, data.batch_size)

    model = abstract_model_of(config)
    _check_model(model, config, splits.train)
    statistics = statistics_of(config, splits.train.channels)
    crop = random_crop(config) if splits.train.image_shape else None
    return Setup(
        config=config,
        program=make_program(config, mesh, model, statistics, epoch, crop),
        splits=splits,
        steps_per_epoch=epoch,
        total_steps=epoch * config.num_epochs,
        image_size=image_size(config, model),
        preprocessing={
            "mean": list(statistics.mean),
            "std": list(statistics.std),
            "crop_fraction": _crop_fraction(config, model, splits.train),
            "interpolation": data.eval_interpolation,
        },
    )
