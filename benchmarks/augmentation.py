"""Cost of the augmentation of T2T-ViT's recipe on the device, beside a train step.

    python -m benchmarks.augmentation [--model vit_small_patch16_224] [--batch 8] [--dtype float32]

Flip, RandAugment (rand-m9-mstd0.5-inc1), normalisation and random erasing (0.25, pixel) of random
images at the model's size; the crop is made on the host. Three programs in turn: the train step
that normalises only, the augmentation alone, and the train step with the augmentation in it. As
the operations are drawn, each call of the augmentation is of other keys, and a round takes the mean
of eight.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.measure import medians
from vit_jax.allocator import keep_freed_memory
from vit_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from vit_jax.data.augment import example_keys
from vit_jax.data.statistics import STATISTICS
from vit_jax.training.mesh import put_batch
from vit_jax.training.program import Program, config_mesh, make_program, model_maker
from vit_jax.training.step import Batch

_DRAWS = 8
_AUGMENTATION: dict[str, Any] = {
    "horizontal_flip": True,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "random_erasing_mode": "pixel",
}


def make(model: str, batch_size: int, dtype: str, augmented: bool) -> tuple[Program, Batch]:
    """The program of a run on one device, and a batch for it."""
    data = DataConfig(
        source="tfds", name="imagenet", batch_size=batch_size, eval_batch_size=batch_size
    )
    if augmented:
        data = dataclasses.replace(data, **_AUGMENTATION)
    config = TrainConfig(
        num_epochs=1,
        model=ModelConfig(name=model, kwargs={"dtype": dtype}),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.05, decay_mask="matrices"),
    )
    mesh = config_mesh(config, jax.devices()[:1])
    abstract = nnx.eval_shape(model_maker(config))
    # An epoch a step: every step draws anew.
    program = make_program(config, mesh, abstract, STATISTICS["imagenet"], 1)
    rng = np.random.default_rng(0)
    shape = (batch_size, *abstract.img_size, 3)
    batch = {
        "image": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, abstract.num_classes, batch_size, np.int32),
        "index": np.arange(batch_size, dtype=np.int32),
        "mask": np.ones(batch_size, np.bool_),
    }
    return program, put_batch(mesh, batch)


def train_step(program: Program, batch: Batch) -> Callable[[], Any]:
    state = program.init()

    def step() -> Any:
        nonlocal state
        state, _ = program.train_step(state, batch)
        return state

    return step


def augmentation(program: Program, batch: Batch) -> Callable[[], Any]:
    prepare = jax.jit(program.settings.prepare_train)
    keys = [example_keys(jax.random.key(0), draw, batch["index"]) for draw in range(_DRAWS)]
    return lambda: [jax.block_until_ready(prepare(key, batch["image"])) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of augmentation beside a train step")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as `vit-jax train` does
    plain, batch = make(arguments.model, arguments.batch, arguments.dtype, False)
    augmented, _ = make(arguments.model, arguments.batch, arguments.dtype, True)
    seconds = medians(
        {
            "step": train_step(plain, batch),
            "augmentation": augmentation(augmented, batch),
            "both": train_step(augmented, batch),
        },
        arguments.rounds,
    )
    step, alone, both = seconds["step"], seconds["augmentation"] / _DRAWS, seconds["both"]
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.dtype}, {jax.devices()[0]}")
    print(f"train step                        {1e3 * step:9.2f} ms")
    print(f"augmentation alone                {1e3 * alone:9.2f} ms, {alone / step:6.1%} of it")
    print(f"train step with the augmentation  {1e3 * both:9.2f} ms, {both / step - 1:+6.1%}")


if __name__ == "__main__":
    main()
