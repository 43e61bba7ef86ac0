"""The device mesh: its axes are `data` and `fsdp`, and a batch is split over both."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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
            f"mesh.data = {data} and mesh.fsdp = {fsdp} do not fit {len(devices)} devices: wanted "
            "a product of at most, with -1 a divisor of, that number"
        )
    data, fsdp = (len(devices) // fixed if size == -1 else size for size in (data, fsdp))
    return Mesh(np.asarray(devices[: data * fsdp]).reshape(data, fsdp), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis divided between all devices."""
    return NamedSharding(mesh, P(AXES))


def check_batch(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the global batch divides evenly between the mesh's devices."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        choices = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        raise ValueError(
            f"{name} = {batch_size} is not divisible by the {mesh.size} devices of the mesh "
            f"({'x'.join(str(n) for n in mesh.devices.shape)}): use {choices}, or a smaller "
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
