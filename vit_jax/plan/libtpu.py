"""libtpu, which holds XLA's compiler for TPUs: made ready without a TPU."""

import os
from typing import Any

from vit_jax.plan.topology import Topology

# TPU_...: libtpu would ask the machine about its TPUs, and complain of what it hears. They are
# neutral here: the topology is given by name. libtpu keeps no log, and does not keep others from
# being loaded, which its lock file is for: nothing touches a device.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare_environment() -> None:
    """Sets what libtpu and JAX read when they start; to be called before JAX is imported.

    JAX computes on the CPU, also where there is a TPU, which may be busy.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # JAX's compilation cache has no form for programs of a device that is not there.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = ""


def devices_of(topology: Topology) -> list[Any]:
    """The devices that JAX would see on a slice, to compile for.

    Raises:
      ValueError: there is no such slice, or libtpu does not know its generation.
    """
    import jax
    from jax.experimental import topologies

    # Both cores of a v4 chip are one device on Cloud TPU; libtpu's default is one for each.
    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    try:
        return list(topologies.get_topology_desc(topology.name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--topology: libtpu makes no slice {topology.name} ({reason}); examples of "
            f"{topology.chip.name}: "
            + ", ".join(f"{topology.chip.name}:{size}" for size in topology.chip.sizes)
        ) from None
