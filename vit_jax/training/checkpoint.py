"""The checkpoints of a run: written while training goes on, whole or not at all.

Orbax writes them and makes each appear under its step's number only once it is complete. How they
are read, and what damage is noticed, is in `checkpoint_reading`.
"""

import dataclasses
import errno
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vit_jax.storage import absolute, remove_tree
from vit_jax.training.processes import any_of_all, is_first
from vit_jax.training.state import TrainState
from vit_jax.weights.checkpoint_reading import (
    EMA,
    FINGERPRINT,
    MODEL,
    TRAINING,
    CheckpointInfo,
    DamagedCheckpointError,
    bound_info,
    fingerprint_of,
    named_arrays,
    one_line,
    read_items,
)

_DAMAGED = "checkpoints.damaged"


class _Kept(checkpoint_managers.PreservationPolicy):
    """The latest `keep` checkpoints, and that of `best_step`."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = len(checkpoints) - self.keep
        return [
            place >= latest or checkpoint.step == self.best_step
            for place, checkpoint in enumerate(checkpoints)
        ]


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """The arrays of a state in parts, so that a model can be read without its optimizer."""
    training = {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name not in ("params", "frozen", "ema")
    }
    items = {
        MODEL: named_arrays(state.params) | named_arrays(state.frozen),
        TRAINING: named_arrays(training),
    }
    return items if state.ema is None else items | {EMA: named_arrays(state.ema)}


def _rebuild(template: TrainState, arrays: Mapping[str, Mapping[str, Any]]) -> TrainState:
    def part(tree: Any, item: str, prefix: str = "") -> Any:
        leaves = [arrays[item][prefix + name] for name in named_arrays(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    item_of = {"params": MODEL, "frozen": MODEL, "ema": EMA}
    return TrainState(
        **{
            field.name: part(getattr(template, field.name), item_of[field.name])
            if field.name in item_of
            else part({field.name: getattr(template, field.name)}, TRAINING)[field.name]
            for field in dataclasses.fields(template)
        }
    )


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: holds one directory a checkpoint, named by its step.
      keep: how many of the latest stay.
      keep_best: whether that of the best validation stays too.
    """

    def __init__(self, directory: pathlib.Path, keep: int, keep_best: bool) -> None:
        self.directory = directory
        self._keep_best = keep_best
        self._policy = _Kept(keep)
        self._manager = ocp.CheckpointManager(
            absolute(directory),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
            ),
        )
        self._good: int | None = None
        self._writing: int | None = None

    def save(self, state: TrainState, info: CheckpointInfo) -> None:
        """Starts to write a checkpoint; returns when the arrays may change. Again is no harm.

        Raises:
          ValueError: this checkpoint, or the one before it, cannot be written (a full disk).
        """
        if info.step in self._manager.all_steps():
            return
        self.wait()
        parts = _items(state)
        fingerprints = {item: fingerprint_of(arrays) for item, arrays in parts.items()}
        items = {
            item: ocp.args.StandardSave({**arrays, FINGERPRINT: fingerprints[item]})
            for item, arrays in parts.items()
        }
        said = ocp.args.JsonSave(bound_info(info, fingerprints))
        self._writing = info.step
        try:
            self._manager.save(info.step, args=ocp.args.Composite(**items, info=said))
        except Exception as error:
            raise self._cannot_write(error) from error

    def keep_best_of(self, step: int) -> None:
        """Tells which checkpoint is that of the best validation, which `keep_best` keeps."""
        if self._keep_best:
            self._policy.best_step = step

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is complete.

        Raises:
          ValueError: it cannot be written.
        """
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error
        self._good, self._writing = self._writing, None

    def _cannot_write(self, error: Exception) -> ValueError:
        step, self._writing = self._writing, None
        # Orbax's other writes fail as well, some of them after this run has ended: its threads and
        # asyncio would log each with a traceback. What happened is said once, here.
        for late in ("absl", "asyncio"):
            logging.getLogger(late).disabled = True
        good = "there is none before it"
        if self._good is not None:
            good = f"the last good one is that of step {self._good}, from which a new run goes on"
        reason = one_line(error)
        for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            said = os.strerror(code)  # it may stand in the middle, which `one_line` leaves out
            if said in str(error) and said not in reason:
                reason = f"{said}: {reason}"
        hint = " (is the disk full?)" if self.directory.is_dir() else " (was it removed?)"
        return ValueError(
            f"the checkpoint of step {step} cannot be written to {self.directory}: "
            f"{reason}{hint}; {good}"
        )

    def restore(
        self, template: TrainState, shardings: TrainState, say: Callable[[str], None]
    ) -> tuple[TrainState, CheckpointInfo] | None:
        """Reads the latest checkpoint that is whole, or None if there are none.

        Damaged ones are moved to a directory beside, `checkpoints.damaged`, and said.

        Args:
          template: a state with the shapes and types wanted.
          shardings: where its arrays are to lie.
          say: is told of each damaged checkpoint.

        Raises:
          ValueError: there are checkpoints, all damaged.
        """
        wanted = _items(
            jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                template,
                shardings,
            )
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            found = None
            try:
                found = read_items(self.directory / str(step), wanted, step)
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
            if any_of_all(found is None):
                damaged.setdefault(step, "another process cannot read it")
                continue
            assert found is not None
            for bad, reason in damaged.items():
                say(f"the checkpoint of step {bad} is damaged, using that of step {step}: {reason}")
                if is_first():
                    self._set_aside(bad)
            if any_of_all(bool(damaged)):  # and all wait until they are aside
                self._manager.reload()
            self._good = step
            return _rebuild(template, found[0]), found[1]
        if damaged:
            first = max(damaged)
            raise ValueError(
                f"no checkpoint in {self.directory} can be read (steps "
                f"{', '.join(map(str, sorted(damaged)))}; the latest: {damaged[first]}): give "
                "another --workdir, or remove that directory to start from the beginning"
            )
        return None

    def _set_aside(self, step: int) -> None:
        aside = self.directory.parent / _DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        remove_tree(aside)
        (self.directory / str(step)).rename(aside)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error the other processes may be gone, for whose part this one would wait.
        if jax.process_count() == 1 or not isinstance(error, Exception):
            self.close()

    def close(self) -> None:
        """Waits for what is being written, ends Orbax's threads, and removes what is unfinished.

        Raises:
          ValueError: the checkpoint cannot be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()
            # Of a write that failed: the disk may be full. A thread of Orbax that is late can leave
            # some of it, which the next run removes.
            if is_first():
                for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    remove_tree(unfinished)
