"""The training loop: one command trains, resumes, and survives.

A step is counted when its update is done. After step s, in this order: the train row if one is due,
the validation if one is due, the checkpoint if one is due. Rows are on the disk before a later
checkpoint is, so a checkpoint of step s implies all rows up to s, and a resumed run cuts later ones
away.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.config import TrainConfig, validate
from vit_jax.data.folder_check import shared_images
from vit_jax.data.loader import Batch as HostBatch
from vit_jax.data.own import own_splits
from vit_jax.data.sources import ImageSource
from vit_jax.data.splits import Splits
from vit_jax.layers.forms import set_form
from vit_jax.storage import run_path
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.ema import averaged
from vit_jax.training.evaluate import evaluate
from vit_jax.training.interrupt import Interrupted, StopSignals
from vit_jax.training.loggers import Logger, import_wandb, open_loggers
from vit_jax.training.mesh import place, replicated
from vit_jax.training.objectives import Measure
from vit_jax.training.own import ImageAugment, Own, Report
from vit_jax.training.own_model import OwnModel, OwnModule
from vit_jax.training.processes import Stopping, companions, is_first, tell_all
from vit_jax.training.profiling import FOLDER, Profile
from vit_jax.training.progress import Progress, describe, measured
from vit_jax.training.records import Records, Row, read_rows
from vit_jax.training.run import Run, open_run
from vit_jax.training.schedules import learning_rate_of_update
from vit_jax.training.start import check_init_from, load_initial_weights, with_stated_fields
from vit_jax.training.state import TrainState, first_average, split_arrays, zero_sums
from vit_jax.training.watching import starting_lines
from vit_jax.training.workdir import (
    IMAGES,
    METRICS_FILE,
    check_config,
    check_images,
    check_pixels,
    has_begun,
    held,
    store_config,
    writing,
)
from vit_jax.weights.checkpoint_reading import (
    CheckpointInfo,
    DamagedCheckpointError,
    quiet_orbax,
    read_info,
)
from vit_jax.weights.run_folder import CHECKPOINTS
from vit_jax.weights.spec_json import spec_to_dict

# Updates that may be under way, or the dispatch that the device makes and the next. The device
# always has one waiting; more would only hold batches in memory and delay the answer to a signal.
_IN_FLIGHT = 4


def train(
    config: TrainConfig,
    workdir: str | pathlib.Path,
    *,
    data: Any = None,
    class_names: Sequence[str] | None = None,
    model: OwnModule | None = None,
    loss: Measure | None = None,
    metrics: Mapping[str, Measure] | None = None,
    augment: ImageAugment | None = None,
    callbacks: Sequence[Callable[[Report], None]] = (),
    loggers: Sequence[Logger] = (),
) -> dict[str, float]:
    """Trains, or goes on with the run in `workdir`, to the end.

    Repeating the call resumes from the latest whole checkpoint; a finished run returns at once. The
    test split is evaluated once, at the end, with the final weights.

    SIGTERM, SIGHUP and Ctrl-C save at the current step and raise `Interrupted`, a SystemExit of
    status 143, 129 and 130; a second Ctrl-C ends the process at once.

    Args:
      config: the run; `workdir` keeps it.
      workdir: takes config.json, metrics.jsonl, checkpoints/ and TensorBoard event files.
      data: images of the caller, with `config.data.source` "own": see `own_splits`. Its number of
        images, classes and labels is compared on a resume, its pixels are not.
      class_names: of `data`.
      model: any NNX module that is called with (images, rngs=) or (images), with
        `config.model.name` "own": a function of `rngs=` that makes it, or one that is made, whose
        arrays are the initial weights. Running statistics are kept. The callback of the end gets
        it trained.
      loss: a pure function of the model's output and the labels (B, ...) that returns a number for
        each example, (B,), in place of the cross entropy. The best checkpoint is then that of the
        lowest validation loss.
      metrics: the same, by name: their means over the examples stand in the rows. With the cross
        entropy they are given its logits (of two heads their mean), and stand with top1 and top5.
      augment: a pure function (key, image (H, W, C) uint8) -> image of the same shape and type,
        applied in the step before what the config augments, keyed by (seed, epoch, index).
      callbacks: called in each process with a `Report` after each row is written; that of the end
        also where the run is finished already.
      loggers: take the figures of each row, in process 0: see `Logger`.

    A resume compares the functions' names and a hash of their sources with those in config.json:
    see `vit_jax.training.own.identity`.

    Returns:
      The last row of each split as `{split}_{loss, top1, top5}`, such as `test_top1`; where there
      is an average of the weights, validation and test also as `test_ema_top1` and so on.

    Raises:
      ValueError: a config that cannot be run, data, model and devices that do not fit each other, a
        work directory of another config or in use, a checkpoint that cannot be written, no whole
        checkpoint among those there, or a loss that is not finite (the step is named).
    """
    validate(config)
    workdir = run_path(workdir)
    splits = None if data is None else own_splits(data, class_names)
    own = Own(splits, model, loss, dict(metrics or {}), augment, tuple(callbacks), tuple(loggers))
    # Quiet longer than with companions: where one is lost, Orbax's threads find out late.
    with StopSignals() as signals, quiet_orbax(), companions(workdir), held(workdir), _closing(own):
        config, stated = with_stated_fields(config, workdir)
        records = _records(config, workdir, own)
        if (test := records.find("test")) and not callbacks:  # which want the model of the end
            if is_first() and config.log.progress != "none":
                num_classes = config.model.kwargs.get("num_classes")
                said = describe(test, num_classes)
                print(f"the run in {workdir} is finished: {said}", flush=True)
            _check_finished(workdir, records, test["step"])
            return _final_metrics(records)
        if stated and is_first() and config.log.progress != "none":
            fields = ", ".join(f"{field}={config.model.kwargs[field]}" for field in stated)
            print(f"fields of the model as its weights state them: {fields}", flush=True)
        if config.distillation.teacher:
            check_init_from(config.distillation.teacher, "distillation.teacher")
        if config.log.wandb and is_first():
            import_wandb()  # before anything takes long
        run = open_run(config, stated, own)
        if has_begun(workdir):
            check_pixels(config, workdir, run.data.train.image_shape)
            check_images(workdir, run.data.identity)
        checkpoint = config.checkpoint
        with Checkpoints(
            workdir / CHECKPOINTS, checkpoint.keep, checkpoint.keep_best
        ) as checkpoints:
            stopping = Stopping(signals, run.mesh)
            loop = _Loop(run, workdir, records, checkpoints, stopping)
            with loop.progress, contextlib.closing(loop):
                loop.train()
                loop.test()
    return _final_metrics(records)


@contextlib.contextmanager
def _closing(own: Own) -> Iterator[None]:
    """Closes the caller's loggers, however the run ends."""
    with contextlib.ExitStack() as stack:
        for logger in own.loggers if is_first() else ():
            stack.callback(logger.close)
        yield


