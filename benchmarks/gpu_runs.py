"""Whole training runs on a GPU: parts of `benchmarks.on_gpu`."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from benchmarks.compile_time import to_first_step
from benchmarks.gpu_numbers import Figures
from benchmarks.synthetic_run import PARAMETERS
from vit_jax.training.records import read_rows

_ROOT = pathlib.Path(__file__).parents[1]


def order(workdir: pathlib.Path, small: bool, steps: int, **fields: Any) -> dict[str, Any]:
    """Of `benchmarks.synthetic_run`: a ViT over 65 tokens, or 5, for so many steps.

    Args:
      workdir: of the run.
      small: a tiny model.
      steps: updates, all in one epoch.
      fields: groups of the config, over these.
    """
    side, batch, depth = (8, 8, 1) if small else (64, 64, 3)
    sizes = {"img_size": side, "patch_size": 4 if small else 8, "embed_dim": 64 * depth}
    values: dict[str, Any] = {
        "num_epochs": 1,
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {**sizes, "depth": depth, "num_heads": depth, "num_classes": 10},
        },
        "data": {
            "source": "own",
            "batch_size": batch,
            "num_workers": 0,
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.05},
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 5, "tensorboard": False, "progress": "plain"},
    }
    return {
        "config": values | fields,
        "workdir": str(workdir),
        "images": {"number": batch * steps, "side": side, "classes": 10},
    }


def _command(told: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.synthetic_run", json.dumps(told)]


def _run(told: dict[str, Any], cache: str = "") -> tuple[int, str]:
    """Runs it, maybe with a cache of programs: status, and what it says of its parameters."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    ended = subprocess.run(
        _command(told), cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    found = [line for line in ended.stdout.splitlines() if line.startswith(PARAMETERS)]
    return ended.returncode, "".join(found)


WAYS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM, "error": 1}


def resume(small: bool) -> Figures:
    """Whether interrupted runs end with the bits of one that was not; fused losses beside plain."""
    count, end_at = (20, 5) if small else (60, 30)
    fields = {"training": {"deterministic": True, "steps_per_dispatch": 4}}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        # Each process on a GPU chooses its kernels anew: a cache would hide that.
        cache = str(folder / "cache") if small else ""
        status, want = _run(order(folder / "whole", small, count, **fields), cache)
        yield {"uninterrupted": {"ended": status, "parameters": want}}
        for ways in [tuple(WAYS)] if small else [(way,) for way in WAYS]:
            told = order(folder / ways[0], small, count, **fields)
            ended = []
            for number, way in enumerate(ways, 1):
                ended.append(_run(told | {"end_at": number * end_at, "how": way}, cache)[0])
            status, found = _run(told, cache)
            is_same = found == want != "" and ended == [WAYS[way] for way in ways]
            yield {", ".join(ways): {"ended": ended, "resumed": status, "same bits": is_same}}
        if not small:
            yield from _losses(folder, 200)


def _losses(folder: pathlib.Path, count: int) -> Figures:
    """How far the losses in bfloat16 of cuDNN's attention are from the plain one's."""
    losses = {}
    for form in ("auto", "plain"):
        told = order(folder / form, small=False, steps=count, attention=form)
        told["config"]["model"]["kwargs"]["dtype"] = "bfloat16"
        _run(told)
        rows = read_rows(folder / form / "metrics.jsonl")
        losses[form] = np.array([row["loss"] for row in rows if row["split"] == "train"])
    apart = np.abs(losses["auto"] / losses["plain"] - 1)
    yield {
        f"losses of {count} steps, bfloat16, fused beside plain": {
            "first": float(losses["plain"][0]),
            "last": float(losses["plain"][-1]),
            "largest difference": float(apart.max()),
            "within 0.5%": bool(apart.max() <= 0.005),
        }
    }


def start(small: bool) -> Figures:
    """Seconds from the command to the end of the first step."""
    with tempfile.TemporaryDirectory() as directory:
        for cache in ("without a cache", "with one"):
            told = order(pathlib.Path(directory) / cache, small, steps=50)
            told["config"]["log"]["every_steps"] = 1
            seconds = to_first_step(_command(told), pathlib.Path(directory) / "cache")
            yield {cache: {"seconds": seconds}}
