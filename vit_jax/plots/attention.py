"""What a model attends to, as heat maps over the images."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.inference.attention import (
    attention_maps,
    attention_rollout,
    class_attention,
    token_attention_maps,
)
from vit_jax.models.base import VisionModel
from vit_jax.models.t2t_vit import TokensToTokenModel
from vit_jax.plots.figure import COLOURS, new_figure, save_figure, show_image
from vit_jax.plots.soft_splits import soft_split_windows

METHODS = ("rollout", "last", "tokens")
_INCHES = 2.4  # of a picture
_ACROSS = 6  # pictures in a row
_BRIGHTEST = 0.98  # quantile of a map from which on it has the last colour


class Panel(NamedTuple):
    """One heat map for each image.

    Attributes:
      caption: what it is.
      weights: (B, rows, columns), in multiples of what each would get if all got the same.
      mark: (row, column) in pixels of whose attention it is; None where it is no place's.
    """

    caption: str
    weights: np.ndarray
    mark: tuple[float, float] | None = None


def attention_panels(
    model: VisionModel, images: jax.Array, method: str, *, heads: bool = False
) -> list[Panel]:
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
        return _token_panels(model, images)
    maps = jax.jit(lambda images: attention_maps(model, images))(images)
    query = "class" if "class" in model.prefix_tokens else "mean"
    whose = "class token" if query == "class" else "mean patch"
    size = (images.shape[1], images.shape[2])
    if method == "rollout":
        rolled = attention_rollout(maps)
        weights = class_attention(rolled, model, query=query, image_size=size)
        return [Panel(f"rollout over {len(maps)} blocks", _times_uniform(weights, rolled))]
    block = len(maps) - 1 if method == "last" else _block(method, len(maps))
    attention = list(maps.values())[block]
    weights = class_attention(attention, model, query=query, image_size=size)
    weights = _times_uniform(weights, attention)  # (B, heads, rows, columns)
    if heads:
        return [Panel(f"block {block}, head {i}", weights[:, i]) for i in range(weights.shape[1])]
    return [Panel(f"block {block}: {whose},\nmean of {weights.shape[1]} heads", weights.mean(1))]


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


def _token_panels(model: VisionModel, images: jax.Array) -> list[Panel]:
    maps = jax.jit(lambda images: token_attention_maps(model, images))(images)
    assert isinstance(model, TokensToTokenModel)  # no other has such maps
    panels = []
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
            panels.append(Panel(name + caption, shown.reshape(-1, rows, columns), at))
    return panels


def draw_attention(
    images: np.ndarray, names: Sequence[str], panels: Sequence[Panel], title: str, out: pathlib.Path
) -> None:
    """Draws each image and the heat maps over it; the maps of an image share their colours.

    Args:
      images: (B, H, W, C) uint8.
      names: what stands above each.
      panels: of `attention_panels` for these images.
      title: above the picture.
      out: the file to write, PNG.

    Raises:
      OSError: it cannot be written.
    """
    count, height, width, _ = images.shape
    columns = min(_ACROSS, 1 + len(panels))
    lines = -(-(1 + len(panels)) // columns)  # of an image
    figure = new_figure(
        _INCHES * columns * width / height + 1.0, (_INCHES + 0.55) * lines * count + 0.4,
        "constrained",
    )  # fmt: skip
    figure.suptitle(title, fontsize=11)
    parts = figure.subfigures(count, 1, squeeze=False)[:, 0]
    for number, (part, image, name) in enumerate(zip(parts, images, names, strict=True)):
        every = part.subplots(lines, columns, squeeze=False).ravel()
        for axes in every:
            axes.set_axis_off()
        show_image(every[0], image)
        every[0].set_title(name, fontsize=9)
        # A few patches may get many times what the others get: these would be all one colour.
        most = max(float(np.quantile(panel.weights[number], _BRIGHTEST)) for panel in panels)
        heats = []
        grey = np.asarray(image.mean(axis=2, keepdims=True), np.uint8)
        for axes, panel in zip(every[1:], panels, strict=False):
            show_image(axes, grey)
            heat = axes.imshow(
                panel.weights[number], cmap="inferno", vmin=0, vmax=most, alpha=0.65,
                interpolation="bilinear", extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )  # fmt: skip
            heats.append(heat)
            axes.set_title(panel.caption, fontsize=9)
            if panel.mark is not None:
                axes.plot(*panel.mark[::-1], "+", color=COLOURS[5], markersize=12, mew=2.5)
        label = "attention (1: the same for all)"
        part.colorbar(heats[0], ax=list(every), label=label, shrink=0.9, extend="max")
    save_figure(figure, out, dpi=100)


def guesses(model: VisionModel, images: jax.Array, class_names: Sequence[str]) -> list[str]:
    """For each image the likeliest class and its probability, in words; "" without classes."""
    if not model.num_classes:
        return [""] * len(images)
    logits = jax.jit(lambda images: model(images))(images)
    logits = logits if logits.ndim == 2 else logits.mean(axis=1)  # of global_pool "": of all tokens
    probabilities = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=-1))
    return [f"{class_names[row.argmax()]} ({row.max():.0%})" for row in probabilities]