def _records(config: TrainConfig, workdir: pathlib.Path, own: Own) -> Records:
    """The rows of the run so far; process 0 has them all, the others what decides what is due."""
    path, rows = workdir / METRICS_FILE, []
    if is_first():
        is_extended = check_config(config, workdir, own.identities)
        rows = read_rows(path)
        if is_extended:  # the test is that of the end, which comes later
            rows = [row for row in rows if row["split"] != "test"]
    known = tell_all([row for row in rows if row["split"] != "train"])
    return Records(path, rows, write=True) if is_first() else Records(path, known, write=False)


def _check_finished(workdir: pathlib.Path, records: Records, step: int) -> None:
    """Warns of a finished run that has lost rows, or its last checkpoint."""
    if not is_first():
        return
    try:
        remarks = records.faults(step, read_info(workdir / CHECKPOINTS / str(step), step).rows)
    except DamagedCheckpointError as error:
        remarks = [f"the checkpoint of step {step} is damaged: {error}"]
    for remark in remarks:
        Progress("none", 0, 0, 0).warn(remark)


def _final_metrics(records: Records) -> dict[str, float]:
    rows = {split: records.find(split) for split in ("train", "validation", "test")}
    return {
        f"{split}_{name}": row[name]
        for split, row in rows.items()
        if row is not None
        for name in measured(row)
    }


def _warn_of_shared_images(data: Splits, progress: Progress) -> None:
    if not is_first() or not (shared := shared_images(data.train, data.validation, data.test)):
        return
    here, there = shared[0]
    same = "" if here == there else f" is {here}"
    progress.warn(
        f"{len(shared):,} of the images that are held out for validation and test are trained on "
        f"too ({there}{same}{', ...' if shared[1:] else ''}): accuracy will look better than it is"
    )


