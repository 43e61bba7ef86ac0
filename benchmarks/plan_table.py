"""Memory and the bound on images a second of the recipes on TPU slices or GPUs, as tables.

    python -m benchmarks.plan_table --results plan.jsonl [--gpus] [--out docs/plan.md]

Each line of the tables is one train step, compiled for a slice by libtpu (`pip install
'vit-jax[tpu]'`; no TPU is needed), or with `--gpus` for a host of GPUs (see docs/plan.md). Finished
lines are kept in the file of `--results` and not compiled again, so that the run may be cut short
and repeated; begin a new file when the step has changed. `--out` puts the tables into the page,
between its two markers. On two CPU cores each takes about an hour.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.pages import keep, kept, put_between
from vit_jax.plan import gpu, libtpu

BEGIN, END = "<!-- plan_table: begin -->", "<!-- plan_table: end -->"
GPU_BEGIN, GPU_END = "<!-- gpu_table: begin -->", "<!-- gpu_table: end -->"
_BF16 = "--config.model.kwargs.dtype=bfloat16"
_SCAN = "--config.model.kwargs.scan_layers=true"
_BLOCKS = "--config.model.kwargs.remat=blocks"
SLICES = ("v4:2x2x1", "v5e:4x4", "v5p:2x2x2", "v6e:8x8", "TPU7x:2x2x2")
GPUS = ("h100:1", "h200:8")
ON_ALL_SLICES = ("cifar100_vit",)
_VIT_L = ("imagenet_vit_s16", "--config.model.name=vit_large_patch16_224", _BF16, _BLOCKS)
_VIT_H = (
    "imagenet_vit_s16",
    "--config.model.name=vit_huge_patch14_224",
    "--config.data.batch_size=4096",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=-1",
    _BF16,
    _BLOCKS,
    _SCAN,
)


def _flags(recipe: str) -> tuple[str, ...]:
    """What a recipe is given on a pod.

    Those of large images compute in bfloat16; all but the smallest compile in less time as scans;
    the batches of the small ones grow until 64 chips divide them.
    """
    flags = () if recipe == "digits_vit" else (_SCAN,)
    if recipe.startswith("imagenet"):
        flags = (_BF16, *flags)
    if not recipe.startswith("imagenet_"):
        flags = ("--config.data.batch_size=256", *flags)
    return flags


def _divided(slice_name: str, recipe: str, *flags: str) -> tuple[str, ...]:
    """The recipe and its flags, its batches rounded up to what the slice's devices divide."""
    from vit_jax.config.overrides import read_recipe
    from vit_jax.models.registry import model_fields
    from vit_jax.plan.topology import parse_topology

    data = read_recipe(recipe, flags, model_fields).config.data
    topology = parse_topology(slice_name)
    devices = topology.chips * topology.chip.devices
    sizes = {"batch_size": data.batch_size, "eval_batch_size": data.eval_batch_size}
    rounded = {name: -(-size // devices) * devices for name, size in sizes.items()}
    more = [
        f"--config.data.{name}={rounded[name]}" for name in sizes if rounded[name] != sizes[name]
    ]
    return (recipe, *flags, *more)


def _recipes() -> Iterator[str]:
    from vit_jax.config.recipes import recipe_names

    for name in recipe_names():
        sized = [f"{name}:{size}" for size in ("14", "19", "24", "7", "t_14")]
        yield from sized if name == "imagenet_t2t_vit" else [name]


def gpu_cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """As `cases`, of GPUs: recipes as they are, those of large images in bfloat16."""
    for recipe in _recipes():
        for slice_name in GPUS:
            flags = (_BF16,) if recipe.startswith("imagenet") else ()
            yield "gpus", slice_name, _divided(slice_name, recipe, *flags)


def cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(section, slice, (recipe, flags...)) of every line."""
    for recipe in _recipes():
        yield "recipes", "v5e:4x4", _divided("v5e:4x4", recipe, *_flags(recipe))
    for recipe in ON_ALL_SLICES:
        for slice_name in SLICES:
            yield "slices", slice_name, _divided(slice_name, recipe, *_flags(recipe))
    yield "large", "v5e:16x16", _VIT_H
    yield "large", "v5e:4x4", (*_VIT_L, "--config.data.batch_size=512")
    yield "large", "v5e:4x4", (*_VIT_L, "--config.data.batch_size=512", _SCAN)


def measure(slice_name: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """One plan, as `vit-jax plan --json` prints it."""
    from vit_jax.config.overrides import read_recipe
    from vit_jax.models.registry import model_fields
    from vit_jax.plan.plan import as_json, make_plan
    from vit_jax.plan.topology import parse_topology

    recipe, *flags = arguments
    topology = parse_topology(slice_name)
    config = read_recipe(recipe, flags, model_fields).config
    devices = (gpu if topology.chip.is_gpu else libtpu).devices_of(topology)
    return as_json(make_plan(config, topology, devices), recipe)


def _row(
    slice_name: str, arguments: tuple[str, ...], found: dict[str, Any], own: tuple[str, ...]
) -> str:
    """A line of a table; `own`: the columns that only this kind of device has."""
    recipe, *flags = arguments
    told = " ".join([f"`{recipe}`", *(flag.removeprefix("--config.") for flag in flags)])
    start = f"| {told} | {slice_name}{'*' if found.get('remark') else ''} | {found['batch_size']} "
    if not found["fits"]:
        return start + "| does not fit " + "|" * (len(own) + 6)
    counts, bound = found["counts"], found["roofline"]
    sent = sum(row["bytes"] for row in counts["exchanges"]) / 1e6
    return (
        f"{start}| {found['needed_bytes'] / 2**30:.2f} of {found['usable_bytes'] / 2**30:.2f} "
        f"| {counts['flops'] / 1e9:,.1f} | {' | '.join(own)} | {sent:,.1f} "
        f"| {bound['images_per_second']:,.0f} | {bound['bound']} | {found['compile_seconds']:.0f} |"
    )


def _of_gpu(found: dict[str, Any]) -> tuple[str, ...]:
    """Memory traffic, kernels, and calls of cuDNN's attention."""
    counts = found["counts"]
    calls = sum(n for name, n in counts["library_calls"].items() if "fmha" in name)
    return f"{counts['hbm_bytes'] / 1e9:,.1f}", f"{counts['kernels']:,}", str(calls)


def _of_tpu(found: dict[str, Any]) -> tuple[str, ...]:
    """The operations against those of the step as written, and against the model's count."""
    counts = found["counts"]
    return _against(counts, "step_flops"), _against(counts, "model_flops")


def _against(counts: dict[str, Any], name: str) -> str:
    return f"{counts['flops'] / counts[name] - 1:+.2%}"


_HEADER = (
    "| recipe and flags | slice | batch | HBM of a device (GiB) | GFLOPs of a device and step "
    "| against the step as written | against 3 x the model's forward | exchanged (MB) "
    "| images/s, at most | bound by | compiled in (s) |"
)
_GPU_HEADER = (
    "| recipe and flags | host | batch | memory of a GPU (GiB) | GFLOPs of a GPU and step "
    "| read and written (GB) | kernels | of them cuDNN's attention | exchanged (MB) "
    "| images/s, at most | bound by | compiled in (s) |"
)
_TITLES = {
    "recipes": "#### Every recipe on v5e:4x4",
    "slices": "#### One recipe on five generations",
    "large": "#### Large models",
}


def tables(lines: dict[str, dict[str, Any]]) -> str:
    """The tables of all lines that are done."""
    text: list[str] = []
    for section, title in _TITLES.items():
        rows = [
            _row(slice_name, arguments, lines[key], _of_tpu(lines[key]))
            for name, slice_name, arguments in cases()
            if name == section and (key := _key(slice_name, arguments)) in lines
        ]
        text += [title, "", _HEADER, "|---" * (_HEADER.count("|") - 1) + "|", *rows, ""]
    return "\n".join(text)


def gpu_table(lines: dict[str, dict[str, Any]]) -> str:
    """The table of all lines of GPUs that are done."""
    rows = [
        _row(slice_name, arguments, lines[key], _of_gpu(lines[key]))
        for _, slice_name, arguments in gpu_cases()
        if (key := _key(slice_name, arguments)) in lines
    ]
    return "\n".join([_GPU_HEADER, "|---" * (_GPU_HEADER.count("|") - 1) + "|", *rows, ""])


def _key(slice_name: str, arguments: tuple[str, ...]) -> str:
    return " ".join((slice_name, *arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description="plans of the recipes on TPU slices and GPUs")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="a line for each plan")
    parser.add_argument("--out", type=pathlib.Path, help="the page that the tables go into")
    parser.add_argument("--gpus", action="store_true", help="for GPUs in place of TPUs")
    options = parser.parse_args()
    libtpu.prepare_environment()
    lines: dict[str, dict[str, Any]] = {}
    for row in kept(options.results):
        lines[row["key"]] = row
    for _, slice_name, arguments in gpu_cases() if options.gpus else cases():
        key = _key(slice_name, arguments)
        if key in lines:
            continue
        start = time.perf_counter()
        lines[key] = {"key": key, **measure(slice_name, arguments)}
        keep(options.results, lines[key])
        print(f"{key}: {time.perf_counter() - start:.0f} s", flush=True)
    begin, end = (GPU_BEGIN, GPU_END) if options.gpus else (BEGIN, END)
    text = gpu_table(lines) if options.gpus else tables(lines)
    if options.out:
        put_between(options.out, begin, end, text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
