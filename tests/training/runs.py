"""Tiny runs for the tests: a small ViT on the digits, in this process or as a child."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import orbax.checkpoint as ocp

from vit_jax.config import TrainConfig, from_dict, to_dict
from vit_jax.training.run import Run
from vit_jax.training.step import Steps, make_steps

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


# What tells nothing of the computation.
_INIT = {"init_from", "init_head", "init_resize", "init_weights"}
_BESIDE = _INIT | {"evaluation", "checkpoint", "log"}
_steps: dict[str, Steps] = {}


def _shared_steps(run: Run) -> Steps:
    values = {name: value for name, value in to_dict(run.config).items() if name not in _BESIDE}
    values["data"] |= {"num_workers": 0, "worker_kind": "", "on_device": None}
    values["training"] |= {"steps_per_dispatch": 1}
    of_process = [run.mesh.shape, jax.config.jax_enable_x64, run.own.identities]
    key = json.dumps([values, of_process], sort_keys=True, default=str)
    if key not in _steps:
        _steps[key] = make_steps(run)
    return _steps[key]


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Runs of this process that compute the same share their steps, which are traced once."""
    with mock.patch("vit_jax.training.run.make_steps", _shared_steps):
        yield


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


def trained(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """A checkpoint without the sums since the last train row, of which the end writes one."""
    told = ("training/sums", "training/fingerprint")
    return {k: v for k, v in arrays(workdir, step).items() if not k.startswith(told)}


class Process(subprocess.Popen[str]):
    """A training process, `child.py`, in a session of its own.

    Args:
      order: what it is to do.
      env: variables that differ from those of this process.
      output: what it writes goes to this path with ".out" and ".err".
    """

    def __init__(self, order: dict[str, Any], env: dict[str, str], output: pathlib.Path) -> None:
        self.out, self.err = (output.with_name(output.name + end) for end in (".out", ".err"))
        with self.out.open("w") as out, self.err.open("w") as err:
            super().__init__(
                [sys.executable, "-m", "tests.training.child", json.dumps(order)],
                cwd=ROOT,
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def end(self, timeout: float = 240) -> tuple[str, str]:
        """Waits for it. Returns what it wrote to standard output and to standard error."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()


def child(config: TrainConfig, workdir: pathlib.Path, **options: Any) -> Process:
    """Starts a training process. What it writes goes beside `workdir`.

    Args:
      **options: for the child: `file_size_limit` in bytes, `devices`.
    """
    order = {"config": to_dict(config), "workdir": str(workdir), **options}
    return Process(order, environment(options.get("devices", 1)), workdir)


def environment(devices: int, x64: bool = False) -> dict[str, str]:
    """Variables of a child process with so many devices, which else computes as the tests do."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    if devices > 1:  # else the programs are those of this process
        flags = os.environ["XLA_FLAGS"]
        own["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    if x64:
        own["JAX_ENABLE_X64"] = "1"
    return own
