"""Attention as heat maps over images: a rollout, a block, or the layers that make T2T tokens."""

from typing import NamedTuple

import jax
import numpy as np

from vit_jax.inspect.attention import (
    attention_maps,
    attention_rollout,
    class_attention,
    token_attention_maps,
)
from vit_jax.layers.soft_splits import soft_split_windows
from vit_jax.models.base import VisionModel

METHODS = ("rollout", "last", "tokens")


class HeatMap(NamedTuple):
    """One map for each image.

    Attributes:
      caption: what it shows.
      weights: (B, rows, columns), in multiples of what each patch would get if all got the same.
      mark: (row, column) in pixels of the token whose attention it is; None for no single token.
    """

    caption: str
    weights: np.ndarray
    mark: tuple[float, float] | None = None


def heat_maps(
    model: VisionModel, images: jax.Array, method: str, *, heads: bool = False
) -> list[HeatMap]:
    """The heat maps of a method.

    Args:
      model: any.
      images: (B, H, W, C), normalised, of the model's size.
      method: "rollout" (over all blocks); "last" or the number of a block from 0, which is what
        the class token attends to there, or all patches in the mean where there is none; "tokens"
        (of the two layers of a T2T token module: of its middle token, and of all in the mean).
      heads: each head by itself, in place of their mean; not of a rollout nor of "tokens".

    Raises:
      ValueError: an unknown method or block; heads of what has none; "tokens" of a model whose
        tokens are not made by attention.
    """
    if heads and method in ("rollout", "tokens"):
        raise ValueError(f"{method!r} has no heads: wanted 'last' or the number of a block")
    if method == "tokens":
        return _token_heat_maps(model, images)
    maps = jax.jit(lambda images: attention_maps(model, images))(images)
    known = model.prefix_tokens[: model.num_block_prefix_tokens]
    query = "class" if "class" in known else "mean"
    whose = "class token" if query == "class" else "mean patch"
    size = (images.shape[1], images.shape[2])
    if method == "rollout":
        rolled = attention_rollout(maps)
        weights = class_attention(rolled, model, query=query, image_size=size)
        return [HeatMap(f"rollout over {len(maps)} blocks", _times_uniform(weights, rolled))]
    block = len(maps) - 1 if method == "last" else _block(method, len(maps))
    attention = list(maps.values())[block]
    weights = class_attention(attention, model, query=query, image_size=size)
    weights = _times_uniform(weights, attention)  # (B, heads, rows, columns)
    if heads:
        return [HeatMap(f"block {block}, head {i}", weights[:, i]) for i in range(weights.shape[1])]
    return [HeatMap(f"block {block}: {whose},\nmean of {weights.shape[1]} heads", weights.mean(1))]


def _block(method: str, depth: int) -> int:
    if not method.isdecimal() or int(method) >= depth:
        raise ValueError(
            f"method: wanted {', '.join(METHODS)}, or the number of a block from 0 to {depth - 1}, "
            f"got {method!r}"
        )
    return int(method)


def _times_uniform(weights: jax.Array, attention: jax.Array) -> np.ndarray:
    """Weights of patches in multiples of one over the number of all tokens."""
    return np.asarray(weights, np.float64) * attention.shape[-1]


def _token_heat_maps(model: VisionModel, images: jax.Array) -> list[HeatMap]:
    maps = jax.jit(lambda images: token_attention_maps(model, images))(images)
    found = []
    splits = soft_split_windows((images.shape[1], images.shape[2]))
    for number, attention in enumerate(maps.values()):
        split = splits[number]
        rows, columns = split.grid
        middle = (rows // 2, columns // 2)
        top, left, tall, wide = split.box(*middle)
        mark = (top + (tall - 1) / 2, left + (wide - 1) / 2)
        weights = _times_uniform(attention[:, 0], attention)  # (B, N, N)
        of_one = weights[:, middle[0] * columns + middle[1]]
        name = f"soft split {number + 1},\n"
        for caption, shown, at in (
            ("the marked token", of_one, mark),
            ("all tokens, mean", weights.mean(axis=1), None),
        ):
            found.append(HeatMap(name + caption, shown.reshape(-1, rows, columns), at))
    return found
