"""The device mesh: its axes are `data` and `fsdp`, and a batch is split over both."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")


def make_mesh(data: int, fsdp: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges the devices in a mesh of `data` x `fsdp`.

    Args:
      data: devices between which only the batch is divided; -1 takes all that `fsdp` leaves.
      fsdp: devices between which parameters and optimizer state are divided as well; -1 likewise.
      devices: all of JAX's by default; a mesh smaller than that uses the first ones.

    Raises:
      ValueError: sizes that the devices cannot fill.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp}
    wrong = [f"mesh.{name} = {size}" for name, size in sizes.items() if size < 1 and size != -1]
    if wrong or data == fsdp == -1:
        raise ValueError(
            "mesh.data and mesh.fsdp must be positive, or one of them -1 (all devices that are "
            f"left), got {' and '.join(wrong) or 'both -1'}"
        )
    fixed = max(data, 1) * max(fsdp, 1)
    if fixed > len(devices) or (-1 in sizes.values() and len(devices) % fixed):
        raise ValueError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not fit {len(devices)} devices: "
            "their product may be at most that number; where one of them is -1, the other has to "
            "divide it"
        )
    data, fsdp = (len(devices) // fixed if size == -1 else size for size in (data, fsdp))
    given, devices = devices, devices[: data * fsdp]
    idle = sorted(
        {device.process_index for device in given} - {device.process_index for device in devices}
    )
    if idle:
        raise ValueError(
            f"mesh.data = {data} and mesh.fsdp = {fsdp} leave processes {idle} without a device: "
            f"wanted all {len(given)} devices of the {jax.process_count()} processes"
        )
    return Mesh(_arrange(devices, data, fsdp), AXES)


def _arrange(devices: Sequence[Any], data: int, fsdp: int) -> np.ndarray:
    """(data, fsdp) devices, so that those of one `fsdp` group are near each other.

    JAX knows the wires of a TPU slice; several slices are joined along `data`, as their network is
    slower. Elsewhere devices come host by host, and so stay in that order.
    """
    if getattr(devices[0], "platform", None) != "tpu":
        return np.asarray(devices).reshape(data, fsdp)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or data % slices:
        return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp), (slices, 1), devices, allow_split_physical_axes=True
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis divided between all devices."""
    return NamedSharding(mesh, P(AXES))


def block_sharding(mesh: Mesh) -> NamedSharding:
    """Of several batches, the leading axis: the rows of each divided between all devices."""
    return NamedSharding(mesh, P(None, AXES))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that lie on this process's devices, in rising order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    ends = {index[0].indices(batch_size)[:2] for index in indices.values() if index is not None}
    return np.concatenate([np.arange(*of_device) for of_device in sorted(ends)])


def put_batch(
    mesh: Mesh, batch: Mapping[str, np.ndarray], is_block: bool = False
) -> dict[str, jax.Array]:
    """Sends the rows of `process_rows` on their way to the devices, without waiting.

    Args:
      mesh: the devices.
      batch: arrays, each with the rows of this process.
      is_block: whether there are several batches, see `stacked`.

    Returns:
      The global batch, of which this process holds its rows.
    """
    sharding = block_sharding(mesh) if is_block else batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    axis = int(is_block)
    here = next(iter(batch.values())).shape[axis]
    size = here * mesh.size // len(mesh.local_devices)
    rows = process_rows(mesh, size)

    def put(value: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[axis].indices(size)
            first = int(np.searchsorted(rows, start))
            return value[(slice(None),) * axis + (slice(first, first + stop - start),)]

        shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(value) for name, value in batch.items()}


def stacked(batches: Sequence[Mapping[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Batches, `size` of them at most, as a block: a new leading axis of `size`, zeros last."""
    block = {}
    for name, first in batches[0].items():
        block[name] = np.zeros((size, *first.shape), first.dtype)
        for number, batch in enumerate(batches):
            block[name][number] = batch[name]
    return block


def place(tree: Any, shardings: Any) -> Any:
    """The arrays of `tree` where `shardings` want them; a process's own are the same in all."""

    def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def bytes_on_one_device(tree: Any) -> int:
    """Of arrays, or of shapes that know where they lie."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_batch(name: str, batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Raises ValueError unless the global batch divides evenly between devices, and into parts."""
    among = mesh.size * parts
    if batch_size % among:
        below = batch_size - batch_size % among
        choices = " or ".join(str(size) for size in (below, below + among) if size)
        times = f" times accumulation_steps = {parts}" if parts > 1 else ""
        raise ValueError(
            f"{name} = {batch_size} is not divisible by the {mesh.size} devices of the mesh "
            f"({'x'.join(str(n) for n in mesh.devices.shape)}){times}: use {choices}, or a smaller "
            "mesh.data"
        )


def _fsdp_spec(shape: tuple[int, ...], fsdp: int) -> P:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0 and size > 0]
    if fsdp == 1 or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == largest else None for axis in range(largest + 1)))


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """How each array of `tree` lies on the mesh: its largest axis divisible by `fsdp` is divided.

    Arrays without such an axis, scalars among them, are whole on each device. An optimizer's
    moments have the shapes of their parameters and so lie as they do.
    """
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _fsdp_spec(leaf.shape, fsdp)), tree)
