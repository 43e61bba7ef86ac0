"""Images that live on the devices, from which the loader's indices choose those of a batch."""

import math
import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vit_jax.config import DataConfig
from vit_jax.data.loader import WorkerKind, eval_batches
from vit_jax.data.sources import ImageSource
from vit_jax.training.mesh import batch_sharding, block_sharding, replicated
from vit_jax.training.processes import tell_all

# Of what a device's memory leaves beside the state, the share that images may take unasked.
_SHARE = 0.25
_READ_AT_ONCE = 256


class ResidentImages:
    """The images of a split, whole on each device.

    Args:
      mesh: the devices.
      images: (N, H, W, C) uint8; labels: (N, ...): both on the devices.
    """

    def __init__(self, mesh: Mesh, images: jax.Array, labels: jax.Array) -> None:
        self._arrays, whole = (images, labels), replicated(mesh)
        # By the rank of the indices: of a batch, of a block of batches.
        self._fill = {
            rank: jax.jit(_rows, in_shardings=(whole, rows), out_shardings=rows)
            for rank, rows in ((1, batch_sharding(mesh)), (2, block_sharding(mesh)))
        }

    def filled(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A batch or a block on the devices, with the images and labels that its `index` says.

        They are those that the loader would have sent. A program of their own takes them, so that
        the one that trains on them is the same in both cases.
        """
        images, labels = self._fill[batch["index"].ndim](self._arrays, batch["index"])
        return {**batch, "image": images, "label": labels}


def _rows(arrays: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[jax.Array, ...]:
    """The rows at `index`: of the n-th repeat of an image n N more, of padding -1."""

    def rows(of: jax.Array) -> jax.Array:
        found = of[index % len(of)]
        is_there = (index >= 0).reshape(index.shape + (1,) * (found.ndim - index.ndim))
        return jnp.where(is_there, found, jnp.zeros((), found.dtype))

    return tuple(map(rows, arrays))


def read_images(
    source: ImageSource, mesh: Mesh, num_workers: int, worker_kind: WorkerKind
) -> ResidentImages:
    """Reads a split and sends it to all devices.

    Raises:
      ValueError: an image cannot be read.
    """
    assert source.image_shape is not None
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty((len(source), *source.label_shape), source.label_dtype)
    workers: Any = {"num_workers": num_workers, "worker_kind": worker_kind}
    with eval_batches(source, batch_size=_READ_AT_ONCE, **workers) as batches:
        for batch in batches:
            found = batch["mask"]
            rows = batch["index"][found]
            images[rows], labels[rows] = batch["image"][found], batch["label"][found]

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, replicated(mesh), lambda at: array[at])

    return ResidentImages(mesh, put(images), put(labels))


def resident(
    config: DataConfig, sources: Iterable[ImageSource], mesh: Mesh, state_bytes: int
) -> tuple[ImageSource, ...]:
    """Which splits of a run live on its devices: all or none, as `config.on_device` says.

    Args:
      config: None in it means all where they fit, on devices that are no CPUs: those gain nothing.
      sources: the splits that are gone through more than once.
      mesh: the devices.
      state_bytes: that the state of the training takes of a device.

    Raises:
      ValueError: `config.on_device` is true, and images vary in size or do not fit.
    """
    device, is_asked = mesh.local_devices[0], config.on_device
    if is_asked is False or (is_asked is None and device.platform == "cpu"):
        return ()
    sources, memory = tuple(sources), tell_all(_memory(device))  # one answer for all processes
    free = max(memory - state_bytes, 0)
    varying = [source.name for source in sources if source.image_shape is None]
    needed = sum(len(source) * math.prod(source.image_shape or ()) for source in sources)
    if not varying and needed <= (free if is_asked else _SHARE * free):
        return sources
    if not is_asked:
        return ()
    reason = (
        f"vary in size ({varying[0]})"
        if varying
        else f"take {needed / 1e9:.2f} GB, and {memory / 1e9:.2f} GB of a device leave "
        f"{free / 1e9:.2f} GB beside the state"
    )
    raise ValueError(
        "config.data.on_device: wanted images of one size that fit on each device, and those of "
        f"this run {reason}: leave it at None, or set it to false"
    )


def _memory(device: Any) -> int:
    """Bytes of a device; of a CPU its share of what the machine has."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
