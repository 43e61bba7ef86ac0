"""What `benchmarks.on_gpu` measures: each part yields its figures by name as it finds them."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import dispatch
from benchmarks.compile_time import to_first_step
from benchmarks.contestants import Workload
from benchmarks.measure import compete
from benchmarks.run import GPU, machine
from benchmarks.synthetic_run import pictures
from tests import golden
from tests.golden import Golden
from tests.parity import compare
from tests.parity.evaluation import Evaluation, Runner
from vit_jax.cli.jax_setup import set_up_jax
from vit_jax.config import TrainConfig, from_dict, to_dict
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.data.own import own_splits
from vit_jax.data.sources import ArraySource
from vit_jax.layers import attention
from vit_jax.layers.initializers import trunc_normal
from vit_jax.models.registry import create_model
from vit_jax.models.spec import Preprocessing
from vit_jax.parity.values import rms
from vit_jax.training.own import Own
from vit_jax.training.records import read_rows
from vit_jax.training.run import open_run

Figures = Iterator[dict[str, Any]]
_ROOT = pathlib.Path(__file__).parents[1]

# Of each text one, and T2T's two token modules.
FIXTURES = (
    "tiny_seed003",
    "tiny_timm_vit",
    "tiny_seed004_distilled",
    "tiny_t2t_performer",
    "tiny_t2t_transformer",
)
# Name -> (matmul precision, type of the computation and of the parameters).
PRECISIONS = {
    "float32, highest": ("highest", jnp.float32),
    "float32, default": ("default", jnp.float32),  # TF32 on GPUs
    "bfloat16": ("default", jnp.bfloat16),
}


def numbers(small: bool) -> Figures:
    """Errors beside PyTorch in float64; see `_errors` and `_bias_gradients`."""
    yield {"machine": machine()}
    for name in FIXTURES[1:2] if small else FIXTURES:
        fixture = golden.load(name)
        for form, (precision, dtype) in PRECISIONS.items():
            with jax.default_matmul_precision(precision):
                found = Runner(fixture, fixture.build(dtype), dtype).evaluate()
            yield {f"{name}, {form}": _errors(fixture, found)}
    yield from _bias_gradients(*((1, 5, 64) if small else (8, 197, 384)))


def _errors(fixture: Golden, found: Evaluation) -> dict[str, float]:
    """Largest errors over the rms, and that of the logits over PyTorch's own float32 error."""
    want = fixture.arrays["logits_f64"]
    error = float(np.max(np.abs(np.asarray(found.logits, np.float64) - want)))
    first, l2 = fixture.arrays["grad_first8"], fixture.arrays["grad_l2"]
    got, wanted, scales = compare.by_parameter(found.gradients, fixture, first, l2)
    gradients = [
        float(np.max(np.abs(np.asarray(got[name], np.float64) - wanted[name]))) / scale
        for name, scale in scales.items()
        if scale and not compare.is_key_bias(name)
    ]
    return {
        "logits": error / rms(want),
        "logits, in PyTorch's float32 errors": error / fixture.noise("logits"),
        "gradients": max(gradients),
        "loss": abs(found.loss / float(fixture.arrays["loss_f64"]) - 1),
    }


def _bias_gradients(batch: int, tokens: int, dim: int) -> Figures:
    """Error over the rms of the gradient of the bias of q, k and v, beside float32 and plain.

    Of cuDNN's attention in bfloat16 over an odd number of tokens, with what a padded token adds;
    on a CPU XLA stands in for cuDNN.
    """
    x = jax.random.normal(jax.random.key(0), (batch, tokens, dim))
    towards = jax.random.normal(jax.random.key(1), x.shape)

    def gradient(form: str, dtype: Any, spread: str = "jit") -> np.ndarray:
        graph, params = nnx.split(_attention(dim, form, dtype))

        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(nnx.merge(graph, params)(x).astype(jnp.float32) * towards)

        differentiate = jax.grad(loss)
        if spread == "jit":
            found = jax.jit(differentiate)(params, x)
        else:
            found = jax.pmap(differentiate, in_axes=(None, 0), devices=jax.devices()[:1])(
                params, x[None]
            )
        return np.asarray(found["qkv"]["bias"][...], np.float64).reshape(-1)

    with jax.default_matmul_precision("highest"):
        want = gradient("auto", jnp.float32)
    forms = {
        "plain": ("auto", jnp.bfloat16),
        "fused": ("fused", jnp.bfloat16),
        "fused, pmap": ("fused", jnp.bfloat16, "pmap"),
    }
    for name, arguments in forms.items():
        with _attention_of_this_device():
            error = np.max(np.abs(gradient(*arguments) - want)) / rms(want)
        yield {f"bias of q, k, v, {tokens} tokens, {name}": float(error)}


