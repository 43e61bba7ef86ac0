"""What a module says of itself, under whichever of the field's names."""

from collections.abc import Iterator
from typing import Any

SYNONYMS: dict[str, tuple[str, ...]] = {
    "num_heads": (
        "num_heads",
        "n_heads",
        "n_head",
        "nheads",
        "nhead",
        "heads",
        "num_attention_heads",
        "num_head",
        "h",
    ),
    "scale": ("scale", "sm_scale", "softmax_scale", "scaling", "scale_factor"),
    "epsilon": ("epsilon", "eps", "norm_eps", "layer_norm_eps", "variance_epsilon"),
    "patch_size": ("patch_size", "patch", "patches", "p"),
}
_CONFIGS = ("config", "cfg", "args")
_MOST_HEADS = 64


def attribute(module: Any, name: str) -> Any:
    """A plain value of a module, or of its config, under a name or one of its synonyms."""
    holders = [module, *(getattr(module, config, None) for config in _CONFIGS)]
    for holder in holders:
        for synonym in SYNONYMS[name]:
            value = getattr(holder, synonym, None)
            if isinstance(value, int | float | tuple | list) and not isinstance(value, bool):
                return value
    return None


def numbers_of_heads(module: Any, width: int, seen: int | None) -> Iterator[int]:
    """How many heads an attention may have: what it says, else what fits.

    Args:
      width: of its output.
      seen: the number that a value itself shows, (B, heads, N, N).
    """
    said = attribute(module, "num_heads")
    if isinstance(said, int) and said > 0:
        yield said
    elif seen is not None:
        yield seen
    else:
        yield from (n for n in range(1, min(width, _MOST_HEADS) + 1) if width % n == 0)
