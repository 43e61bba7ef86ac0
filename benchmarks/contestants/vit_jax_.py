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
from vit_jax.training.mesh import put_batch
from vit_jax.training.program import config_mesh, make_program, model_maker


def make(work: Workload, form: str) -> Callable[[], Any]:
    keep_freed_memory()  # as `vit-jax train` does
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
    program = make_program(config, mesh, abstract, Statistics((0.5,) * 3, (0.5,) * 3), 1000)
    state = program.init()
    rng = np.random.default_rng(0)
    shape = (work.batch, work.image_size, work.image_size, 3)
    if form == "forward":
        images = jax.device_put(rng.standard_normal(shape).astype(np.float32))
        graph = program.settings.graphs.eval
        forward = jax.jit(lambda params, frozen, images: nnx.merge(graph, params, frozen)(images))
        return lambda: forward(state.params, state.frozen, images).block_until_ready()
    batch = put_batch(
        mesh,
        {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, abstract.num_classes, work.batch, np.int32),
            "index": np.arange(work.batch, dtype=np.int32),
            "mask": np.ones(work.batch, np.bool_),
        },
    )

    def step() -> None:
        nonlocal state
        state, _ = program.train_step(state, batch)
        jax.block_until_ready(state)

    return step
