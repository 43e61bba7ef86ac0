"""Images a second on one core: prepared records to uint8 batches, beside PyTorch's DataLoader.

The other side is what one writes for PyTorch: PIL decodes, converts to RGB and resizes,
`torch.from_numpy(np.array(image))` and the DataLoader's own collation. Both read the same records
through array_record and parse them with the same function.

Two of the sets hold images of one size, which are decoded and no more. Images the size of
ImageNet's are not at hand: they are made of photographs of imagenette224, six in a mosaic cut to a
varying size around 500x375 and stored as JPEG of 75 kB (ImageNet: 110 kB). They are trained on by a
random resized crop to 224, with the same distribution on both sides (torchvision's is written out
here for PIL), and evaluated by resize and central crop.
"""

import io
import math
import os
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from rich.console import Console
from tensorflow_datasets.proto import tf_example_pb2
from torch.utils.data import DataLoader, Dataset

from vit_jax.data.host_crop import RandomResizedCrop
from vit_jax.data.loader import eval_batches, train_batches
from vit_jax.data.tfds_source import TfdsSource, _parse_example, open_tfds

_KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SIDE, _CROP_FRACTION = 224, 0.9
_MOSAICS, _QUALITY = 192, 96


@dataclass(frozen=True)
class _Work:
    """What is done to the images of a set; with no `form` they are decoded and no more."""

    data: str
    form: str  # "", "train" or "eval"
    interpolation: str
    batch: int
    batches: int

    @property
    def name(self) -> str:
        return f"{self.data}, {self.form} {self.interpolation}" if self.form else self.data


_WORKS = (
    _Work("cifar10", "", "bilinear", 256, 20),
    _Work("imagenette224", "", "bilinear", 32, 6),
    _Work("mosaics", "train", "bilinear", 32, 4),
    _Work("mosaics", "train", "bicubic", 32, 4),
    _Work("mosaics", "eval", "bilinear", 32, 4),
    _Work("mosaics", "eval", "bicubic", 32, 4),
)


def _mosaics(photographs: TfdsSource, directory: str) -> TfdsSource:
    """Images of varying size around 500x375, of photographs of 224x224, as prepared records."""
    draw = random.Random(0)
    path = os.path.join(directory, "mosaics.array_record")
    writer = ArrayRecordWriter(path, "group_size:1")
    protos: Any = tf_example_pb2
    for _ in range(_MOSAICS):
        tiles = [photographs[draw.randrange(len(photographs))]["image"] for _ in range(6)]
        whole = np.vstack([np.hstack(tiles[:3]), np.hstack(tiles[3:])])  # (448, 672, 3)
        height, width = draw.randint(333, 417), draw.randint(444, 556)
        image = Image.fromarray(whole[:height, :width])
        if draw.random() < 0.25:  # portrait
            image = image.transpose(Image.Transpose.TRANSPOSE)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY)
        proto = protos.Example()
        proto.features.feature["image"].bytes_list.value.append(file.getvalue())
        proto.features.feature["label"].int64_list.value.append(0)
        writer.write(proto.SerializeToString())
    writer.close()
    return TfdsSource(
        ArrayRecordDataSource([path]),
        image_key="image",
        label_key="label",
        image_shape=(None, None, 3),
        class_names=["any"],
        name="mosaics",
    )


def _pil_crop(image: Image.Image, kernel: Image.Resampling) -> Image.Image:
    """torchvision's RandomResizedCrop(224), written out."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize((_SIDE, _SIDE), kernel)


def _pil_eval(image: Image.Image, kernel: Image.Resampling) -> Image.Image:
    """Resize(224 / 0.9) and CenterCrop(224)."""
    width, height = image.size
    scale = math.floor(_SIDE / _CROP_FRACTION) / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), kernel)
    left, top = (image.width - _SIDE) // 2, (image.height - _SIDE) // 2
    return image.crop((left, top, left + _SIDE, top + _SIDE))


class _Records(Dataset):
    """The records as one reads them for PyTorch."""

    def __init__(self, source: TfdsSource, work: _Work):
        self.source, self.work = source, work

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        features = _parse_example(self.source._records[index])
        data = features["image"].bytes_list.value[0]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if self.work.form:
            fit = _pil_crop if self.work.form == "train" else _pil_eval
            image = fit(image, _KERNELS[self.work.interpolation])
        return torch.from_numpy(np.array(image)), features["label"].int64_list.value[0]


def _timed(batches: Iterator[Any], count: int) -> float:
    next(batches)  # opens files
    start = time.process_time()  # of the CPU: other programs do not count
    for _ in range(count):
        next(batches)
    return time.process_time() - start


def _ours(source: TfdsSource, work: _Work) -> float:
    sizes: dict[str, Any] = {"batch_size": work.batch}
    if work.form:
        sizes["image_size"] = _SIDE
    if work.form == "eval":
        sizes |= {"crop_fraction": _CROP_FRACTION, "interpolation": work.interpolation}
        batches = eval_batches(source, **sizes)
    else:
        crop = RandomResizedCrop(interpolation=work.interpolation) if work.form else None
        batches = train_batches(source, seed=0, crop=crop, **sizes)
    with batches:
        return _timed(batches, work.batches)


def _theirs(source: TfdsSource, work: _Work) -> float:
    train = work.form != "eval"
    loader = DataLoader(_Records(source, work), work.batch, shuffle=train, drop_last=True)
    return _timed(iter(loader), work.batches)


_CALLS: dict[str, Callable[[TfdsSource, _Work], float]] = {
    "vit_jax": _ours,
    "DataLoader with PIL": _theirs,
}


def measure_input(data_dir: pathlib.Path, rounds: int, console: Console) -> list[dict[str, Any]]:
    """Both in turn, in this process, on one core and without workers."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as directory:
            sets: dict[str, Any] = {
                name: next(iter(open_tfds(name, data_dir).values()))
                for name in ("cifar10", "imagenette224")
            }
            sets["mosaics"] = _mosaics(sets["imagenette224"], directory)
            return [_measure(work, sets[work.data], rounds, console) for work in _WORKS]
    finally:
        os.sched_setaffinity(0, cores)


def _measure(work: _Work, source: TfdsSource, rounds: int, console: Console) -> dict[str, Any]:
    times: dict[str, list[float]] = {who: [] for who in _CALLS}
    for _ in range(rounds):
        for who, call in _CALLS.items():
            times[who].append(call(source, work))
    count = work.batch * work.batches
    rates = {who: count / statistics.median(taken) for who, taken in times.items()}
    ratio = rates["vit_jax"] / rates["DataLoader with PIL"]
    console.print(
        f"{work.name}: {', '.join(f'{who} {rate:,.0f} images/s' for who, rate in rates.items())}; "
        f"{ratio:.2f} times",
        highlight=False,
    )
    return {"set": work.name, "images_per_second": rates, "ratio": ratio}
