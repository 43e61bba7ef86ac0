"""How the time of our training step grows, beside what its multiply-accumulates say."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.contestants import Workload
from benchmarks.measure import compete
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model

_VIT = {"patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3}


def _vit(**fields: Any) -> Workload:
    return Workload("vit_tiny_patch16_224", 224, 8, {**_VIT, **fields})


_BASE = _vit()


def _t2t(tokens_type: str, size: int) -> Workload:
    return Workload("t2t_vit_7", size, 2, {"depth": 1, "tokens_type": tokens_type})


# What grows -> (value, workload). The last two differ in the attention of the soft splits alone.
SERIES: dict[str, list[tuple[int, Workload]]] = {
    "batch": [(n, dataclasses.replace(_BASE, batch=n)) for n in (2, 4, 8, 16, 32)],
    "side of the image": [
        (n, dataclasses.replace(_BASE, image_size=n)) for n in (64, 128, 192, 256, 320)
    ],
    "depth": [(n, _vit(depth=n)) for n in (2, 4, 8, 16)],
    "tokens of a patch grid": [((224 // n) ** 2, _vit(patch_size=n)) for n in (32, 16, 8)],
    "soft split tokens, performer": [
        ((n // 4) ** 2, _t2t("performer", n)) for n in (64, 128, 192, 256)
    ],
    "soft split tokens, softmax": [
        ((n // 4) ** 2, _t2t("transformer", n)) for n in (64, 128, 192, 256)
    ],
}


def _step_flops(work: Workload) -> int:
    """Three times the forward pass: it, and twice that for the gradients."""
    model = abstract_model(work.model, img_size=work.image_size, **work.fields)
    image = jax.ShapeDtypeStruct((work.batch, work.image_size, work.image_size, 3), jnp.float32)
    return 2 * 3 * count_macs(model, image)


def measure_scale(rounds: int, console: Console) -> list[dict[str, Any]]:
    """A row for each point of each series."""
    rows = []
    for series, points in SERIES.items():
        for value, work in points:
            (timing, *_), _ = compete(["vit_jax"], work, "step", rounds)
            row = {
                "series": series,
                "value": value,
                "work": work.name,
                "seconds": timing.median,
                "flops": _step_flops(work),
                "peak_bytes": timing.peak_bytes,
            }
            rows.append(row)
            console.print(
                f"{series} {value:,}: {1e3 * row['seconds']:,.1f} ms, "
                f"{row['flops'] / 1e9:,.1f} GFLOP, "
                f"{row['flops'] / row['seconds'] / 1e9:,.0f} GFLOP/s",
                highlight=False,
            )
    return rows
