"""Takes the steps of many runs in one process of 8 virtual devices: see `test_layouts.py`."""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

import vit_jax
from vit_jax.config import TrainConfig, from_dict, to_dict
from vit_jax.training.setup import build

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8
# Of a run, by name: "loss" (steps,); after the last step "param/NAME", "ema/NAME", "sums" (loss,
# top1, top5, count), "dtype/FIELD" of the state, and of how it lies "devices" and "share", see
# `_spread`.
Result = dict[str, np.ndarray]


def take_steps(config: TrainConfig, steps: int) -> Result:
    """Makes `steps` updates, as the loop does but without logs and checkpoints."""
    setup = build(config)
    state = setup.program.init()
    losses = []
    with setup.train_batches(0) as batches:
        for _, batch in zip(range(steps), setup.on_device(batches), strict=False):
            state, loss = setup.program.train_step(state, batch)
            losses.append(float(loss))
    assert len(losses) == steps, f"the epochs hold {len(losses)} updates only"
    model = nnx.merge(setup.program.settings.graphs.train, state.params, state.frozen)
    found = {f"param/{name}": value for name, value in vit_jax.state_dict(model).items()}
    if state.ema is not None:
        model = nnx.merge(setup.program.settings.graphs.train, state.ema, state.frozen)
        found |= {f"ema/{name}": value for name, value in vit_jax.state_dict(model).items()}
    for field in ("params", "opt_state", "sums"):
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(getattr(state, field))}
        found[f"dtype/{field}"] = np.array(sorted(types))
    sums = state.sums
    found["sums"] = np.array([sums.loss, sums.top1, sums.top5, sums.count], np.float64)
    return found | _spread((state.params, state.opt_state)) | {"loss": np.array(losses)}


def _spread(tree: Any) -> Result:
    """How many devices hold a part of the arrays, and which share of all bytes the first holds."""
    leaves = jax.tree.leaves(tree)
    first = [leaf.addressable_shards[0].data.nbytes for leaf in leaves]
    return {
        "devices": np.array(len(set().union(*(leaf.sharding.device_set for leaf in leaves)))),
        "share": np.array(sum(first) / sum(leaf.nbytes for leaf in leaves)),
    }


def run_all(
    configs: dict[str, TrainConfig], steps: int, cache: pathlib.Path, out: pathlib.Path
) -> dict[str, Result]:
    """`take_steps` of each config in one child process; float64 models with x64, others without.

    Args:
      cache: a compilation cache: the same program is compiled once.
      out: the file for the results, .npz.
    """
    order = {
        "configs": {name: to_dict(config) for name, config in configs.items()},
        "steps": steps,
        "cache": str(cache),
        "out": str(out),
    }
    flags = (
        f"--xla_force_host_platform_device_count={DEVICES}"
        # Nearly all the time goes into compiling, and half of that into these.
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    child = subprocess.run(
        [sys.executable, "-m", "tests.training.layouts"],
        input=json.dumps(order),
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    results: dict[str, Result] = {name: {} for name in configs}
    with np.load(out) as arrays:
        for key in arrays.files:
            name, _, what = key.partition("|")
            results[name][what] = arrays[key]
    return results


def main(order: dict[str, Any]) -> None:
    jax.config.update("jax_compilation_cache_dir", order["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_default_matmul_precision", "highest")
    assert jax.device_count() == DEVICES
    arrays = {}
    for name, values in order["configs"].items():
        config = from_dict(values)
        start = time.perf_counter()
        with jax.enable_x64(config.model.kwargs.get("param_dtype") == "float64"):
            result = take_steps(config, order["steps"])
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        arrays |= {f"{name}|{what}": value for what, value in result.items()}
        jax.clear_caches()
    np.savez(order["out"], **arrays)


if __name__ == "__main__":
    main(json.load(sys.stdin))
