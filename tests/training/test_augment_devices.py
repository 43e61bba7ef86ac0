"""Augmentation on many devices: the same pixels, and no image leaves its device."""

import os
import subprocess
import sys

from tests.training.runs import ROOT

_CODE = """
import jax, numpy as np
from tests.training.runs import tiny
from vit_jax.data.augment import example_keys
from vit_jax.data.statistics import Statistics
from vit_jax.plan.compile import abstract_model
from vit_jax.training.mesh import put_batch
from vit_jax.training.program import config_mesh, make_program

config = tiny(
    model__kwargs__img_size=16,
    model__kwargs__in_chans=3,
    data__horizontal_flip=True,
    data__rand_augment="rand-m9-mstd0.5-inc1",
    data__random_erasing=0.5,
)
batch = {
    "image": np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8),
    "index": np.arange(16, dtype=np.int32),
}
pixels = {}
for devices in (1, 8):
    mesh = config_mesh(config, jax.devices()[:devices])
    statistics = Statistics((0.5,) * 3, (0.5,) * 3)
    program = make_program(config, mesh, abstract_model(config), statistics, 9)
    assert program.settings.platform == "cpu"
    prepare = jax.jit(
        lambda batch: program.settings.prepare_train(
            example_keys(jax.random.key(0), 0, batch["index"]), batch["image"]
        )
    )
    placed = put_batch(mesh, batch)
    if devices == 8:
        text = prepare.lower(placed).compile().as_text()
        moved = [word for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute")
                 if word in text]
        print("moved", moved)
    result = prepare(placed)
    print("parts", len(result.sharding.device_set), result.addressable_shards[0].data.shape[0])
    pixels[devices] = np.asarray(result)
print("equal", np.array_equal(pixels[1], pixels[8]))
"""


def test_each_device_augments_its_own_rows(cache_dir) -> None:
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        " --xla_llvm_disable_expensive_passes=true"
    )
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["parts 1 16", "moved []", "parts 8 2", "equal True"]
