"""What the host does for an update: at the border of `jit`, and with several updates a dispatch.

    python -m benchmarks.dispatch
    python -m benchmarks.dispatch --calls

Times are the median of rounds in which the contestants take turns. `--calls` prints instead what a
dispatch of ViT-S's train step takes its thread, at 4 patches an image and batch 8.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.allocator import keep_freed_memory
from vit_jax.cli.jax_setup import set_up_jax
from vit_jax.config import TrainConfig, from_dict
from vit_jax.models.registry import create_model
from vit_jax.training.run import Run, open_run

ROUNDS, STEPS = 15, 160
# (updates a dispatch, images on the device)
CONTESTANTS = [(1, False), (1, True), (16, False), (16, True)]


def on_digits(
    name: str, updates: int, batch_size: int, *, on_device: bool = False, **fields: int
) -> TrainConfig:
    """A run of a model at 4 patches an image, `updates` of them a dispatch."""
    shape = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    return from_dict(
        {
            "num_epochs": 1000,
            "model": {"name": name, "kwargs": shape | fields},
            "data": {
                "source": "digits",
                "batch_size": batch_size,
                "num_workers": 0,
                "on_device": on_device,
            },
            "optimizer": {"learning_rate": 1e-3},
            "training": {"steps_per_dispatch": updates},
        }
    )


def trivial(updates: int, on_device: bool) -> TrainConfig:
    """A model of depth 1 and width 8 on the digits, batch 32."""
    small = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    return on_digits("vit_tiny_patch16_224", updates, 32, on_device=on_device, **small)


def updater(run: Run) -> Callable[[int], None]:
    """A function that makes so many more updates of a run."""
    state, batches = run.steps.init(), run.train_batches(0)
    size = run.config.training.steps_per_dispatch

    def make(steps: int) -> None:
        nonlocal state
        for _ in range(steps // size):
            if size == 1:
                state, _ = run.steps.train(state, run.put(next(batches)))
            else:
                block = run.block_on_device([next(batches) for _ in range(size)])
                state, _ = run.steps.train_block(state, block, np.int32(size))
        jax.block_until_ready(state)

    return make


def taking_turns(
    calls: list[Callable[[], Any]], clock: Callable[[], float], rounds: int = ROUNDS
) -> list[float]:
    """Seconds of each call by a clock: medians."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            start = clock()
            call()
            found.append(clock() - start)
    return [statistics.median(found) for found in times]


def border_milliseconds(depth: int = 12) -> list[float]:
    """CPU time of this thread for a call over AdamW's state of a model of ViT-S's shape.

    As `nnx.State`, and as dictionaries; the program gives back what it is given.
    """
    fields = {"img_size": 32, "embed_dim": 48, "num_heads": 6, "num_classes": 10, "depth": depth}
    model = create_model("vit_small_patch16_224", rngs=nnx.Rngs(0), **fields)
    params = nnx.state(model, nnx.Param)

    def call(tree: Any) -> Callable[[], None]:
        held = jax.tree.map(jnp.copy, (tree, tree, tree))  # with both moments
        same = jax.jit(lambda given: given, donate_argnums=0)

        def again() -> None:
            nonlocal held
            held = same(held)

        return again

    forms = [call(params), call(nnx.to_pure_dict(params))]
    return [1e3 * seconds for seconds in taking_turns(forms, time.thread_time)]


def dispatch_milliseconds(run: Run, calls: int = 15) -> float:
    """CPU time of this thread for the dispatch of an update of a run: the median."""
    state, batches = run.steps.init(), run.train_batches(0)
    size = run.config.training.steps_per_dispatch
    times = []
    for _ in range(calls + 1):  # the first one compiles
        given = [next(batches) for _ in range(size)]
        block = run.put(given[0]) if size == 1 else run.block_on_device(given)
        jax.block_until_ready(state)
        start = time.thread_time()
        if size == 1:
            state, _ = run.steps.train(state, block)
        else:
            state, _ = run.steps.train_block(state, block, np.int32(size))
        times.append(time.thread_time() - start)
    return 1e3 * statistics.median(times[1:]) / size


def main() -> None:
    """Prints both tables, or the CPU time of dispatches."""
    parser = argparse.ArgumentParser(description="the host's part of an update")
    parser.add_argument("--calls", action="store_true", help="CPU time of a dispatch alone")
    if parser.parse_args().calls:
        # JAX as it is set: the commands' own setting computes on the thread that calls.
        for updates in (1, 16):
            run = open_run(on_digits("vit_small_patch16_224", updates, 8))
            found = dispatch_milliseconds(run)
            print(f"{updates:2} a dispatch: {found:.2f} ms of its thread for each update")
        return
    set_up_jax()
    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as `vit-jax train` does
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    as_state, as_dicts = border_milliseconds()
    print(
        f"a call over a ViT-S-shaped state: {as_state:.2f} ms as nnx.State, {as_dicts:.2f} as dicts"
    )
    runs = [updater(open_run(trivial(*contestant))) for contestant in CONTESTANTS]
    calls = [lambda make=make: make(STEPS) for make in runs]
    seconds = taking_turns(calls, time.perf_counter)
    for (updates, on_device), found in zip(CONTESTANTS, seconds, strict=True):
        where = "on the device" if on_device else "on the host"
        print(
            f"{updates:2} a dispatch, images {where}: {STEPS / found:.0f} steps/s, "
            f"{seconds[0] / found:.2f} times the first"
        )
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