class _Loop:
    """A run under way."""

    def __init__(
        self,
        run: Run,
        workdir: pathlib.Path,
        records: Records,
        checkpoints: Checkpoints,
        stopping: Stopping,
    ) -> None:
        self.run = run
        self.workdir = workdir
        self.records = records
        self.checkpoints = checkpoints
        self.stopping = stopping
        config = run.config
        mode = config.log.progress if is_first() else "none"
        quiet = Progress("none" if mode == "none" else "plain", 0, 0, 0)
        if config.data.source == "folder":
            quiet.say(run.data.describe())
            _warn_of_shared_images(run.data, quiet)
        for line in starting_lines(run, workdir):
            quiet.say(line)
        restored = checkpoints.restore(run.template, run.shardings, quiet.warn)
        if restored is None:
            self.state, self.step = self._first_state(quiet), 0
            self.best: tuple[float, int] | None = None
            counts = None
        else:
            self.state, info = restored
            self.step, counts = info.step, info.rows
            known = info.best_top1 is not None and info.best_step is not None
            self.best = (info.best_top1, info.best_step) if known else None  # pyright: ignore
        teacher = run.teacher
        if teacher is not None:
            quiet.say("taught by " + teacher.weights[1])
        if run.resident:
            quiet.say(f"on the devices: {', '.join(source.name for source in run.resident)}")
        with writing(workdir):
            for remark in records.cut_back(self.step, counts):
                quiet.warn(remark)
            if is_first():
                images = run.data.identity
                known = {IMAGES: images} if images else {}
                store_config(config, workdir, run.own.identities | known)
        self._opened = open_loggers(config, workdir, self.step) if is_first() else []
        self._loggers = (*self._opened, *(run.own.loggers if is_first() else ()))
        is_traced = config.log.profile and is_first()
        self.profile = Profile(workdir / FOLDER if is_traced else None, self.step)
        self.ended_early = False
        for row in records.rows:
            self._note_best(row)
        self._keep_best()
        if restored is not None:
            is_tested = run.data.test is None or records.find("test") is not None
            is_done = (self.step == run.total_steps or self.ended_early) and is_tested
            resuming = f"resuming {workdir} at step {self.step} of {run.total_steps}"
            quiet.say(f"the run in {workdir} is finished" if is_done else resuming)
        batch_size, num_classes = config.data.batch_size, run.model.num_classes
        self.progress = Progress(
            mode, run.total_steps, self.step, batch_size, num_classes, config.num_epochs
        )

    def _first_state(self, progress: Progress) -> TrainState:
        run, config = self.run, self.run.config
        state = run.steps.init()
        if not config.init_from:
            return state
        arrays = (state.params, state.frozen)
        if config.init_head == "fresh" and jax.process_count() > 1:
            # The model keeps its own head, of which a process may hold a part only.
            arrays = jax.jit(lambda kept: kept, out_shardings=replicated(run.mesh))(arrays)
        model = nnx.merge(run.train_graph, *arrays)
        said = load_initial_weights(
            model,
            config.init_from,
            run.model.spec,
            config.init_weights == "ema" or None,
            head=config.init_head,
            resize=config.init_resize,
        )
        progress.say(f"starting from {said}")
        params, frozen = split_arrays(model, run.trained)
        average = None if state.ema is None else first_average(params)
        state = dataclasses.replace(state, params=params, frozen=frozen, ema=average)
        return place(state, run.shardings)

    def close(self) -> None:
        """Closes the loggers of the config, and ends a trace."""
        self.profile.close()
        for logger in self._opened:
            logger.close()

    def train(self) -> None:
        """Makes all updates that remain, with their rows, validations and checkpoints."""
        config, total = self.run.config, self.run.total_steps
        if self._validation_due():  # the run was stopped in the midst of it
            self._validate()
        if self.step < total and not self.ended_early:
            self.progress.compiling()
        elif self.step < total:
            self._say_end()
        timer = _Timer(config.data.batch_size, self.step)
        under_way: collections.deque[jax.Array] = collections.deque()
        per_dispatch = config.training.steps_per_dispatch
        advance = self._advance if per_dispatch == 1 else self._advance_block
        most = max(1, _IN_FLIGHT // per_dispatch)
        with self.run.train_batches(self.step) as host_batches:
            while self.step < total and not self.ended_early:
                self._stop_if(self.stopping.check())
                with self._saving_if_data_fail():
                    loss = advance(host_batches)
                under_way.append(loss)
                if not timer.started:
                    jax.block_until_ready(loss)  # compilation is not training speed
                    timer.start(self.step)
                elif len(under_way) > most:
                    jax.block_until_ready(under_way.popleft())
                self.progress.advance(self.step)
                if self.profile.after(self.step, loss):
                    self.progress.say(f"wrote a trace to {self.workdir / FOLDER}")
                self._after_step(timer)
        self._stop_if(self.stopping.settle())

    def _advance(self, batches: Iterator[HostBatch]) -> jax.Array:
        """Sends one update on its way. Returns its loss, which tells when it is done."""
        batch = self.run.put(next(batches))
        self.state, loss = self.run.steps.train(self.state, batch)
        self.step += 1
        return loss

    def _advance_block(self, batches: Iterator[HostBatch]) -> jax.Array:
        """As `_advance`, of all updates of a dispatch: up to the next that something is due after.

        Where data fail, those before are made.
        """
        found: list[HostBatch] = []
        size = min(self.run.config.training.steps_per_dispatch, self._steps_to_due())
        try:
            for _ in range(size):
                found.append(next(batches))
        except (ValueError, RuntimeError):
            if found and jax.process_count() == 1:
                self._make_updates(found)
            raise
        return self._make_updates(found)

    def _make_updates(self, batches: Sequence[HostBatch]) -> jax.Array:
        block = self.run.block_on_device(batches)
        self.state, losses = self.run.steps.train_block(self.state, block, np.int32(len(batches)))
        self.step += len(batches)
        return losses

    def _steps_to_due(self) -> int:
        """Updates until a row, a checkpoint, a validation or the end is due."""
        config = self.run.config
        every = [config.log.every_steps, config.checkpoint.every_steps]
        if self.run.data.validation is not None:
            every.append(self.run.steps_per_epoch)
        return min(self.run.total_steps - self.step, *(n - self.step % n for n in every))

    def _after_step(self, timer: "_Timer") -> None:
        config = self.run.config
        last = self.step == self.run.total_steps
        if last or self.step % config.log.every_steps == 0:
            self._log_train_row(timer)
        checkpoint_due = last or self.step % config.checkpoint.every_steps == 0
        validation_due = self._validation_due()
        if validation_due:
            best_before = self.best
            self._validate()
            if self.ended_early and not last:
                self._say_end()
            checkpoint_due |= config.checkpoint.keep_best and self.best != best_before
            checkpoint_due |= self.ended_early
        if checkpoint_due:
            self._save()
        if validation_due:
            timer.start(self.step)  # training speed is without it

    def _log_train_row(self, timer: "_Timer") -> None:
        self._check_finite()
        row = self._row("train", self.state.sums.averages())
        row["learning_rate"] = learning_rate_of_update(self.run.schedule, self.step)
        row["images_per_second"] = timer.images_per_second(self.step)
        self._write(row)
        timer.start(self.step)
        self.state = dataclasses.replace(self.state, sums=zero_sums(self.state, self.run.mesh))

    def _row(self, split: str, averages: dict[str, float]) -> Row:
        epoch = self.step / self.run.steps_per_epoch
        return {"step": self.step, "epoch": epoch, "split": split, **averages}

    def _write(self, row: Row) -> None:
        for name in ("loss", "ema_loss"):
            if not math.isfinite(row.get(name, 0.0)):
                raise ValueError(
                    f"the {row['split']} {name} at step {row['step']} is {row[name]}, with "
                    "parameters that are finite: the model's dtype is too narrow for it"
                )
        with writing(self.records.path):
            if not self.records.append(row):
                changed = f"{self.records.path} was changed by somebody else"
                self.progress.warn(f"{changed}: all rows of the run are written anew")
        figures = {k: v for k, v in row.items() if k not in ("step", "epoch", "split")}
        named = {f"{row['split']}/{name}": value for name, value in figures.items()}
        for logger in self._loggers:
            logger.scalars(row["step"], named)
        self._note_best(row)
        self.progress.row(row)
        if row["split"] != "test":
            self._call_back("log" if row["split"] == "train" else "validation", row)

    def _call_back(self, kind: str, row: Row) -> None:
        """Tells the caller's callbacks of a row."""

        def model() -> nnx.Module:
            state = self.state if self.state.ema is None else averaged(self.state)
            arrays = jax.tree.map(
                jnp.copy, (state.params, state.frozen)
            )  # the step donates its own
            made = nnx.merge(self.run.eval_graph, *arrays)
            set_form(made, "")  # the plain one, which can be exported, and differentiated forwards
            return made.net if isinstance(made, OwnModel) else made

        for callback in self.run.own.callbacks:
            callback(Report(kind, self.step, dict(row), model))

    def _note_best(self, row: Row) -> None:
        if row["split"] != "validation":
            return
        sign, name = self.run.best
        score = sign * row.get(f"ema_{name}", row[name])
        if math.isnan(score):  # of the caller's metric: nothing would be better than it
            score = -math.inf
        if self.best is None or score > self.best[0]:
            self.best = (score, row["step"])
        if (patience := self.run.config.evaluation.patience) is not None:
            stale = self.records.count("validation", self.best[1])
            self.ended_early = stale >= patience

    def _keep_best(self) -> None:
        if self.best is not None:
            self.checkpoints.keep_best_of(self.best[1])

    def _validation_due(self) -> bool:
        epoch, rest = divmod(self.step, self.run.steps_per_epoch)
        config = self.run.config
        return (
            self.run.data.validation is not None
            and self.step > 0
            and rest == 0
            and (epoch % config.evaluation.every_epochs == 0 or epoch == config.num_epochs)
            and self.records.find("validation", self.step) is None
        )

    def _validate(self) -> None:
        assert self.run.data.validation is not None
        self._check_finite()
        self._evaluate("validation", self.run.data.validation)
        self._keep_best()

    def _say_end(self) -> None:
        assert self.best is not None
        count = self.records.count("validation", self.best[1])
        self.progress.say(
            f"ends early at step {self.step}: {count} validation{'s' * (count != 1)} without a "
            f"better {self.run.best[1]} than that of step {self.best[1]}"
        )

    def _evaluate(self, split: str, source: ImageSource) -> None:
        states = {"": self.state}
        if self.state.ema is not None:
            states["ema_"] = averaged(self.state)
        with self._saving_if_data_fail(), self.run.eval_batches(source) as batches:
            averages = evaluate(
                self.run.steps.eval,
                states,
                self.run.on_device(batches, source),
                lambda: zero_sums(self.state, self.run.mesh),
                lambda: self.stopping.check() is not None,
            )
        self._stop_if(self.stopping.settle())
        assert averages is not None
        self._write(self._row(split, averages))

    def test(self) -> None:
        """Evaluates the test split with the final weights, once the last checkpoint is complete."""
        self.checkpoints.wait()
        if self.run.data.test is not None and self.records.find("test") is None:
            self._evaluate("test", self.run.data.test)
        if self.records.rows:
            self._call_back("end", self.records.rows[-1])

    def _check_finite(self) -> None:
        # Parameters too: a checkpoint after a finite loss may hold what the next will be NaN of.
        bad = int(self.state.nonfinite_step)
        if not bad and not self.run.steps.are_finite(self.state.params):
            bad = self.step
        if bad:
            raise ValueError(
                f"the loss or a parameter is no longer finite at step {bad} (epoch "
                f"{bad / self.run.steps_per_epoch:.2f}): the checkpoints are of steps before; "
                "try a lower optimizer.learning_rate, a longer optimizer.warmup_epochs or "
                "optimizer.gradient_clip_norm, in another work directory"
            )

    def _save(self) -> None:
        self._check_finite()
        top1, step = self.best or (None, None)
        info = CheckpointInfo(
            step=self.step,
            spec=spec_to_dict(self.run.model.spec),
            best_step=step,
            best_top1=top1,
            rows=dict(self.records.counts()),
        )
        self.checkpoints.save(self.state, info)

    @contextlib.contextmanager
    def _saving_if_data_fail(self) -> Iterator[None]:
        """An image that cannot be read ends the run, and loses none of it."""
        try:
            yield
        except (ValueError, RuntimeError):
            if jax.process_count() > 1:  # a checkpoint is written by all, and the others go on
                raise
            self._stop_if(self.stopping.check())  # its workers may have met the signal first
            self._save()
            raise

    def _stop_if(self, signal_number: int | None) -> None:
        if signal_number is None:
            return
        self._save()
        self.checkpoints.wait()
        self.progress.say(
            f"stopped at step {self.step}, saved; the same command goes on from there"
        )
        raise Interrupted(signal_number)


class _Timer:
    """Images a second since it was last started.

    Args:
      batch_size: images of a step.
      step: the updates that were done before.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self._batch_size, self._first = batch_size, step
        self._began = self._time = time.perf_counter()
        self._step: int | None = None

    @property
    def started(self) -> bool:
        return self._step is not None

    def start(self, step: int) -> None:
        self._step, self._time = step, time.perf_counter()

    def images_per_second(self, step: int) -> float:
        assert self._step is not None
        if step == self._step:  # of the first dispatch: compilation is all there is to time
            return (step - self._first) * self._batch_size / (time.perf_counter() - self._began)
        return (step - self._step) * self._batch_size / (time.perf_counter() - self._time)
