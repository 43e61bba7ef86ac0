"""Tiny runs for the tests: a small ViT on the digits, in this process or as a child."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from vit_jax.config import TrainConfig, from_dict

ROOT = pathlib.Path(__file__).parents[2]

_BASE: dict[str, Any] = {
    "seed": 3,
    "num_epochs": 2,
    "model": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "num_classes": 10,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "drop_rate": 0.1,
        },
    },
    "data": {
        "source": "digits",
        "batch_size": 32,
        "eval_batch_size": 64,
        "num_train_examples": 200,  # 6 updates an epoch
        "num_workers": 0,
    },
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 1e-2},
    "checkpoint": {"every_steps": 4},
    "log": {"every_steps": 5, "tensorboard": False, "progress": "none"},
}


def tiny(**overrides: Any) -> TrainConfig:
    """The tiny config; overrides are named with __ for dots: `data__batch_size=16`."""
    values = json.loads(json.dumps(_BASE))
    for path, value in overrides.items():
        *groups, name = path.split("__")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
    return from_dict(values)


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what time decides."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for row in found:
        row.pop("images_per_second", None)
    return found


def steps(workdir: pathlib.Path) -> list[int]:
    """The steps of the checkpoints, without what is being written."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if "tmp" not in name)


def arrays(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every bit of a checkpoint's arrays, by item and name; on whichever devices it was written."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = {}
    for item in ("model", "training", "ema"):
        path = workdir.absolute() / "checkpoints" / str(step) / item
        if item == "ema" and not path.exists():
            continue
        with ocp.StandardCheckpointer() as reader:
            wanted = {
                name: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=here)
                for name, stored in dict(reader.metadata(path).item_metadata.tree).items()
            }
            read = reader.restore(path, wanted)
        found |= {f"{item}/{name}": bytes(array.tobytes()) for name, array in read.items()}
    return found


def child(
    config: TrainConfig, workdir: pathlib.Path, cache: pathlib.Path, **options: Any
) -> subprocess.Popen[str]:
    """Starts a training process in a session of its own.

    Args:
      cache: a compilation cache.
      **options: for the child: `file_size_limit` in bytes, `devices`.
    """
    from vit_jax.config import to_dict

    flags = f"--xla_force_host_platform_device_count={options.get('devices', 1)}"
    order = {"config": to_dict(config), "workdir": str(workdir), "cache": str(cache), **options}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.child", json.dumps(order)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
