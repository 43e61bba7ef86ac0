"""What takes the figures of a run beside metrics.jsonl: TensorBoard, Weights & Biases."""

import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from vit_jax.config import TrainConfig, to_dict
from vit_jax.storage import write_bytes
from vit_jax.training.events import EventWriter
from vit_jax.training.workdir import writing

_WANDB_ID = "wandb_id"  # in the work directory: a resumed run goes on with the same curves


class Logger(Protocol):
    """Takes the figures of each row."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point on the curve of each name, such as `train/loss`."""

    def close(self) -> None:
        """The run has ended, or was stopped."""


class TensorBoard:
    """Event files in the work directory; arguments as of `EventWriter`."""

    def __init__(self, workdir: pathlib.Path, purge_step: int) -> None:
        self._workdir = workdir
        with writing(workdir):
            self._events = EventWriter(workdir, purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`; raises ValueError where the file cannot be written."""
        with writing(self._workdir):
            self._events.scalars(step, values)

    def close(self) -> None:
        """See `Logger`."""
        self._events.close()


class WeightsAndBiases:
    """A run of Weights & Biases, named as the work directory, with the config as its settings.

    A resumed run goes on with the same one. Points that it has already are the same to the last
    bit, and wandb drops them.

    Raises:
      ValueError: wandb is not installed.
    """

    def __init__(self, config: TrainConfig, workdir: pathlib.Path) -> None:
        wandb = import_wandb()
        path = workdir / _WANDB_ID
        if not path.exists():
            with writing(workdir):
                write_bytes(path, uuid.uuid4().hex[:12].encode())
        self._run = wandb.init(
            project=config.log.wandb,
            name=workdir.name,
            id=path.read_text().strip(),
            resume="allow",
            dir=str(workdir),
            config=to_dict(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Logger`."""
        self._run.finish()


def import_wandb() -> Any:
    """The module wandb.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "config.log.wandb: Weights & Biases is not installed (pip install 'vit-jax[wandb]'), "
            f"or cannot be imported: {error}"
        ) from error
    return wandb


def open_loggers(config: TrainConfig, workdir: pathlib.Path, step: int) -> list[Logger]:
    """The loggers that the config asks for.

    Args:
      config: of the run.
      workdir: of the run.
      step: updates done.
    """
    loggers: list[Logger] = []
    if config.log.tensorboard:
        loggers.append(TensorBoard(workdir, purge_step=step + 1))
    if config.log.wandb:
        loggers.append(WeightsAndBiases(config, workdir))
    return loggers
