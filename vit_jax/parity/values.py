"""What is compared: the values that a reference gave, whole or in part, and their noise.

Every array is named as in the model's state dict and laid out as in PyTorch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from vit_jax.inspect.stages import Outputs


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


class Expected(Protocol):
    """A value of the reference in float64.

    Attributes:
      shape: of the whole array.
      rms: of the whole array.
      noise: largest difference between the reference's own float32 and float64 run.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def rms(self) -> float: ...

    @property
    def noise(self) -> float: ...

    def error(self, got: np.ndarray) -> float:
        """Largest difference from an array of `shape`; infinite where that has none to compare."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of an array."""

    array: np.ndarray
    noise: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rms(self) -> float:
        return rms(self.array)

    def error(self, got: np.ndarray) -> float:
        difference = np.abs(np.asarray(got, np.float64) - self.array)
        return float(np.max(difference, initial=0.0)) if np.isfinite(difference).all() else np.inf


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a PyTorch model answered.

    Attributes:
      name: what it is, for the report.
      weights: its state dict under the names of the JAX model, in the order in which the weights
        stand there; empty where they are not known.
      images: what it was given, (B, C, H, W), or as it is where it is no image; whole numbers, such
        as ids of tokens, have no gradient.
      labels: classes of the loss; None where the output is no (B, classes) and the loss is
        `mean(output * direction)`.
      direction: see `labels`; None where there are labels.
      stages: value by stage, in the order in which the reference came to them; see
        `inspect.stages`. "" is the model's answer: its logits.
      loss: the mean cross entropy of the logits, or see `labels`; None where not asked for.
      gradients: of the loss, by parameter; those that PyTorch gave none stand in `untrained`.
      stage_gradients: of the loss, by stage left; of several arrays by the answer.
      image_gradient: of the loss.
      losses: before each optimizer step and after the last.
      trained: parameters after the steps.
      untrained: names of trainable parameters without a gradient.
      optimizer: settings of the steps.
      outputs: the names of the arrays that a module gives, where that is no lone array.
    """

    name: str
    weights: Mapping[str, np.ndarray]
    images: np.ndarray
    labels: np.ndarray | None
    direction: np.ndarray | None
    stages: Mapping[str, Expected]
    loss: Expected | None = None
    gradients: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    stage_gradients: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    image_gradient: Expected | None = None
    losses: Expected | None = None
    trained: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    untrained: frozenset[str] = frozenset()
    optimizer: "OptimizerSpec | None" = None
    outputs: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The steps of training that are compared.

    Attributes:
      name: "adamw" (torch.optim.AdamW) or "sgd" (torch.optim.SGD; `betas[0]` is its momentum).
      steps: how many.
      weight_decay: on every parameter that has a gradient.
    """

    name: str = "adamw"
    steps: int = 10
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self):
        if self.name not in ("adamw", "sgd"):
            raise ValueError(f'an optimizer is "adamw" or "sgd", got {self.name!r}')
        if self.steps < 1:
            raise ValueError(f"wanted at least one optimizer step, got {self.steps}")
