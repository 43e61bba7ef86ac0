"""Which labelled images a model is evaluated on."""

import dataclasses
import os
import pathlib

from vit_jax.config import DataConfig, load_config
from vit_jax.data.sources import ImageSource
from vit_jax.data.splits import open_splits
from vit_jax.weights.run_folder import CONFIG_FILE, named_checkpoint, run_directory


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A part of a data set, and how a run would go through it."""

    source: ImageSource
    batch_size: int
    num_workers: int | None


def open_labelled(
    model_source: str | os.PathLike[str],
    config: DataConfig | None = None,
    *,
    source: str | None = None,
    name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    labels_file: str | os.PathLike[str] | None = None,
    kind: str | None = None,
) -> Labelled:
    """Opens a split of a data set: of a run its own test split, unless another is named.

    Args:
      model_source: what the model is loaded from; a run's config.json names its data.
      config: the data of a recipe, instead.
      source: "tfds", "folder" or "digits", instead; with it, nothing of the run or recipe holds.
      name: of the set, as in `open_splits`.
      data_dir: where it is, as in `open_splits`.
      split: a split expression, as in `vit_jax.data.select`; None: the test split, or where there
        is none, the validation split.
      batch_size: images at a time; None: that of the run or recipe.
      labels_file: of a folder, as in `open_splits`; None: that of the run or recipe, unless another
        folder is named.
      kind: of its labels, see `vit_jax.models.spec.TARGETS`; None: as the run's.

    Raises:
      ValueError: nothing names the data, or they cannot be opened.
    """
    directory = run_directory(pathlib.Path(named_checkpoint(model_source)))
    if directory is not None:
        run = load_config(directory / CONFIG_FILE)
        kind, config = kind or run.loss.target, config or run.data
    if config is None or (source is not None and source != config.source):
        if source is None:
            raise ValueError(
                f"{os.fspath(model_source)} is no work directory and names no data: wanted "
                "--source tfds, folder or digits, or --config RECIPE"
            )
        config = DataConfig(source=source, batch_size=1)
    split = split or config.test_split or config.validation_split
    if not split:
        raise ValueError("the run has neither a test nor a validation split: wanted --split NAME")
    splits = open_splits(
        config.source,
        name or config.name or None,
        data_dir or config.data_dir,
        train_split=split,
        validation_split=None,
        test_split=None,
        exclude=() if data_dir else config.exclude or (),
        labels_file=labels_file or (None if data_dir else config.labels_file or None),
        kind=kind or "classification",
    )
    return Labelled(splits.train, batch_size or config.eval_batch_size, config.num_workers)