def _attention(dim: int, form: str, dtype: Any) -> nnx.Module:
    module = attention.Attention(
        dim,
        dim // 64,
        qkv_bias=True,
        qk_scale=None,
        qk_norm=False,
        norm_eps=1e-6,
        attn_drop_rate=0.0,
        proj_drop_rate=0.0,
        kernel_init=trunc_normal(0.02),
        bias_init=nnx.initializers.normal(0.5),  # a token of padding gets it, too
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    module.form = form
    return module


def _attention_of_this_device() -> contextlib.AbstractContextManager[Any]:
    if jax.default_backend() == "gpu":
        return contextlib.nullcontext()
    stand_in = functools.partial(attention.fused_attention, implementation="xla")
    return mock.patch.object(attention, "fused_attention", stand_in)


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
        yield from _speeds(GPU[2:3], [*OURS, "torch eager", "torch.compile"], rounds=20)


def _speeds(works: Sequence[Workload], names: Sequence[str], rounds: int) -> Figures:
    """One contestant at a time: side by side they would not fit into the memory of a GPU."""
    for work in works:
        for name in names:
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
    contestants = [(1, True), (16, True)] if small else dispatch.CONTESTANTS
    for deterministic in (False,) if small else (False, True):
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
    images, labels = pictures(1024 if small else 50_000, 32, 100)
    own = Own(data=own_splits({"train": (images, labels)}))
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


def order(workdir: pathlib.Path, small: bool, steps: int, **fields: Any) -> dict[str, Any]:
    """Of `benchmarks.synthetic_run`: a ViT over 65 tokens, or 5, for so many steps.

    Args:
      workdir: of the run.
      small: a tiny model.
      steps: updates, all in one epoch.
      fields: groups of the config, over these.
    """
    side, batch, depth = (8, 8, 1) if small else (64, 64, 6)
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


def _run(told: dict[str, Any]) -> tuple[int, str]:
    """Runs it, without a cache: status, and the last line that it printed."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    ended = subprocess.run(
        _command(told), cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    lines = ended.stdout.splitlines()
    return ended.returncode, lines[-1] if lines else ""


WAYS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM, "error": 1}


def resume(small: bool) -> Figures:
    """Whether interrupted runs end with the bits of one that was not; fused losses beside plain."""
    count, end_at = (15, 10) if small else (60, 30)
    fields = {"training": {"deterministic": True, "steps_per_dispatch": 4}}
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        status, want = _run(order(folder / "whole", small, count, **fields))
        yield {"uninterrupted": {"ended": status, "parameters": want}}
        for way, expected in WAYS.items():
            told = order(folder / way, small, count, **fields)
            ended, _ = _run(told | {"end_at": end_at, "how": way})
            status, found = _run(told)
            is_same = ended == expected and status == 0 and found == want
            yield {way: {"ended": ended, "resumed": status, "same bits": is_same}}
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


def _evaluated_model(small: bool, dtype: Any) -> Any:
    model = create_model(
        *((SMALL.model,) if small else ("vit_small_patch16_224",)),
        rngs=nnx.Rngs(0),
        dtype=dtype,
        **({"img_size": SMALL.image_size, **_SMALL_FIELDS} if small else {"num_classes": 10}),
    )
    halves = (0.5, 0.5, 0.5)
    model.spec = dataclasses.replace(model.spec, preprocessing=Preprocessing(halves, halves))
    model.eval()
    return model


def evaluate(small: bool) -> Figures:
    """Images a second of `vit_jax.inference.evaluate`: of the first call, which compiles, and on.

    In bfloat16, 224x224.
    """
    from vit_jax.inference.evaluate import evaluate as evaluated

    model = _evaluated_model(small, jnp.bfloat16)
    classes, number = model.num_classes, 16 if small else 8192
    images, labels = pictures(number, model.img_size[0], classes)
    names = [str(number) for number in range(classes)]
    source = ArraySource(images, labels, class_names=names, name="pictures")
    for call in ("first call", "second call"):
        began = time.perf_counter()
        found = evaluated(model, source, batch_size=8 if small else 256)
        seconds = time.perf_counter() - began
        yield {call: {"images/s": number / seconds, "loss": found.loss}}
        assert math.isfinite(found.loss)


def export(small: bool) -> Figures:
    """What `vit-jax export --platforms cuda` says of a float32 model."""
    from vit_jax.inference.export import export_model

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
    "numbers": Part(numbers, 2),
    "steps": Part(steps, 5),
    "flagship": Part(flagship, 2.5, ("grain",)),
    "resume": Part(resume, 3.5, ("grain",)),
    "t2t": Part(t2t, 2),
    "start": Part(start, 1, ("grain",)),
    "evaluate": Part(evaluate, 1, ("grain",)),
    "export": Part(export, 1),
}
