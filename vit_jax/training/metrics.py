"""Sums from which loss, top-1 and top-5 are averaged; they live on the device."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def label_ranks(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Int[Array, "batch"]:
    """How many classes stand before the label when sorted by falling logit.

    Of equal logits the lower class stands first, as with `argmax`: a head of zeros predicts class 0
    and not every class. A row with a NaN ranks its label last.
    """
    at_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    ahead = (logits > at_label) | ((logits == at_label) & before)
    broken = jnp.isnan(logits).any(axis=-1)
    return jnp.where(broken, logits.shape[-1], ahead.sum(axis=-1)).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Over the examples since the last reset: `loss` their sum, the others counts (int32).

    With fewer than six classes top-5 is 1 unless the logits are NaN.
    """

    loss: jax.Array
    top1: jax.Array
    top5: jax.Array
    count: jax.Array

    @classmethod
    def zeros(cls, dtype: jnp.dtype) -> "Sums":
        """Nothing counted yet; `dtype` is that of the sum of losses."""
        # An array for each: the step donates them, and no array can be donated twice.
        counts = {name: jnp.zeros((), jnp.int32) for name in ("top1", "top5", "count")}
        return cls(loss=jnp.zeros((), dtype), **counts)

    @classmethod
    def of_batch(
        cls,
        losses: Float[Array, "batch"],
        logits: Float[Array, "batch classes"],
        labels: Int[Array, "batch"],
        mask: Bool[Array, "batch"],
    ) -> "Sums":
        """The sums of one batch; examples where `mask` is false are padding."""
        ranks = jnp.where(mask, label_ranks(logits, labels), logits.shape[-1] + 5)
        return cls(
            loss=jnp.where(mask, losses, 0).sum(),
            top1=(ranks < 1).sum(dtype=jnp.int32),
            top5=(ranks < 5).sum(dtype=jnp.int32),
            count=mask.sum(dtype=jnp.int32),
        )

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), self, other)

    def averages(self) -> dict[str, float]:
        """Loss, top1 and top5 an example, as Python numbers. Waits for the device."""
        loss, top1, top5, count = (
            value.item() for value in jax.device_get((self.loss, self.top1, self.top5, self.count))
        )
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnSums:
    """As `Sums`, of figures that the caller chose.

    Attributes:
      loss: sum of the losses.
      count: examples, int32.
      figures: sums by name.
      roots: figures whose average is told as its square root.
    """

    loss: jax.Array
    count: jax.Array
    figures: dict[str, jax.Array]
    roots: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    @classmethod
    def zeros(
        cls, dtype: jnp.dtype, names: Iterable[str], roots: tuple[str, ...] = ()
    ) -> "OwnSums":
        """Nothing counted yet; `dtype` is that of the sums, an array for each."""
        figures = {name: jnp.zeros((), dtype) for name in names}
        return cls(jnp.zeros((), dtype), jnp.zeros((), jnp.int32), figures, roots)

    @classmethod
    def of_batch(
        cls,
        losses: Float[Array, "batch"],
        figures: Mapping[str, Array],
        mask: Bool[Array, "batch"],
        roots: tuple[str, ...] = (),
    ) -> "OwnSums":
        """The sums of one batch; examples where `mask` is false are padding."""

        def total(values: Array) -> Array:
            return jnp.where(mask, values, 0).sum(dtype=losses.dtype)

        sums = jax.tree.map(total, dict(figures))
        return cls(total(losses), mask.sum(dtype=jnp.int32), sums, roots)

    def __add__(self, other: "OwnSums") -> "OwnSums":
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), self, other)

    def averages(self) -> dict[str, float]:
        """The loss and the figures an example, as Python numbers. Waits for the device."""
        found = jax.device_get(self)
        count = found.count.item()
        means = {k: v.item() / count for k, v in {"loss": found.loss, **found.figures}.items()}
        return means | {name: math.sqrt(means[name]) for name in self.roots}


AnySums = Sums | OwnSums
# What a figure of a whole split is computed from: the model's prediction and the labels, (N, ...).
OfAll = Callable[[np.ndarray, np.ndarray], dict[str, float]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Collected:
    """Sums, and beside them each example's prediction and label.

    Attributes:
      sums: of the examples so far.
      of_all: figures that are no averages, of all examples together.
      seen: prediction, label and mask of each batch.
    """

    sums: AnySums
    of_all: OfAll = dataclasses.field(metadata={"static": True})
    seen: tuple[Any, ...] = ()

    @property
    def count(self) -> jax.Array:
        """Examples so far."""
        return self.sums.count

    def averages(self) -> dict[str, float]:
        """The averages an example, and the figures of all. Waits for the device."""
        predictions, labels, masks = map(
            np.concatenate, zip(*jax.device_get(self.seen), strict=True)
        )
        return self.sums.averages() | self.of_all(predictions[masks], labels[masks])


EvalSums = AnySums | Collected
