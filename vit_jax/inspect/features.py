"""Outputs of a model's layers, by name."""

import fnmatch
from collections.abc import Mapping, Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.inspect.recorder import Event, Recorder, plain
from vit_jax.models.base import VisionModel


def layer_outputs(
    model: VisionModel,
    images: Float[Array, "batch height width channels"],
    names: str | Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """Returns what modules of the model give for images, in eval mode, in the order of the calls.

    The model is not changed. May be traced by `jax.jit`, which computes what is asked for alone.
    For the outputs of blocks see also `model.forward_intermediates`.

    Args:
      model: any; its layers may be scanned or rematerialised.
      images: (B, H, W, C), floating point, normalised.
      names: PyTorch's paths of modules or those of the attributes here, part by part with `*`, `?`
        and `[...]`: "blocks.*" are the blocks, "blocks.*.attn" their attention. None is all.

    Returns:
      Arrays by PyTorch's path, the second call of a module under "...#1". Tokens are (B, N, D),
      maps (B, H, W, C).

    Raises:
      ValueError: images that the model does not take; a name that no module has that runs: with the
        names that there are.
    """
    watched = plain(model)
    watched.eval()
    # Before the modules are watched: the same objects.
    attributes = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(watched)}
    outputs: dict[str, jax.Array] = {}
    attribute_of: dict[str, str] = {}

    def observe(event: Event, value: jax.Array) -> None:
        if event.entered is None and event.path and not event.part:
            outputs[event.path] = value
            attribute_of[event.path] = attributes[id(event.module)]

    Recorder(observe).watch(watched)(images)
    if names is None:
        return outputs
    patterns = [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not _matching(pattern, attribute_of):
            raise ValueError(
                f"no layer of this {type(model).__name__} is named {pattern!r}; it has "
                f"{', '.join(attribute_of)}"
            )
    wanted = {path for pattern in patterns for path in _matching(pattern, attribute_of)}
    return {path: value for path, value in outputs.items() if path in wanted}


def _matching(pattern: str, attribute_of: Mapping[str, str]) -> set[str]:
    """The paths that a pattern names, by PyTorch's names or the attributes'."""
    parts = pattern.split(".")

    def names(path: str) -> bool:
        have = path.split(".")
        return len(have) == len(parts) and all(map(fnmatch.fnmatchcase, have, parts))

    return {path for path, attribute in attribute_of.items() if names(path) or names(attribute)}
