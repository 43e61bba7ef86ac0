"""Images a second on one core: prepared records to uint8 batches, beside PyTorch's DataLoader."""

import io
import os
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from vit_jax.data.loader import train_batches
from vit_jax.data.tfds_source import TfdsSource, _parse_example, open_tfds

# Set -> (side that its images are resized to, None: they share one size; batch; batches).
_SETS = {"cifar10": (None, 256, 20), "imagenette224": (224, 32, 6)}


class _Records(Dataset):
    """The same records as one writes it for PyTorch: PIL decodes and resizes."""

    def __init__(self, source: TfdsSource, size: int | None):
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        features = _parse_example(self.source._records[index])
        data = features["image"].bytes_list.value[0]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if self.size is not None:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)), features["label"].int64_list.value[0]


def _timed(batches: Iterator[Any], count: int) -> float:
    next(batches)  # opens files
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return time.perf_counter() - start


def _ours(source: TfdsSource, size: int | None, batch: int, count: int) -> float:
    with train_batches(source, batch_size=batch, seed=0, image_size=size) as batches:
        return _timed(batches, count)


def _theirs(source: TfdsSource, size: int | None, batch: int, count: int) -> float:
    loader = DataLoader(_Records(source, size), batch, shuffle=True, drop_last=True)
    return _timed(iter(loader), count)


_CALLS = {"vit_jax": _ours, "DataLoader with PIL": _theirs}


def measure_input(data_dir: pathlib.Path, rounds: int, console: Console) -> list[dict[str, Any]]:
    """Both in turn, in this process, on one core and without workers."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        return [_measure(name, data_dir, rounds, console) for name in _SETS]
    finally:
        os.sched_setaffinity(0, cores)


def _measure(name: str, data_dir: pathlib.Path, rounds: int, console: Console) -> dict[str, Any]:
    size, batch, count = _SETS[name]
    source = next(iter(open_tfds(name, data_dir).values()))
    assert isinstance(source, TfdsSource)
    times: dict[str, list[float]] = {who: [] for who in _CALLS}
    for _ in range(rounds):
        for who, call in _CALLS.items():
            times[who].append(call(source, size, batch, count))
    rates = {who: batch * count / statistics.median(taken) for who, taken in times.items()}
    ratio = rates["vit_jax"] / rates["DataLoader with PIL"]
    console.print(
        f"{name}: {', '.join(f'{who} {rate:,.0f} images/s' for who, rate in rates.items())}; "
        f"{ratio:.2f} times",
        highlight=False,
    )
    return {"set": name, "images_per_second": rates, "ratio": ratio}
