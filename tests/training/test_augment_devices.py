"""Augmentation on many devices: the same pixels, and no image leaves its device."""

from tests import compilation
from tests.commands import run_alone
from tests.training.runs import environment

_CODE = """
import jax, numpy as np
from tests import compilation
from tests.training.runs import tiny
from vit_jax.data.augment import example_keys
from vit_jax.training.mesh import put_batch
from vit_jax.plan.compile import planned_run

compilation.write_whole_entries()
config = tiny(
    model__kwargs__img_size=16,
    model__kwargs__in_chans=3,
    data__horizontal_flip=True,
    data__rand_augment="rand-m9-mstd0.5-inc1",
    data__random_erasing=0.5,
    data__mean=(0.5,) * 3,
    data__std=(0.5,) * 3,
)
batch = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8),
    "index": np.arange(8, dtype=np.int32),
    "crop": np.array([(i, 1, 8, 11, i % 2) for i in range(8)], np.int32),
}
pixels = {}
for devices in (1, 4):
    run = planned_run(config, jax.devices()[:devices])
    assert run.platform == "cpu"
    prepare = jax.jit(
        lambda batch: run.prepare_train(
            example_keys(jax.random.key(0), 0, batch["index"]), batch["image"], batch["crop"]
        )
    )
    placed = put_batch(run.mesh, batch)
    if devices == 4:
        prepare = prepare.lower(placed).compile()
        text = prepare.as_text()
        moved = [word for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute")
                 if word in text]
        print("moved", moved)
    result = prepare(placed)
    print("parts", len(result.sharding.device_set), result.addressable_shards[0].data.shape[0])
    pixels[devices] = np.asarray(result)
print("equal", np.array_equal(pixels[1], pixels[4]))
"""


def test_each_device_augments_its_own_rows() -> None:
    variables = compilation.variables() | environment(4)
    done = run_alone("-c", _CODE, timeout=300, variables=variables)
    assert done.stdout.splitlines() == ["parts 1 8", "moved []", "parts 4 2", "equal True"]
