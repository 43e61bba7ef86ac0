"""What a model is, around its weights: the one description that travels with it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vit_jax.models.config import DesignConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

SPEC_VERSION = 1


CROP_MODES = ("center", "squash", "center_floor", "squash_floor")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a model's images are prepared, after scaling to 0..1.

    Attributes:
      mean, std: subtracted and divided by, one a channel.
      crop_fraction: side of the central crop over the side of the resized image.
      interpolation: "bicubic" or "bilinear".
      crop_mode: "center" keeps the aspect ratio of an image, "squash" does not; with "_floor" the
        crop lies where transformers puts it, else where timm does: see
        `vit_jax.data.evaluation_geometry`.
      size: (height, width) that the model is given; None is its `img_size`.
      resized_from: (height, width) that images are brought to before they are resized to `size`:
        that of training images that shared one and were shown whole. None: `size` at once.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    size: tuple[int, int] | None = None
    resized_from: tuple[int, int] | None = None


TARGETS = ("classification", "multilabel", "regression")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a model's outputs are, where they are not the logits of classes of which one is right.

    Attributes:
      kind: "multilabel", a logit for each label by itself; or "regression", numbers.
      mean, std: regression: the number is output * std + mean, one of each an output; empty: the
        output itself.
    """

    kind: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in TARGETS[1:]:
            raise ValueError(f"target: wanted {' or '.join(TARGETS[1:])}, got {self.kind!r}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"target: {len(self.mean)} means and {len(self.std)} deviations")

    def at(self, outputs: Sequence[int]) -> "Target":
        """That of some of the outputs alone."""
        mean, std = (
            tuple(numbers[index] for index in outputs) if numbers else ()
            for numbers in (self.mean, self.std)
        )
        return Target(self.kind, mean, std)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model is: frozen, compared field by field. `dataclasses.replace` changes it.

    Attributes:
      name: registered; the design's where no registered name is meant.
      config: the design's fields.
      preprocessing: how images are prepared; None where nothing states it.
      class_names: in the order of the logits, of the first ones where the data had fewer classes;
        None where they are unknown.
      source: where the weights and facts come from; None for a model built from its fields.
      version: of this description.
      target: what the outputs are; None: logits of classes, or nothing states it.
    """

    name: str
    config: DesignConfig
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    source: str | None = None
    version: int = SPEC_VERSION
    target: Target | None = None

    @property
    def fields(self) -> tuple[tuple[str, Any], ...]:
        """The names and values of all fields of the design."""
        return tuple(
            (f.name, getattr(self.config, f.name)) for f in dataclasses.fields(self.config)
        )

    def label(self, index: int) -> str:
        """The name of a class; its number where it has none."""
        names = self.class_names or ()
        return names[index] if index < len(names) else str(index)

    def __hash__(self) -> int:
        # Kept: JAX hashes what is static in a model at every call of a compiled function.
        if "_hash" not in self.__dict__:
            facts = (self.name, self.fields, self.preprocessing, self.class_names, self.source)
            object.__setattr__(self, "_hash", hash((*facts, self.target)))
        return self.__dict__["_hash"]

    def __getstate__(self) -> dict[str, Any]:
        # Another process hashes strings otherwise.
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}
