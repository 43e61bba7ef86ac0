"""What a run shows while it goes on: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
from types import TracebackType
from typing import Any, TextIO

from vit_jax.training.records import Row


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def describe(row: Row) -> str:
    """A row of metrics in one line."""
    text = (
        f"{row['split']:<10} epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  "
        f"top1 {row['top1']:.4f}  top5 {row['top5']:.4f}"
    )
    if "ema_top1" in row:
        text += f"  ema top1 {row['ema_top1']:.4f}"
    if "images_per_second" in row:
        text += f"  {row['images_per_second']:.0f} images/s"
    return text


class Progress:
    """Shows a run's progress on standard output, and its troubles on standard error.

    Args:
      mode: "auto", "plain" or "none", see `LogConfig.progress`.
      total_steps: of the whole run; `start_step`: done already.
      batch_size: images a step.
    """

    def __init__(self, mode: str, total_steps: int, start_step: int, batch_size: int) -> None:
        self._quiet = mode == "none"
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._bar: Any = None
        if mode == "auto" and sys.stdout.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[figures]}"),
                progress.TimeRemainingColumn(compact=True),
                progress.TextColumn("left"),
                speed_estimate_period=60,
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start_step, figures="compiling"
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
            self._bar.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        """Shows new metrics."""
        if row["split"] != "train":
            self.say(describe(row))
        elif self._bar is not None:
            figures = (
                f"loss {row['loss']:.4f}  top1 {row['top1']:.3f}  "
                f"{row['images_per_second']:.0f} images/s"
            )
            self._bar.update(self._task, figures=figures)
        else:
            left = (self._total_steps - row["step"]) * self._batch_size / row["images_per_second"]
            self.say(
                f"step {row['step']}/{self._total_steps}  {describe(row)}  {_duration(left)} left"
            )

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
