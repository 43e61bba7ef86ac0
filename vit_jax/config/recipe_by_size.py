"""A sensible recipe for a folder of images: plain rules by the size of the set.

The numbers are ours. Few images: small batches, so that an epoch has some updates; many epochs; and
crops that keep most of the image. A start from scratch takes longer, at a higher learning rate.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from vit_jax.config.schema import (
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

# Undivided folders of fewer images are cut into two parts, not three.
_FEW = 500
_HELD_OUT = 0.2  # of the training images, where no others are for the validation


class SplitNames(NamedTuple):
    """Split expressions of a run, and how many images it trains on and validates on."""

    train: str
    validation: str
    test: str | None
    num_train: int
    num_validation: int


@dataclasses.dataclass(frozen=True)
class Start:
    """What training starts from, as the weights, or a registered name, state it.

    Attributes:
      name: the registered model.
      fields: of its constructor, where they are not the name's own.
      init_from: the weights; empty: none, training starts from scratch.
      mean, std: of each channel; None: nothing states them.
      crop_fraction, interpolation: of evaluation.
      image_size: side in pixels; None: the model's img_size.
    """

    name: str
    fields: Mapping[str, Any]
    init_from: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_fraction: float | None = None
    interpolation: str = "bilinear"
    image_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the labels of a folder are.

    Attributes:
      outputs: classes, labels or numbers.
      kind: "classification", "multilabel" or "regression".
      file: of the labels; empty: folders are classes.
      mean, std: of each number, of the training split.
    """

    outputs: int
    kind: str = "classification"
    file: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def loss(self) -> LossConfig:
        """What is minimised."""
        if self.kind == "multilabel":
            return LossConfig(kind="binary_cross_entropy")
        if self.kind == "regression":
            return LossConfig(kind="mse", target_mean=self.mean, target_std=self.std)
        return LossConfig(label_smoothing=0.1)


class _Rule(NamedTuple):
    most_images: float
    batch_size: int
    epochs: int
    epochs_from_scratch: int


_RULES = (
    _Rule(200, 8, 30, 100),
    _Rule(1_000, 16, 20, 100),
    _Rule(10_000, 32, 10, 60),
    _Rule(math.inf, 64, 5, 40),
)
_STRONG_AUGMENTATION = 1_000  # images from which on it pays


def choose_splits(sizes: Mapping[str, int]) -> SplitNames:
    """What a folder's images are used for.

    Args:
      sizes: images by split, as `vit_jax.data.folder.open_folder` gives them: "train" and what else
        there is of "validation" and "test"; with "all" the folder was undivided, and cut.

    Returns:
      The splits that are there. Without a validation split a fixed fifth of the training images is
      taken for it. Of an undivided folder of few images what is cut for the test goes to the
      validation: a tenth of them would choose the best checkpoint by chance.
    """
    train, validation, test = (sizes.get(name, 0) for name in ("train", "validation", "test"))
    if "all" in sizes and sizes["all"] < _FEW:
        held_out = "+".join(name for name in ("validation", "test") if sizes.get(name))
        return SplitNames("train", held_out, None, train, validation + test)
    name_of_test = "test" if test else None
    if validation:
        return SplitNames("train", "validation", name_of_test, train, validation)
    percent = round(100 * (1 - _HELD_OUT))
    kept = round(train * (1 - _HELD_OUT))
    parts = (f"shuffled(train)[:{percent}%]", f"shuffled(train)[{percent}%:]")
    return SplitNames(*parts, name_of_test, kept, train - kept)


def choose_recipe(
    data_dir: str,
    splits: SplitNames,
    labels: Labels,
    start: Start,
    exclude: tuple[str, ...] = (),
) -> TrainConfig:
    """The config of a run on a folder of images.

    Args:
      data_dir: the folder.
      splits: of `choose_splits`.
      labels: of the folder.
      start: what training starts from.
      exclude: files that are left out, from `data_dir`.
    """
    rule = next(rule for rule in _RULES if splits.num_train <= rule.most_images)
    batch_size = min(rule.batch_size, splits.num_train)
    from_scratch = not start.init_from
    epochs = rule.epochs_from_scratch if from_scratch else rule.epochs
    strong = splits.num_train > _STRONG_AUGMENTATION
    config = TrainConfig(
        num_epochs=epochs,
        model=ModelConfig(name=start.name, kwargs={**start.fields, "num_classes": labels.outputs}),
        data=DataConfig(
            source="folder",
            data_dir=data_dir,
            labels_file=labels.file,
            exclude=exclude or None,
            train_split=splits.train,
            validation_split=splits.validation,
            test_split=splits.test,
            batch_size=batch_size,
            eval_batch_size=min(64, 8 * math.ceil(splits.num_validation / 8)),
            image_size=start.image_size,
            mean=start.mean,
            std=start.std,
            eval_crop_fraction=start.crop_fraction,
            eval_interpolation=start.interpolation,
            horizontal_flip=True,
            random_resized_crop=True,
            crop_scale=(0.08, 1.0) if strong else (0.35, 1.0),
            rand_augment="rand-m9-mstd0.5-inc1" if strong else None,
        ),
        optimizer=OptimizerConfig(
            # The root of the batch: Adam's steps are noisier with few images.
            learning_rate=_rounded((1e-3 if from_scratch else 5e-4) * math.sqrt(batch_size / 64)),
            schedule="cosine",
            warmup_epochs=epochs / 10,
            weight_decay=0.05,
            decay_mask="matrices",
            layer_decay=1.0 if from_scratch else 0.75,
            gradient_clip_norm=1.0,
        ),
        loss=labels.loss,
        log=LogConfig(every_steps=min(50, splits.num_train // batch_size)),
    )
    if not from_scratch:
        config.init_from = start.init_from
        config.init_head, config.init_resize = "fresh", "source"
    return config


def _rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.1e}")
