"""Batches for training and evaluation. A training batch is a pure function of (seed, step).

Grain's `MapDataset` maps the step to its batch, so that any step is reached at once and workers
only decide when a batch is made, never what is in it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np

from vit_jax.data.host_crop import (
    INTERPOLATIONS,
    RandomResizedCrop,
    cut,
    evaluation_crop,
    pil_resize,
)
from vit_jax.data.order import balanced_examples, epoch_examples, label_key
from vit_jax.data.sources import ImageSource, checked_label
from vit_jax.data.workers import check_killed, init_worker

Batch = dict[str, np.ndarray]
WorkerKind = Literal["thread", "process"]
WORKER_KINDS: tuple[WorkerKind, ...] = ("thread", "process")

# Grain wants the length of a data set. No run gets near this step.
_ENDLESS = 2**40
# Batches made ahead by each worker: one in work, one ready.
_BUFFERED_BATCHES = 2
_MAX_INDEX = 2**31 - 1


class Batches:
    """An iterator of batches that owns its workers.

    Close it, or use it as a context manager: no thread or process of it is left afterwards. It
    closes itself at its end and after an error.
    """

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except BaseException as error:  # the end, one in a worker, or Ctrl-C: none leaves a worker
            self.close()
            check_killed(error)
            raise

    def close(self) -> None:
        """Stops the workers. May be called again."""
        self._iterator.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def train_batches(
    source: ImageSource,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_steps: int | None = None,
    num_workers: int = 0,
    worker_kind: WorkerKind = "thread",
    image_size: int | tuple[int, int] | None = None,
    crop: RandomResizedCrop | None = None,
    repeats: int = 1,
    balanced: np.ndarray | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    with_images: bool = True,
) -> Batches:
    """Shuffled batches from `start_step` on, epoch after epoch.

    Each epoch visits the images in an order drawn from (seed, epoch); a last batch that would be
    short is dropped. A batch holds `image` (B, H, W, C) uint8, `label` (B,) int32 or as the source
    says, `index` (B,) int32 (the position in `source`, plus len(source) times the repeat) and
    `mask` (B,) bool, here all True, where B is the number of `rows`. The batch of a step depends on
    (seed, step) and these sizes alone: not on `start_step`, the workers, or the step before.

    Args:
        source: the training images.
        batch_size: images in a step, over all processes together.
        seed: selects the orders.
        start_step: the step of the first batch.
        num_steps: batches until the iterator ends; None: endless.
        num_workers: threads or processes that make batches ahead; 0 makes each when asked for.
        worker_kind: "thread" (OpenCV decodes outside the GIL) or "process".
        image_size: side, or (height, width), that each image is resized to; None leaves images
            alone, which then must share one size.
        crop: a random crop of each image, drawn from (seed, epoch, index), is resized to
            `image_size`. Where that is None, `crop` (B, 5) int32 says in the batch what was drawn,
            and the training step cuts it: see `RandomResizedCrop.draw`. None: the whole image,
            whatever its aspect ratio.
        repeats: how many times an image of an epoch appears in it, see `epoch_examples`.
        balanced: (N,) integers, the class of each image: an epoch, as long as before, shows every
            class equally often, see `balanced_examples`. None: every image once.
        rows: which rows of each batch are made: a host's own. None: all.
        with_images: False leaves `image` and `label` out, and reads none: `index` tells them.

    Raises:
        ValueError: an argument out of its range, more images in a batch than in the source, or
            while iterating an image that cannot be read.
    """
    num_steps_per_epoch = steps_per_epoch(source, batch_size)
    _check_at_least(0, seed=seed, start_step=start_step)
    if num_steps is not None:
        _check_at_least(0, num_steps=num_steps)
    _check_at_least(1, repeats=repeats)
    if len(source) * repeats > _MAX_INDEX:
        raise ValueError(
            f"repeats must be at most {_MAX_INDEX // len(source)} for the {len(source)} images of "
            f"{source.name}, got {repeats}"
        )
    if balanced is not None:
        _check_balanced(source, balanced, repeats)
    make_batch = _TrainBatch(
        source=source,
        rows=_rows(batch_size, rows),
        size=_image_size(source, image_size),
        crop=crop,
        cut_in_step=image_size is None,
        repeats=repeats,
        balanced=None if balanced is None else label_key(balanced),
        batch_size=batch_size,
        seed=seed,
        steps_per_epoch=num_steps_per_epoch,
        with_images=with_images,
    )
    end = _ENDLESS if num_steps is None else start_step + num_steps
    return _iterate(make_batch, start_step, end, num_workers, worker_kind)


def _check_balanced(source: ImageSource, labels: np.ndarray, repeats: int) -> None:
    counts = np.unique(labels, return_counts=True)[1]
    most = len(source) * (len(source) // len(counts) // counts.min() + 2)
    if repeats > 1 or most > _MAX_INDEX:
        reason = (
            f"repeats must be 1, got {repeats}"
            if repeats > 1
            else f"the rarest class of {source.name} has {counts.min()} of {len(source)} images"
        )
        raise ValueError(f"balanced sampling: {reason}")


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    num_workers: int = 0,
    worker_kind: WorkerKind = "thread",
    image_size: int | tuple[int, int] | None = None,
    crop_fraction: float = 1.0,
    interpolation: str = "bilinear",
    crop_mode: str = "center",
    rows: Sequence[int] | np.ndarray | None = None,
    with_images: bool = True,
) -> Batches:
    """Every image exactly once, in the order of the source.

    All batches have one size: the last is filled up with black images of label 0 and index -1 whose
    `mask` is False. Keys, sizes and workers are those of `train_batches`.

    Args:
        source: the images.
        batch_size: rows of a batch, over all processes together.
        num_workers: as in `train_batches`.
        worker_kind: as in `train_batches`.
        image_size: side, or (height, width), that images are resized and cropped to: see
            `evaluation_crop`. None leaves images alone, which then must share one size.
        crop_fraction: share of the resized image's tighter side that the crop keeps, in (0, 1].
        interpolation: of the resize, see `evaluation_crop`.
        crop_mode: see `evaluation_crop`.
        rows: as in `train_batches`.
        with_images: as in `train_batches`.

    Raises:
        ValueError: as in `train_batches`; the source may be smaller than a batch.
    """
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1], got {crop_fraction}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"unknown interpolation {interpolation!r}; valid: {', '.join(INTERPOLATIONS)}"
        )
    make_batch = _EvalBatch(
        source=source,
        rows=_rows(batch_size, rows),
        size=_image_size(source, image_size),
        batch_size=batch_size,
        crop=None if image_size is None else (crop_fraction, interpolation, crop_mode),
        with_images=with_images,
    )
    return _iterate(make_batch, 0, num_eval_batches(source, batch_size), num_workers, worker_kind)


def steps_per_epoch(source: ImageSource, batch_size: int) -> int:
    """Training steps of an epoch, the last short batch dropped.

    Raises:
        ValueError: the batch is larger than the source.
    """
    _check_at_least(1, batch_size=batch_size)
    if batch_size > len(source):
        raise ValueError(
            f"batch_size {batch_size} is larger than {source.name}, which has {len(source)} "
            f"images; choose from 1 to {len(source)}"
        )
    return len(source) // batch_size


def num_eval_batches(source: ImageSource, batch_size: int) -> int:
    """Batches of one evaluation, the last one padded."""
    _check_at_least(1, batch_size=batch_size)
    return -(-len(source) // batch_size)


@dataclass(frozen=True)
class _TrainBatch:
    """Makes the batch of a step."""

    source: ImageSource
    rows: np.ndarray
    size: tuple[int, int, int]
    crop: RandomResizedCrop | None
    cut_in_step: bool
    repeats: int
    balanced: bytes | None
    batch_size: int
    seed: int
    steps_per_epoch: int
    with_images: bool = True

    def __call__(self, step: int) -> Batch:
        epoch, step_of_epoch = divmod(int(step), self.steps_per_epoch)
        places = self.rows + step_of_epoch * self.batch_size
        if self.balanced is None:
            length = len(self.source)
            positions, indices = epoch_examples(places, length, self.seed, epoch, self.repeats)
        else:
            positions, indices = balanced_examples(places, self.balanced, self.seed, epoch)
        batch = _empty_batch(indices, self.size, self.source)
        height, width, _ = self.size
        if self.crop is not None and self.cut_in_step:  # of images that are all of this size
            drawn = [
                self._drawn(height, width, epoch=epoch, index=index) for index in indices.tolist()
            ]
            batch["crop"] = np.asarray(drawn, np.int32)
        if not self.with_images:
            return _without_images(batch)
        for row, example in enumerate(self.source.stream(positions.tolist())):
            image = example["image"]
            if self.crop is not None and not self.cut_in_step:
                crop = self._drawn(*image.shape[:2], epoch=epoch, index=int(indices[row]))
                image = cut(image, crop, height, width)
            elif image.shape != self.size:
                image = pil_resize(image, height, width, "bilinear")
            batch["image"][row] = image
            batch["label"][row] = checked_label(self.source, int(positions[row]), example["label"])
        return batch

    def _drawn(self, height: int, width: int, *, epoch: int, index: int) -> Any:
        """The random crop of an image of this size."""
        assert self.crop is not None
        return self.crop.draw(height, width, seed=self.seed, epoch=epoch, index=index)


@dataclass(frozen=True)
class _EvalBatch:
    """Makes the n-th batch of an evaluation."""

    source: ImageSource
    rows: np.ndarray
    size: tuple[int, int, int]
    batch_size: int
    crop: tuple[float, str, str] | None
    with_images: bool = True

    def __call__(self, number: int) -> Batch:
        indices = np.arange(self.batch_size)[self.rows] + int(number) * self.batch_size
        indices[indices >= len(self.source)] = -1
        batch = _empty_batch(indices, self.size, self.source)
        if not self.with_images:
            return _without_images(batch)
        height, width, _ = self.size
        rows = np.flatnonzero(batch["mask"]).tolist()
        examples = self.source.stream(indices[rows].tolist())
        for row, example in zip(rows, examples, strict=True):
            image = example["image"]
            if self.crop is not None:
                image = evaluation_crop(image, height, width, *self.crop)
            batch["image"][row] = image
            batch["label"][row] = checked_label(self.source, int(indices[row]), example["label"])
        return batch


def _empty_batch(indices: np.ndarray, size: tuple[int, int, int], source: ImageSource) -> Batch:
    """A batch of black images; index -1 marks a padding row."""
    return {
        "image": np.zeros((len(indices), *size), np.uint8),
        "label": np.zeros((len(indices), *source.label_shape), source.label_dtype),
        "index": indices.astype(np.int32),
        "mask": indices >= 0,
    }


def _without_images(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in ("image", "label")}


def _iterate(
    make_batch: Callable[[int], Batch],
    start: int,
    end: int,
    num_workers: int,
    worker_kind: WorkerKind,
) -> Batches:
    import grain
    from absl import flags

    _check_at_least(0, num_workers=num_workers)
    if worker_kind not in WORKER_KINDS:
        raise ValueError(f"unknown worker_kind {worker_kind!r}; valid: {', '.join(WORKER_KINDS)}")
    num_threads = num_workers if worker_kind == "thread" else 0
    dataset = (
        grain.MapDataset.range(start, end)
        .map(make_batch)
        .to_iter_dataset(
            grain.ReadOptions(
                num_threads=num_threads, prefetch_buffer_size=num_threads * _BUFFERED_BATCHES
            )
        )
    )
    if worker_kind == "process" and num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain's process workers read an absl flag, which only absl's own start would have set.
            flags.FLAGS.mark_as_parsed()
        # Batches come through pipes: shared memory is left behind by an iterator closed early, and
        # containers give it little room.
        dataset = grain.experimental.WithOptionsIterDataset(
            dataset, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        ).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=_BUFFERED_BATCHES
            ),
            worker_init_fn=init_worker,
        )
    return Batches(iter(dataset))


def _rows(batch_size: int, rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
    _check_at_least(1, batch_size=batch_size)
    if rows is None:
        return np.arange(batch_size)
    found = np.asarray(rows)
    if found.size == 0 or found.min() < 0 or found.max() >= batch_size:
        raise ValueError(f"rows must be from 0 to {batch_size - 1}, and some, got {rows!r}")
    return found


def _image_size(
    source: ImageSource, image_size: int | Sequence[int] | None
) -> tuple[int, int, int]:
    """(height, width, channels) of the batches."""
    if image_size is None:
        if source.image_shape is None:
            raise ValueError(
                f"the images of {source.name} vary in size: image_size must say what to resize to"
            )
        return source.image_shape
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check_at_least(1, image_height=height, image_width=width)
    return height, width, source.channels


def _check_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
