"""The programs that are timed beside each other, each in a process of its own.

A module here has `make(work, form)`: it builds the model of a `Workload` and returns a function
that runs one forward pass ("forward", eval mode) or one training step ("step": forward, backward,
AdamW) and waits for its end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Contestant -> (module under benchmarks.contestants, its options).
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_jax": ("vit_jax_", {}),
    "vit_jax, plain attention": ("vit_jax_", {"attention": "plain"}),
    "plain Flax": ("plain_flax", {}),
    "torch eager": ("torch_", {"compile": False}),
    "torch.compile": ("torch_", {"compile": True}),
    "torch eager, memory kept": ("torch_", {"compile": False, "keep_memory": True}),
    "timm eager": ("torch_", {"compile": False, "timm": True}),
    "timm, torch.compile": ("torch_", {"compile": True, "timm": True}),
}
FORMS = ("forward", "step")
BASE = "torch eager"  # what the others are compared with


class CannotCompute(Exception):
    """A contestant has no such model, or is not installed here."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """One model at one size.

    Attributes:
      model: a name of `vit_jax.create_model`; fields: its further arguments.
      image_size: height and width of the images, of three channels.
      batch: images.
      dtype: of the computation; parameters are float32.
    """

    model: str
    image_size: int
    batch: int
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.model}, {self.image_size}x{self.image_size}, batch {self.batch}"
