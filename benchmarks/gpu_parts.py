"""What `benchmarks.on_gpu` measures: each part yields its figures by name as it finds them."""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import dispatch
from benchmarks.contestants import Workload
from benchmarks.gpu_numbers import Figures, numbers
from benchmarks.gpu_runs import resume, start
from benchmarks.measure import compete
from benchmarks.run import GPU
from benchmarks.synthetic_run import pictures
from vit_jax.cli.jax_setup import set_up_jax
from vit_jax.config import TrainConfig, from_dict, to_dict
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.data.own import own_splits
from vit_jax.models.registry import create_model
from vit_jax.models.spec import Preprocessing
from vit_jax.training.own import Own
from vit_jax.training.run import open_run

OURS = ("vit_jax", "vit_jax, plain attention")
_SMALL_FIELDS = {"patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 3}
SMALL = Workload("vit_tiny_patch16_224", 32, 2, _SMALL_FIELDS, "bfloat16")
SMALL_T2T = Workload(
    "t2t_vit_7", 32, 2, {"depth": 1, "embed_dim": 64, "num_heads": 1, "num_classes": 3}, "bfloat16"
)


def steps(small: bool) -> Figures:
    """A train step of ViTs beside PyTorch's."""
    if small:
        yield from _speeds([SMALL], ["vit_jax", "torch eager"], rounds=2)
    else:
        yield from _speeds(GPU[:2], [*OURS, "torch eager", "timm, torch.compile"], rounds=20)


def t2t(small: bool) -> Figures:
    """A train step of T2T-ViT-14 beside PyTorch's."""
    if small:
        yield from _speeds([SMALL_T2T], ["vit_jax"], rounds=2)
    else:
        yield from _speeds(GPU[2:3], [*OURS, "torch eager"], rounds=20)


def _speeds(works: Sequence[Workload], names: Sequence[str], rounds: int) -> Figures:
    """One contestant at a time: side by side they would not fit into the memory of a GPU."""
    for name in names:
        for work in works:
            yield {f"{work.name}, {name}": _speed(work, name, rounds)}


def _speed(work: Workload, name: str, rounds: int) -> dict[str, Any]:
    needed = [module for module in ("torch", "timm") if module in name]
    if lacks := [module for module in needed if importlib.util.find_spec(module) is None]:
        return {"not installed": ", ".join(lacks)}
    try:
        timings, refused = compete([name], work, "step", rounds)
    except RuntimeError as error:
        return {"failed": str(error)[-500:]}
    if refused:
        return {"refused": refused[0]}
    (timing,) = timings
    return {
        "ms": 1e3 * timing.median,
        "images/s": work.batch / timing.median,
        "first_seconds": timing.first_seconds,
    }


def flagship_config(small: bool, deterministic: bool, updates: int, on_device: bool) -> TrainConfig:
    """`configs/cifar100_vit.py` on images in memory; with `small` a tiny model."""
    values = to_dict(load_recipe(find_recipe("cifar100_vit")))
    values["data"] |= {"source": "own", "name": "", "on_device": on_device}
    values["data"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    values["training"] |= {"steps_per_dispatch": updates, "deterministic": deterministic}
    values["log"] |= {"tensorboard": False}
    if small:
        values["model"]["kwargs"] |= {"depth": 1, "embed_dim": 8, "mlp_head_units": [8]}
        values["model"]["kwargs"] |= {"img_size": 12}
        values["data"] |= {"image_size": 12, "rotation_degrees": 0.0}
    return from_dict(values)


def flagship(small: bool) -> Figures:
    """The host's part of a step; each setting of XLA in a process of its own."""
    resident = [one for one in dispatch.CONTESTANTS if one[1]]
    settings = [(False, dispatch.CONTESTANTS), (True, resident)]
    for deterministic, contestants in [(False, resident[1:])] if small else settings:
        with concurrent.futures.ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(deterministic,),
        ) as pool:
            found = pool.submit(_updates, small, deterministic, contestants).result()
        suffix = ", deterministic" if deterministic else ""
        yield {f"{name}{suffix}": figures for name, figures in found.items()}


def _start(deterministic: bool) -> None:
    set_up_jax(deterministic=deterministic)


def _updates(
    small: bool, deterministic: bool, contestants: Sequence[tuple[int, bool]]
) -> dict[str, dict[str, float]]:
    """Steps a second, and what the thread that sends them does meanwhile."""
    own = Own(data=own_splits({"train": pictures(1024 if small else 50_000, 32, 100)}))
    count, rounds = (16, 1) if small else (dispatch.STEPS, 7)
    runs = [
        dispatch.updater(open_run(flagship_config(small, deterministic, *one), own=own))
        for one in contestants
    ]
    calls = [functools.partial(make, count) for make in runs]
    wall = dispatch.taking_turns(calls, time.perf_counter, rounds)
    host = dispatch.taking_turns(calls, time.thread_time, rounds)
    found = {}
    for (updates, on_device), seconds, of_host in zip(contestants, wall, host, strict=True):
        name = f"{updates} a dispatch, images on the {'device' if on_device else 'host'}"
        found[name] = {
            "steps/s": count / seconds,
            "host_ms_a_step": 1e3 * of_host / count,
            "host_share": of_host / seconds,
        }
    return found


def _evaluated_model(small: bool, dtype: Any) -> Any:
    name, fields = "vit_small_patch16_224", {"num_classes": 10}
    if small:
        name, fields = SMALL.model, {"img_size": SMALL.image_size, **SMALL.fields}
    model = create_model(name, rngs=nnx.Rngs(0), dtype=dtype, **fields)
    halves = (0.5, 0.5, 0.5)
    model.spec = dataclasses.replace(model.spec, preprocessing=Preprocessing(halves, halves))
    model.eval()
    return model


def evaluate(small: bool) -> Figures:
    """Images a second of `vit_jax.inference.evaluate`: of a call that compiles, and one that may
    find that in the cache.

    In bfloat16, 224x224.
    """
    from vit_jax.inference.evaluate import evaluate as evaluated

    set_up_jax()
    model = _evaluated_model(small, jnp.bfloat16)
    source = pictures(16 if small else 8192, model.img_size[0], model.num_classes)
    for call in ("first call", "second call"):
        began = time.perf_counter()
        found = evaluated(model, source, batch_size=8 if small else 256)
        seconds = time.perf_counter() - began
        yield {call: {"images/s": len(source) / seconds, "loss": found.loss}}
        assert math.isfinite(found.loss)


def export(small: bool) -> Figures:
    """What `vit-jax export --platforms cuda` says of a float32 model."""
    from vit_jax.inference.export import export_model

    set_up_jax()
    platform = "cuda" if jax.default_backend() == "gpu" else "cpu"
    for precision in ("highest", "default"):
        jax.config.update("jax_default_matmul_precision", precision)
        with tempfile.TemporaryDirectory() as directory:
            try:
                report = export_model(
                    _evaluated_model(small, jnp.float32), f"{directory}/out", platforms=[platform]
                )
            except ValueError as error:  # what it says is the figure
                yield {precision: {"refused": str(error)}}
                continue
        yield {
            precision: {
                "verified on": report.verified_on,
                "largest difference": report.largest_difference,
                "bound": report.bound,
            }
        }
        if small:
            return


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of `benchmarks.on_gpu`.

    Attributes:
      measure: yields figures by name; True: in tiny sizes.
      share: of the time, beside the shares of the others.
      needs: modules without which it cannot run.
    """

    measure: Callable[[bool], Figures]
    share: float
    needs: tuple[str, ...] = ()


# What is most wanted first.
PARTS = {
    "numbers": Part(numbers, 3),
    "steps": Part(steps, 6),
    "flagship": Part(flagship, 3, ("grain",)),
    "resume": Part(resume, 3, ("grain",)),
    "t2t": Part(t2t, 2.5),
    "start": Part(start, 1, ("grain",)),
    "evaluate": Part(evaluate, 1, ("grain",)),
    "export": Part(export, 1),
}
