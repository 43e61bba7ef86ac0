"""XLA's compiler for NVIDIA's GPUs, which JAX's plugin for CUDA brings along, without a GPU."""

import contextlib
import importlib.metadata
import importlib.util
import pathlib
import string
from collections.abc import Iterator
from typing import Any

from vit_jax.plan.topology import Topology

# Without a device nothing is tuned. Matmuls would become untuned Triton kernels, which take minutes
# to compile; with this they are calls of cuBLAS, as most are on a GPU.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
_PLUGIN = "jax-cuda12-plugin"
_NVCC = "nvidia-cuda-nvcc-cu12==12.9.86"  # ptxas and libdevice of CUDA 12
# Of the SXM5 boards: compute capability, and the cuDNN of the target's figures.
_CAPABILITY, _CUDNN = (9, 0), 91000
# What JAX asks a device before it traces cuDNN's attention, and what it is told here.
_CHECKS = {
    "check_cudnn_version": lambda: _CUDNN,
    "check_compute_capability": lambda capability: _version(capability) <= _CAPABILITY,
    "is_cuda_compute_capability_equal": lambda capability: _version(capability) == _CAPABILITY,
}


def require_plugin() -> None:
    """Raises ValueError unless JAX's plugin for CUDA is there, in the version of JAX."""
    wanted = importlib.metadata.version("jax")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        what = "XLA's compiler for GPUs"
    elif (found := importlib.metadata.version(_PLUGIN)) != wanted:
        what = f"{_PLUGIN} of jax {wanted}, and not {found}"
    else:
        return
    raise ValueError(
        f"vit-jax plan needs {what} (no GPU is needed): pip install --target cuda_wheels --no-deps "
        f"jax-cuda12-pjrt=={wanted} {_PLUGIN}=={wanted} {_NVCC}, and then "
        "PYTHONPATH=cuda_wheels vit-jax plan ..."
    )


def devices_of(topology: Topology) -> list[Any]:
    """The devices that JAX would see on a host of so many GPUs, to compile for."""
    from jax.experimental import topologies

    chip = topology.chip
    figures = string.Template(pathlib.Path(__file__).with_name("hopper.txtpb").read_text())
    target = figures.substitute(
        name=chip.full_name,
        memory_bandwidth=round(chip.hbm_bandwidth),
        device_memory_size=chip.hbm_bytes,
    )
    found = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=f"1x1x{topology.chips}"
    )
    return list(found.devices)


@contextlib.contextmanager
def traced_without_device() -> Iterator[None]:
    """Lets JAX trace cuDNN's attention, for which it asks about a device that is not there.

    Raises:
      ValueError: JAX has no such checks: they are private, and another version may have moved them.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        checks = {name: getattr(cudnn, name) for name in _CHECKS}
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"vit-jax plan for GPUs answers private checks of JAX in its place, and jax "
            f"{importlib.metadata.version('jax')} has them elsewhere ({error}): wanted jax 0.10.2, "
            "or --config.attention=plain, which needs none"
        ) from None
    try:
        for name, answer in _CHECKS.items():
            setattr(cudnn, name, answer)
        yield
    finally:
        for name, check in checks.items():
            setattr(cudnn, name, check)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
