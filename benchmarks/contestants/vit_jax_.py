"""vit_jax: the train step of a run, with the normalisation of uint8 images and the metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.contestants import CannotCompute, Workload
from vit_jax.allocator import keep_freed_memory
from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from vit_jax.layers.forms import PLAIN, attention_form
from vit_jax.models.registry import model_fields
from vit_jax.plan.compile import planned_run
from vit_jax.training.mesh import put_batch
from vit_jax.training.run import Run


def set_up() -> None:
    """What `vit-jax train` does to its process; before the first array is made."""
    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_step(
    work: Workload, data: Mapping[str, Any], steps_per_epoch: int, attention: str = "auto"
) -> Run:
    """A run on one device, whose data have the given fields beside the batch."""
    config = TrainConfig(
        num_epochs=1,
        attention=attention,
        model=ModelConfig(
            name=work.model,
            kwargs={"img_size": work.image_size, "dtype": work.dtype, **work.fields},
        ),
        data=DataConfig(
            source="tfds",
            name="pictures",
            batch_size=work.batch,
            eval_batch_size=work.batch,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            **data,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.05, decay_mask="matrices"),
    )
    return planned_run(config, jax.devices()[:1], steps_per_epoch)


class TrainedStep:
    """The state of a run and a batch; each call is one update.

    Args:
      work: model, batch and dtype.
      data: fields of the config's data: its augmentation.
      steps_per_epoch: 1: each update draws its augmentation anew.
      attention: as in the config.
    """

    def __init__(
        self,
        work: Workload,
        data: Mapping[str, Any] | None = None,
        steps_per_epoch: int = 1000,
        attention: str = "auto",
    ):
        self.run = make_step(work, data or {}, steps_per_epoch, attention)
        self._state = self.run.steps.init()
        self._step: Any = self.run.steps.train
        rng = np.random.default_rng(0)
        shape = (work.batch, work.image_size, work.image_size, 3)
        classes = (model_fields(work.model) | dict(work.fields))["num_classes"]
        self.batch = put_batch(
            self.run.mesh,
            {
                "image": rng.integers(0, 256, shape, np.uint8),
                "label": rng.integers(0, classes, work.batch, np.int32),
                "index": np.arange(work.batch, dtype=np.int32),
                "mask": np.ones(work.batch, np.bool_),
            },
        )

    def __call__(self) -> None:
        self._state, _ = self._step(self._state, self.batch)
        jax.block_until_ready(self._state)

    def compile(self) -> jax.stages.Compiled:
        """Traces and compiles the step as if for the first time; it is what runs from then on."""
        jax.clear_caches()
        jitted: Any = self.run.steps.train
        self._step = jitted.lower(self._state, self.batch).compile()
        return self._step


def make(work: Workload, form: str, *, attention: str = "auto") -> Callable[[], Any]:
    set_up()
    if attention == "plain" and attention_form(jax.devices()[0]) == PLAIN:
        raise CannotCompute("attention is plain on this device anyway")
    if form == "step":
        return TrainedStep(work, attention=attention)
    if form == "compile":
        jax.config.update("jax_enable_compilation_cache", False)
        return TrainedStep(work, attention=attention).compile
    run = make_step(work, {}, 1000, attention)
    state = run.steps.init()
    shape = (work.batch, work.image_size, work.image_size, 3)
    images = jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    graph = run.eval_graph
    forward = jax.jit(lambda params, frozen, images: nnx.merge(graph, params, frozen)(images))
    return lambda: forward(state.params, state.frozen, images).block_until_ready()
