"""The least time that a step can take on a slice, from what it has to compute and to move."""

import dataclasses

from vit_jax.plan.topology import Chip, Topology

_OF_MATMULS = {
    False: "matmuls run at the chip's peak for bfloat16 operands, which is also how JAX multiplies "
    "float32 on a TPU unless told otherwise; all else that is computed takes no time",
    True: "matmuls run at the GPU's peak for bfloat16 operands, those of float32 at its peak for "
    "TF32, which is how JAX multiplies them unless told otherwise; all else that is computed, and "
    "launching kernels, takes no time",
}
_OF_LINKS = {
    False: "every link that a chip has in the slice is in use, as if the slice were wrapped "
    "around, and an exchange sends as little as a ring does",
    True: "every NVLink of a GPU is in use, and an exchange sends as little as a ring does",
}


def assumptions(chip: Chip) -> tuple[str, ...]:
    """What a bound on this chip takes for granted."""
    return (
        _OF_MATMULS[chip.is_gpu],
        "HBM moves what each operation reads and writes, at its full bandwidth",
        _OF_LINKS[chip.is_gpu],
        "the three go on at the same time, so that the slowest one is the step; loading data and "
        "the host take no time",
    )


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step for each thing that it is limited by, and what follows.

    Attributes:
      compute, hbm, ici: seconds that matmuls, memory and the network between chips need.
      images_per_second: of the whole slice, at most.
      utilization: share of the peak that the model's own operations are, at that speed.
    """

    compute: float
    hbm: float
    ici: float
    images_per_second: float
    utilization: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.hbm, self.ici)

    @property
    def bound(self) -> str:
        """What takes longest: "compute", "hbm" or "ici"."""
        return max(("compute", "hbm", "ici"), key=lambda name: getattr(self, name))


def roofline(
    topology: Topology,
    *,
    flops: float,
    hbm_bytes: float,
    sent_bytes: float,
    model_flops: float,
    batch_size: int,
    wide_flops: float = 0.0,
) -> Roofline:
    """The bound of a step on a slice.

    Args:
      topology: the slice.
      flops, hbm_bytes, sent_bytes: of one device and step. The devices of one chip pass on between
        them what a ring through both carries, so that it leaves the chip once.
      model_flops: of one device and step, without what is computed again.
      batch_size: images of a step, over all devices.
      wide_flops: those of `flops` whose operands are float32.
    """
    chip = topology.chip
    peak = chip.peak_flops / chip.devices
    links = topology.ici_bandwidth
    compute = (flops - wide_flops) / peak
    compute += wide_flops / ((chip.wide_flops or chip.peak_flops) / chip.devices)
    hbm = hbm_bytes / (chip.hbm_bandwidth / chip.devices)
    # One chip alone has no links, and its devices exchange over a way of their own.
    ici = sent_bytes / links if links else 0.0
    seconds = max(compute, hbm, ici)
    return Roofline(compute, hbm, ici, batch_size / seconds, model_flops / seconds / peak)
