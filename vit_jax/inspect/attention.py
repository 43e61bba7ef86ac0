"""What a model attends to: the weights of its attention, and what they come to over all blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.inspect.recorder import Event, Recorder, plain
from vit_jax.layers.encoder_layer import TransformerEncoderLayer
from vit_jax.layers.performer import TokenPerformer
from vit_jax.layers.token_transformer import TokenAttention
from vit_jax.models.base import VisionModel

_TOKEN_MODULES = (TokenAttention, TokenPerformer)
_FUSIONS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def attention_maps(
    model: VisionModel, images: Float[Array, "batch height width channels"]
) -> dict[str, Float[Array, "batch heads tokens tokens"]]:
    """Returns the attention weights of every block, in the order in which the blocks run.

    They are computed from the recorded inputs of the attention layers, in eval mode and in float32
    or wider; the model itself is not changed. Softmax probabilities, or, of a layer in linear time,
    the weights that it implies: w such that its output is w @ v. May be traced by `jax.jit`.

    Args:
      model: any; its layers may be scanned or rematerialised.
      images: (B, H, W, C), floating point, normalised.

    Returns:
      (B, heads, N, N) by PyTorch's path of the attention layer, such as "blocks.0.attn"; the second
      call of a shared layer is "...#1". Row i is what token i attends to; class, distillation and
      register tokens stand first (`model.prefix_tokens`). Of a model that attends inside of windows
      (B * windows, heads, N, N): N are the tokens of a window, see `layers.windows`.

    Raises:
      ValueError: images that the model does not take; a model that attends across the batch.
    """
    return _weights(model, images, lambda module: not isinstance(module, _TOKEN_MODULES))


def token_attention_maps(
    model: VisionModel, images: Float[Array, "batch height width channels"]
) -> dict[str, Float[Array, "batch 1 tokens tokens"]]:
    """Returns the attention weights of a T2T token module's two layers: see `attention_maps`.

    Their tokens are those of the first and of the second soft split, row by row, without a class
    token: `model.tokens_to_token.grids` has their rows and columns. At 224 pixels the first map is
    3136 x 3136, 39 MB an image.

    Raises:
      ValueError: images that the model does not take; a model whose tokens are not made by
        attention.
    """
    maps = _weights(model, images, lambda module: isinstance(module, _TOKEN_MODULES))
    if not maps:
        raise ValueError(
            f"this {type(model).__name__} makes its tokens without attention: wanted a T2T-ViT "
            "with tokens_type 'performer' or 'transformer'"
        )
    return maps


def _weights(
    model: VisionModel, images: jax.Array, wanted: Callable[[nnx.Module], bool]
) -> dict[str, jax.Array]:
    for _, module in nnx.iter_modules(model):
        if isinstance(module, TransformerEncoderLayer) and not module.batch_first:
            raise ValueError(
                "this model attends across the batch (batch_first=False): none of its attention is "
                "over the tokens of an image"
            )
    calls: list[tuple[str, Any, tuple[jax.Array, ...]]] = []

    def observe(event: Event, value: jax.Array) -> None:
        del value
        is_left = event.entered is None and not event.part
        if is_left and hasattr(event.module, "attention_weights") and wanted(event.module):
            calls.append((event.path, event.module, event.frame.inputs))

    watched = plain(model)
    watched.eval()
    Recorder(observe).watch(watched).forward_features(images)
    return {path: module.attention_weights(*inputs) for path, module, inputs in calls}


def attention_rollout(
    maps: Mapping[str, jax.Array] | Sequence[jax.Array],
    *,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    residual: float = 0.5,
) -> Float[Array, "batch tokens tokens"]:
    """How much of each input token is in each output token, by attention alone.

    Abnar & Zuidema 2020 (2005.00928): with A the weights of a block, its heads fused, the blocks'
    A' = (1 - residual) A + residual I, each row divided by its sum, are multiplied, the last
    leftmost.

    Args:
      maps: of `attention_maps`: (B, heads, N, N), the first block first.
      head_fusion: "mean" (the paper's), "max" or "min" over the heads.
      discard_ratio: fraction of the entries of each A, the smallest of an image's, that count as
        zero, at least 0 and below 1; entries equal to the smallest that is kept are kept.
      residual: weight of the skip connection, at least 0 and below 1.

    Returns:
      (B, N, N), of rows that sum to one: row i is what output token i is made of.

    Raises:
      ValueError: no maps, or maps of several shapes; an unknown fusion; a number out of its range;
        discard_ratio without a residual, which could leave a row without weights.
    """
    layers = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
    shapes = sorted({tuple(weights.shape) for weights in layers})
    images_and_tokens = {(shape[0], *shape[2:]) for shape in shapes}
    if len(images_and_tokens) != 1 or any(len(s) != 4 or s[2] != s[3] for s in shapes):
        raise ValueError(
            "wanted the attention maps of at least one block, (B, heads, N, N) with the same B and "
            "N in all (blocks that attend within windows, as Swin's, have no rollout), got shapes "
            f"{shapes}"
        )
    if head_fusion not in _FUSIONS:
        raise ValueError(f"head_fusion is one of {', '.join(_FUSIONS)}, got {head_fusion!r}")
    for name, value in (("discard_ratio", discard_ratio), ("residual", residual)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    if discard_ratio and not residual:
        raise ValueError("discard_ratio may leave a row without weights: it needs a residual > 0")

    rollout = None
    for weights in layers:
        fused = _FUSIONS[head_fusion](weights, axis=1)  # (B, N, N)
        if discard_ratio:
            ordered = jnp.sort(fused.reshape(fused.shape[0], -1), axis=-1)
            smallest_kept = ordered[:, int(ordered.shape[-1] * discard_ratio)]
            fused = jnp.where(fused < smallest_kept.reshape(-1, 1, 1), 0, fused)
        identity = jnp.eye(fused.shape[-1], dtype=fused.dtype)[None]
        mixed = (1 - residual) * fused + residual * identity
        mixed = mixed / mixed.sum(axis=-1, keepdims=True)
        # In full: a product of as many matrices as blocks, on devices that round by default.
        rollout = mixed if rollout is None else jnp.matmul(mixed, rollout, precision="highest")
    assert rollout is not None
    return rollout


def class_attention(
    attention: Float[Array, "*maps tokens tokens"],
    model: VisionModel,
    *,
    query: str = "class",
    image_size: tuple[int, int] | None = None,
) -> Float[Array, "*maps rows columns"]:
    """Returns what one token attends to, over the patches of the image.

    Args:
      attention: of `attention_rollout`, or a block's of `attention_maps` (its heads stay apart).
      model: whose attention it is.
      query: a token before the patches by its name in `model.prefix_tokens` (of several registers
        the first), or "mean": the mean over the patches' own rows, for models that have no class
        token or pool without it.
      image_size: (height, width) of the images, in pixels; None is `model.img_size`.

    Returns:
      (..., rows, columns): the weights of the patches; what went to tokens before them is left out,
      so that they sum to less than one.

    Raises:
      ValueError: the model has no such token; the attention is not of this model and image size.
    """
    rows, columns = model.token_grid(*(image_size or model.img_size))
    prefix = model.num_block_prefix_tokens
    tokens = prefix + rows * columns
    known = model.prefix_tokens[:prefix]
    if tuple(attention.shape[-2:]) != (tokens, tokens):
        raise ValueError(
            f"wanted attention (..., {tokens}, {tokens}): {prefix} tokens and {rows}x{columns} "
            f"patches, got {tuple(attention.shape)}; images of another size need image_size"
        )
    if query == "mean":
        weights = attention[..., prefix:, :].mean(axis=-2)
    elif query in known:
        weights = attention[..., known.index(query), :]
    else:
        choices = ", ".join(dict.fromkeys((*known, "mean")))
        raise ValueError(f"this model has no {query!r} token to ask: query is one of {choices}")
    return weights[..., prefix:].reshape(*attention.shape[:-2], rows, columns)
