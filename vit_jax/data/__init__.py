"""Images from disk to the device: sources, a deterministic loader, augmentation inside the step.

Imports no other part of `vit_jax`. Nothing here imports TensorFlow; TFDS, Grain and OpenCV are
imported when they are first needed.
"""

from vit_jax.data.augment import (
    example_keys,
    make_eval_preprocess,
    make_train_augment,
    normalize,
)
from vit_jax.data.geometry import random_horizontal_flip, random_rotation, rotate
from vit_jax.data.host_crop import RandomResizedCrop
from vit_jax.data.loader import (
    Batch,
    Batches,
    eval_batches,
    num_eval_batches,
    steps_per_epoch,
    train_batches,
)
from vit_jax.data.resize import resize_bilinear
from vit_jax.data.sources import ArraySource, Example, ImageSource
from vit_jax.data.splits import Splits, open_splits, select
from vit_jax.data.statistics import STATISTICS, Statistics

__all__ = [
    "STATISTICS",
    "ArraySource",
    "Batch",
    "Batches",
    "Example",
    "ImageSource",
    "RandomResizedCrop",
    "Splits",
    "Statistics",
    "eval_batches",
    "example_keys",
    "make_eval_preprocess",
    "make_train_augment",
    "normalize",
    "num_eval_batches",
    "open_splits",
    "random_horizontal_flip",
    "random_rotation",
    "resize_bilinear",
    "rotate",
    "select",
    "steps_per_epoch",
    "train_batches",
]
