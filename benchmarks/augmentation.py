"""Cost of the augmentation of T2T-ViT's recipe on the device, beside a train step.

    python -m benchmarks.augmentation [--model vit_small_patch16_224] [--batch 8] [--dtype float32]

Flip, RandAugment (rand-m9-mstd0.5-inc1), normalisation and random erasing (0.25, pixel) of random
images at the model's size; the crop is made on the host. Three programs in turn: the train step
that normalises only, the augmentation alone, and the train step with the augmentation in it. As
the operations are drawn, each call of the augmentation is of other keys, and a round takes the mean
of eight.
"""

import argparse
from typing import Any

import jax

from benchmarks.contestants import Workload
from benchmarks.contestants.vit_jax_ import TrainedStep, set_up
from benchmarks.measure import medians
from vit_jax.data.augment import example_keys
from vit_jax.models.registry import model_fields

_DRAWS = 8
_AUGMENTATION: dict[str, Any] = {
    "horizontal_flip": True,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "random_erasing_mode": "pixel",
}


def measure(work: Workload, rounds: int) -> dict[str, float]:
    """Median seconds of the plain step, of `_DRAWS` augmentations, and of the step with one."""
    plain, augmented = TrainedStep(work), TrainedStep(work, _AUGMENTATION, steps_per_epoch=1)
    prepare = jax.jit(augmented.run.prepare_train)
    batch = augmented.batch
    keys = [example_keys(jax.random.key(0), draw, batch["index"]) for draw in range(_DRAWS)]
    return medians(
        {
            "step": plain,
            "augmentation": lambda: [
                jax.block_until_ready(prepare(key, batch["image"])) for key in keys
            ],
            "both": augmented,
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of augmentation beside a train step")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    set_up()
    size = model_fields(arguments.model)["img_size"]
    seconds = measure(
        Workload(arguments.model, size, arguments.batch, dtype=arguments.dtype), arguments.rounds
    )
    step, alone, both = seconds["step"], seconds["augmentation"] / _DRAWS, seconds["both"]
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.dtype}, {jax.devices()[0]}")
    print(f"train step                        {1e3 * step:9.2f} ms")
    print(f"augmentation alone                {1e3 * alone:9.2f} ms, {alone / step:6.1%} of it")
    print(f"train step with the augmentation  {1e3 * both:9.2f} ms, {both / step - 1:+6.1%}")


if __name__ == "__main__":
    main()
