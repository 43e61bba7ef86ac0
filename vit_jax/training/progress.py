"""What a run shows while it goes on: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
from types import TracebackType
from typing import Any, TextIO

from vit_jax.training.records import Row

# Columns of a terminal that has room for the speed too.
_WIDE = 100
OF_THE_RUN = {"step", "epoch", "split", "learning_rate", "images_per_second"}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def measured(row: Row) -> list[str]:
    """The names of a row's loss and metrics."""
    return [name for name in row if name not in OF_THE_RUN]


def describe(row: Row, num_classes: int | None = None) -> str:
    """A row of metrics in one line; without top5 where so few classes make it 1."""
    few = num_classes is not None and num_classes <= 5
    shown = [
        f"{name} {row[name]:.4f}"
        for name in measured(row)
        if not name.startswith("ema_") and not (few and name == "top5")
    ]
    text = f"{row['split']:<10} epoch {row['epoch']:.2f}  {'  '.join(shown)}"
    best = next((f"ema_{name}" for name in ("top1", "mAP") if name in row), "ema_loss")
    if best in row:
        text += f"  {best.replace('_', ' ')} {row[best]:.4f}"
    if "learning_rate" in row:
        text += f"  lr {row['learning_rate']:.2e}"
    if "images_per_second" in row:
        text += f"  {row['images_per_second']:.0f} images/s"
    return text


class Progress:
    """Shows a run's progress on standard output, and its troubles on standard error.

    Args:
      mode: "auto", "plain" or "none", see `LogConfig.progress`.
      total_steps: of the whole run; `start_step`: done already.
      batch_size: images a step.
      num_classes: of the model; None: not known.
      num_epochs: of the whole run; 0: not known.
    """

    def __init__(
        self,
        mode: str,
        total_steps: int,
        start_step: int,
        batch_size: int,
        num_classes: int | None = None,
        num_epochs: int = 0,
    ) -> None:
        self._num_epochs = num_epochs
        self._is_compiling = True
        self._quiet = mode == "none"
        self._num_classes = num_classes
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._bar: Any = None
        if mode == "auto" and sys.stdout.isatty():
            from rich import progress
            from rich.table import Column

            whole = Column(no_wrap=True)  # where a line is too long the bar alone is shortened
            self._bar = progress.Progress(
                progress.TextColumn("{task.fields[epoch]}step"),
                progress.MofNCompleteColumn(table_column=whole),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[figures]}"),
                progress.TimeRemainingColumn(compact=True, table_column=whole.copy()),
                progress.TextColumn("left"),
                speed_estimate_period=60,
            )
            self._task = self._bar.add_task(
                "train",
                total=total_steps,
                completed=start_step,
                epoch=self._epoch(start_step),
                figures="compiling",
            )

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar; `step` updates are done or under way."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, epoch=self._epoch(step))
            if self._is_compiling:
                self._is_compiling = False
                self._bar.update(self._task, figures="")

    def _epoch(self, step: int) -> str:
        if not self._num_epochs:
            return ""
        return f"epoch {step * self._num_epochs / self._total_steps:.1f}/{self._num_epochs}  "

    def compiling(self) -> None:
        """Says that the first update takes longer; the bar says it itself."""
        if self._bar is None:
            self.say("compiling the training step")

    def row(self, row: Row) -> None:
        """Shows new metrics."""
        if row["split"] != "train":
            self.say(describe(row, self._num_classes))
        elif self._bar is not None:
            shown = [f"{name} {row[name]:.4f}" for name in measured(row) if name != "top5"]
            shown += [f"lr {row['learning_rate']:.1e}"] if "learning_rate" in row else []
            if self._bar.console.width >= _WIDE:
                shown.append(f"{row['images_per_second']:.0f} images/s")
            self._bar.update(self._task, figures="  ".join(shown))
        else:
            left = (self._total_steps - row["step"]) * self._batch_size / row["images_per_second"]
            figures = describe(row, self._num_classes)
            self.say(f"step {row['step']}/{self._total_steps}  {figures}  {_duration(left)} left")

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            self._print(text, sys.stdout)

    def warn(self, text: str) -> None:
        """Prints a line that is never left out."""
        self._print(f"warning: {text}", sys.stderr)

    def _print(self, text: str, stream: TextIO) -> None:
        try:
            if self._bar is not None and stream is sys.stdout:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=stream, flush=True)
        except BrokenPipeError:  # the reader has gone (`| head`); the run goes on without it
            setattr(sys, "stdout" if stream is sys.stdout else "stderr", open(os.devnull, "w"))  # noqa: SIM115
