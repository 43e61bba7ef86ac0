"""Takes the steps of many runs in one process of 8 virtual devices: see `test_layouts.py`."""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

import vit_jax
from tests import compilation
from tests.commands import run_alone
from tests.training.runs import environment
from vit_jax.config import TrainConfig, from_dict, to_dict
from vit_jax.training.run import open_run

DEVICES = 8
# Of a run, by name: "loss" (steps,); "redrawn", on one device, the first one with the dropout
# of the step after; after the last step "param/NAME", "ema/NAME", "sums" (loss,
# top1, top5, count), "dtype/FIELD" of the state, and of how it lies "devices" and "share", see
# `_spread`.
Result = dict[str, np.ndarray]


def take_steps(config: TrainConfig, steps: int) -> Result:
    """Makes `steps` updates, as the loop does but without logs and checkpoints."""
    run = open_run(config)
    state = run.steps.init()
    losses, redrawn = [], []
    with run.train_batches(0) as batches:
        for _, batch in zip(range(steps), run.on_device(batches), strict=False):
            if not losses and run.mesh.size == 1:
                # Dropout alone is keyed by the step; augmentation is by the epoch.
                later = dataclasses.replace(run.steps.init(), step=state.step + 1)
                redrawn.append(float(run.steps.train(later, batch)[1]))
            state, loss = run.steps.train(state, batch)
            losses.append(float(loss))
    assert len(losses) == steps, f"the epochs hold {len(losses)} updates only"
    model = nnx.merge(run.train_graph, state.params, state.frozen)
    found = {f"param/{name}": value for name, value in vit_jax.state_dict(model).items()}
    if state.ema is not None:
        model = nnx.merge(run.train_graph, state.ema, state.frozen)
        found |= {f"ema/{name}": value for name, value in vit_jax.state_dict(model).items()}
    for field in ("params", "opt_state", "sums"):
        types = {str(leaf.dtype) for leaf in jax.tree.leaves(getattr(state, field))}
        found[f"dtype/{field}"] = np.array(sorted(types))
    sums = state.sums
    found["sums"] = np.array([sums.loss, sums.top1, sums.top5, sums.count], np.float64)
    return (
        found
        | _spread((state.params, state.opt_state))
        | {
            "loss": np.array(losses),
            "redrawn": np.array(redrawn),
        }
    )


def _spread(tree: Any) -> Result:
    """How many devices hold a part of the arrays, and which share of all bytes the first holds."""
    leaves = jax.tree.leaves(tree)
    first = [leaf.addressable_shards[0].data.nbytes for leaf in leaves]
    return {
        "devices": np.array(len(set().union(*(leaf.sharding.device_set for leaf in leaves)))),
        "share": np.array(sum(first) / sum(leaf.nbytes for leaf in leaves)),
    }


def run_all(configs: dict[str, TrainConfig], steps: int, out: pathlib.Path) -> dict[str, Result]:
    """`take_steps` of each config in one child process; float64 models with x64, others without.

    Args:
      out: the file for the results, .npz.
    """
    order = {
        "configs": {name: to_dict(config) for name, config in configs.items()},
        "steps": steps,
        "out": str(out),
    }
    run_alone(
        *("-m", "tests.training.layouts"),
        stdin=json.dumps(order),
        timeout=None,
        variables=compilation.variables() | environment(DEVICES),
    )
    results: dict[str, Result] = {name: {} for name in configs}
    with np.load(out) as arrays:
        for key in arrays.files:
            name, _, what = key.partition("|")
            results[name][what] = arrays[key]
    return results


def main(order: dict[str, Any]) -> None:
    compilation.write_whole_entries()
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
