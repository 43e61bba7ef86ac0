"""TPU slices and hosts of GPUs by name, and the public facts of their chips."""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """The public facts of a TPU generation, or of a GPU.

    Attributes:
      name: as slices are called.
      full_name: as its maker's documentation calls it.
      dimensions: of the network of chips.
      devices: that JAX sees of one chip. (The two cores of a v4 or v5p chip are one device.)
      peak_flops: matmuls with bfloat16 operands, operations a second, of the whole chip.
      hbm_bytes: memory of the whole chip.
      usable_bytes: what a program may take of one device's part of it. On a TPU the rest is the
        runtime's; on a GPU it is what JAX leaves alone unless told otherwise.
      hbm_bandwidth: bytes a second between memory and chip.
      ici_bandwidth: bytes a second that a chip sends to its neighbours, over all its links; as much
        arrives.
      sizes: examples of slices; of GPUs all that one host has.
      is_gpu: a GPU; its links go to a switch that all GPUs of a host share.
      wide_flops: matmuls with float32 operands, unless another precision is asked for; None: as
        those with bfloat16 operands.
      clock_hz: cycles a second; None: not published.
    """

    name: str
    full_name: str
    dimensions: int
    devices: int
    peak_flops: float
    hbm_bytes: int
    usable_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    sizes: tuple[str, ...]
    is_gpu: bool = False
    wide_flops: float | None = None
    clock_hz: float | None = None

    @property
    def word(self) -> str:
        """What one device is called."""
        return "GPU" if self.is_gpu else "chip" if self.devices == 1 else "device"

    @property
    def links(self) -> int:
        """Neighbours of a chip inside a large slice."""
        return 2 * self.dimensions


_GIB = 2**30

# Peaks, capacities and bandwidths: Cloud TPU documentation, the page of each generation
# (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x). It gives the interconnect of both
# directions together (v5e 400, v6e 800, v5p and TPU7x 1200 GB/s a chip): half of it is sent. That
# of v4 is from Jouppi et al. 2023 (2304.01433): 6 links of 50 GB/s each way.
# (Of v5p the page says 95 GiB, of which XLA uses more.) `usable_bytes` is the limit that XLA
# states when a program is too large (libtpu 0.0.52). Clocks: v4 from the same paper; v5e and v5p
# from their peaks, with four matrix units of 128 x 128 a core.
# GPUs: NVIDIA's data sheets of the SXM5 boards, without sparsity: 18 links of 25 GB/s each way;
# float32 operands are multiplied as TF32. Memory and its bandwidth as XLA publishes them. JAX takes
# three quarters of the memory when it starts (XLA_PYTHON_CLIENT_MEM_FRACTION).
_TAKEN = 0.75


def _hopper(name: str, full_name: str, hbm_bytes: int, hbm_bandwidth: float) -> Chip:
    return Chip(
        name=name,
        full_name=full_name,
        dimensions=1,
        devices=1,
        peak_flops=989.4e12,
        hbm_bytes=hbm_bytes,
        usable_bytes=int(_TAKEN * hbm_bytes),
        hbm_bandwidth=hbm_bandwidth,
        ici_bandwidth=450e9,
        sizes=("1", "2", "4", "8"),
        is_gpu=True,
        wide_flops=494.7e12,
    )


_CHIPS = (
    Chip(
        name="v4",
        full_name="TPU v4",
        dimensions=3,
        devices=1,
        peak_flops=275e12,
        hbm_bytes=32 * _GIB,
        usable_bytes=int(30.75 * _GIB),
        hbm_bandwidth=1200e9,
        ici_bandwidth=300e9,
        sizes=("2x2x1", "2x2x2", "4x4x4"),
        clock_hz=1.05e9,
    ),
    Chip(
        name="v5e",
        full_name="TPU v5e",
        dimensions=2,
        devices=1,
        peak_flops=197e12,
        hbm_bytes=16 * _GIB,
        usable_bytes=int(15.75 * _GIB),
        hbm_bandwidth=819e9,
        ici_bandwidth=200e9,
        sizes=("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
        clock_hz=1.503e9,
    ),
    Chip(
        name="v5p",
        full_name="TPU v5p",
        dimensions=3,
        devices=1,
        peak_flops=459e12,
        hbm_bytes=96 * _GIB,
        usable_bytes=int(95.73 * _GIB),
        hbm_bandwidth=2765e9,
        ici_bandwidth=600e9,
        sizes=("2x2x1", "2x2x2", "2x4x4", "4x4x4"),
        clock_hz=1.751e9,
    ),
    Chip(
        name="v6e",
        full_name="TPU v6e (Trillium)",
        dimensions=2,
        devices=1,
        peak_flops=918e12,
        hbm_bytes=32 * _GIB,
        usable_bytes=int(31.24 * _GIB),
        hbm_bandwidth=1638e9,
        ici_bandwidth=400e9,
        sizes=("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    ),
    Chip(
        name="TPU7x",
        full_name="TPU7x (Ironwood)",
        dimensions=3,
        devices=2,
        peak_flops=2307e12,
        hbm_bytes=192 * _GIB,
        usable_bytes=int(94.74 * _GIB),
        hbm_bandwidth=7380e9,
        ici_bandwidth=600e9,
        sizes=("2x2x1", "2x2x2", "2x4x4", "4x4x4"),
    ),
    _hopper("h100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000),
    _hopper("h200", "NVIDIA H200 141GB HBM3e", 151_397_597_184, 4_800_000_000_000),
)
CHIPS = {chip.name: chip for chip in _CHIPS}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one generation in a box of `shape`, or GPUs of one host in a row."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is given; libtpu takes it so."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def ici_bandwidth(self) -> float:
        """Bytes a second that a chip sends over the links that it has in this slice.

        Along an axis of more than two chips it has two neighbours (at most: those at an edge have
        one, unless the slice is large enough to be wrapped around), along one of two chips one.
        GPUs have all their links to the switch of the host.
        """
        if self.chip.is_gpu:
            return self.chip.ici_bandwidth if self.chips > 1 else 0.0
        links = sum(min(size - 1, 2) for size in self.shape)
        return self.chip.ici_bandwidth * links / self.chip.links


def parse_topology(name: str) -> Topology:
    """The slice that a name such as v5e:4x4, v5p:2x2x2 or h100:8 means.

    Raises:
      ValueError: it is none; the message gives the generations and examples.
    """
    match = re.fullmatch(r"([A-Za-z0-9]+):(\d+(?:x\d+)*)", name)
    generation = match and {chip.lower(): chip for chip in CHIPS}.get(match[1].lower())
    if match is None or generation is None:
        raise ValueError(
            "--topology: wanted GENERATION:SIZE, where SIZE is the number of chips along each "
            f"axis, or of GPUs, got {name!r}; generations and examples: "
            + ", ".join(f"{chip.name}:{chip.sizes[-1]}" for chip in CHIPS.values())
        )
    chip, shape = CHIPS[generation], tuple(map(int, match[2].split("x")))
    examples = ", ".join(f"{chip.name}:{size}" for size in chip.sizes)
    if chip.is_gpu and match[2] not in chip.sizes:
        raise ValueError(
            f"--topology: wanted the {chip.full_name} of one host, got {name!r}; examples: "
            f"{examples}"
        )
    if len(shape) != chip.dimensions or 0 in shape:
        raise ValueError(
            f"--topology: the chips of {chip.full_name} stand along {chip.dimensions} axes, got "
            f"{name!r}; examples: {examples}"
        )
    return Topology(chip, shape)
