"""Shapes of the mesh, and how arrays lie on it. Devices are stand-ins: nothing is computed."""

import dataclasses

import pytest
from jax.sharding import PartitionSpec as P

from vit_jax.training import mesh as mesh_module
from vit_jax.training.mesh import check_batch, make_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int = 0
    platform: str = "cpu"


def devices(count: int, processes: int = 1) -> list:
    return [Device(i, i * processes // count) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((-1, 1), (8, 1)), ((-1, 2), (4, 2)), ((2, 4), (2, 4)), ((1, -1), (1, 8)), ((3, 1), (3, 1))],
)
def test_sizes_are_filled(sizes, shape):
    mesh = make_mesh(*sizes, devices=devices(8))
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp")


@pytest.mark.parametrize("sizes", [(-1, 3), (9, 1), (4, 4), (-1, -1), (0, 1), (1, -2)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match=r"mesh\.data"):
        make_mesh(*sizes, devices=devices(8))


def test_no_process_may_be_idle():
    assert make_mesh(4, 2, devices(8, processes=4)).size == 8
    with pytest.raises(ValueError, match=r"leave processes \[2, 3\] without a device: .* all 8"):
        make_mesh(2, 2, devices(8, processes=4))


def test_batch_must_divide_and_the_error_names_sizes_that_do():
    mesh = make_mesh(4, 2, devices=devices(8))
    check_batch("config.data.batch_size", 64, mesh)
    with pytest.raises(ValueError, match=r"batch_size = 30 .* 8 devices .*\(4x2\): use 24 or 32"):
        check_batch("config.data.batch_size", 30, mesh)
    with pytest.raises(ValueError, match=r"\(4x2\) times accumulation_steps = 3: use 48 or 72"):
        check_batch("config.data.batch_size", 64, mesh, 3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 64), P(None, "fsdp")),
        ((64, 8), P("fsdp")),
        ((64, 6), P("fsdp")),
        ((7, 4, 5), P(None, "fsdp")),
        ((7,), P()),
        ((), P()),
        ((0, 3), P()),
    ],
)
def test_largest_divisible_axis_is_divided(shape, spec):
    assert mesh_module._fsdp_spec(shape, 4) == spec
    assert mesh_module._fsdp_spec(shape, 1) == P()
