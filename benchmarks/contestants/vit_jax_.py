"""vit_jax: the train step of a run, with the normalisation of uint8 images and the metrics."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.contestants import Workload
from vit_jax.allocator import keep_freed_memory
from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from vit_jax.data.statistics import Statistics
from vit_jax.models.registry import model_fields
from vit_jax.training.mesh import put_batch
from vit_jax.training.program import Program, config_mesh, make_program, model_maker


def _program(work: Workload) -> Program:
    config = TrainConfig(
        num_epochs=1,
        model=ModelConfig(
            name=work.model,
            kwargs={"img_size": work.image_size, "dtype": work.dtype, **work.fields},
        ),
        data=DataConfig(source="digits", batch_size=work.batch, eval_batch_size=work.batch),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.05, decay_mask="matrices"),
    )
    mesh = config_mesh(config, jax.devices()[:1])
    abstract = nnx.eval_shape(model_maker(config))
    return make_program(config, mesh, abstract, Statistics((0.5,) * 3, (0.5,) * 3), 1000)


class TrainedStep:
    """The state of a run and a batch; each call is one update."""

    def __init__(self, work: Workload):
        self._program = _program(work)
        self._state = self._program.init()
        rng = np.random.default_rng(0)
        shape = (work.batch, work.image_size, work.image_size, 3)
        classes = (model_fields(work.model) | dict(work.fields))["num_classes"]
        self._batch = put_batch(
            self._program.mesh,
            {
                "image": rng.integers(0, 256, shape, np.uint8),
                "label": rng.integers(0, classes, work.batch, np.int32),
                "index": np.arange(work.batch, dtype=np.int32),
                "mask": np.ones(work.batch, np.bool_),
            },
        )

    def __call__(self) -> None:
        self._state, _ = self._program.train_step(self._state, self._batch)
        jax.block_until_ready(self._state)

    def compile(self) -> jax.stages.Compiled:
        """Traces and compiles the step as if for the first time."""
        jax.clear_caches()
        step: Any = self._program.train_step  # jitted
        return step.lower(self._state, self._batch).compile()

    def compiled_text(self) -> str:
        """The compiled program."""
        return self.compile().as_text() or ""


def make(work: Workload, form: str) -> Callable[[], Any]:
    # As `vit-jax train` does.
    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if form == "step":
        return TrainedStep(work)
    if form == "compile":
        jax.config.update("jax_enable_compilation_cache", False)
        return TrainedStep(work).compile
    program = _program(work)
    state = program.init()
    shape = (work.batch, work.image_size, work.image_size, 3)
    images = jax.device_put(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    graph = program.settings.graphs.eval
    forward = jax.jit(lambda params, frozen, images: nnx.merge(graph, params, frozen)(images))
    return lambda: forward(state.params, state.frozen, images).block_until_ready()
