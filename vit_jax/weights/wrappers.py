"""Finds the state dict in a checkpoint, among optimizers, options and averaged weights."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

# In the order of preference where a file has several.
RAW_KEYS = ("state_dict", "model_state_dict", "model", "model_state", "module", "net", "params")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "module_ema", "params_ema")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, of torch.compile, of Lightning
_MAX_LEVELS = 4


@dataclasses.dataclass(frozen=True)
class UnwrapReport:
    """Where the weights lay, and what was left.

    Attributes:
      source: keys that lead to the state dict, joined by dots; "" where the file is one.
      is_ema: whether these are averaged weights.
      others: places of further state dicts in the file, which were not taken.
      prefix: what all names began with and no longer do, such as "module.".
      left: what else the file holds (optimizer, args, epoch, ...), by its keys joined by dots.
      not_tensors: entries of the state dict that are no arrays, left out.
    """

    source: str
    is_ema: bool
    others: tuple[str, ...]
    prefix: str
    left: tuple[str, ...]
    not_tensors: tuple[str, ...]


def unwrap_state_dict(
    checkpoint: Any, *, ema: bool | None = None
) -> tuple[dict[str, np.ndarray], UnwrapReport]:
    """The state dict of a checkpoint, its names without the prefixes that wrappers add.

    Args:
      checkpoint: nested plain containers with NumPy arrays, as `read_torch_file` returns them.
      ema: True for the averaged weights, False for the raw ones; None for the raw ones, or the
        averaged ones where the file has no others.

    Returns:
      Name to array, and a report.

    Raises:
      ValueError: there is no state dict, or none of the kind asked for; the message lists what
        there is.
    """
    found = list(_find(checkpoint, (), is_ema=False))
    if not found:
        raise ValueError(f"the checkpoint holds no state dict: {_describe(checkpoint)}")
    wanted = [place for place in found if ema is None or place.is_ema == ema]
    if not wanted:
        raise ValueError(
            f"the checkpoint holds no {'averaged' if ema else 'raw'} weights (ema={ema}), only: "
            f"{', '.join(place.name for place in found)}"
        )
    chosen = min(wanted, key=lambda place: place.is_ema)  # the first of the raw ones, if any
    arrays = {
        name: value
        for name, value in chosen.mapping.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    prefix = _common_prefix(arrays)
    report = UnwrapReport(
        source=chosen.name,
        is_ema=chosen.is_ema,
        others=tuple(place.name for place in found if place is not chosen),
        prefix=prefix,
        left=tuple(_left(checkpoint, (), [place.path for place in found])),
        not_tensors=tuple(str(name) for name in chosen.mapping if name not in arrays),
    )
    return {name[len(prefix) :]: array for name, array in arrays.items()}, report


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    path: tuple[str, ...]
    mapping: dict[Any, Any]
    is_ema: bool

    @property
    def name(self) -> str:
        return ".".join(self.path)


def _find(node: Any, path: tuple[str, ...], *, is_ema: bool) -> Iterator[_Place]:
    """The state dicts under a node's wrapper keys, else the node itself if it holds arrays."""
    if not isinstance(node, dict) or len(path) > _MAX_LEVELS:
        return
    inner = False
    for key in (*RAW_KEYS, *EMA_KEYS):
        if isinstance(node.get(key), dict):
            for place in _find(node[key], (*path, key), is_ema=is_ema or key in EMA_KEYS):
                inner = True
                yield place
    if not inner and any(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in node.items()
    ):
        yield _Place(path, node, is_ema)


def _left(node: Any, path: tuple[str, ...], taken: list[tuple[str, ...]]) -> Iterator[str]:
    """What lies beside the state dicts, on the way to them."""
    if path in taken:
        return
    for key, value in node.items():
        here = (*path, str(key))
        if any(place[: len(here)] == here for place in taken):
            yield from _left(value, here, taken)
        else:
            yield ".".join(here)


def _common_prefix(arrays: dict[str, np.ndarray]) -> str:
    prefix = ""
    while True:
        more = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in arrays)]
        if not more:
            return prefix
        prefix += more[0]


def _describe(checkpoint: Any) -> str:
    if not isinstance(checkpoint, dict):
        return f"it is a {type(checkpoint).__name__}, wanted a dict of arrays"
    keys = [str(key)[:60] for key in checkpoint]
    shown = ", ".join(keys[:20]) + (", ..." if len(keys) > 20 else "")
    return (
        f"its keys are [{shown}]; wanted names of arrays, or one of {', '.join(RAW_KEYS)}, "
        f"{', '.join(EMA_KEYS)} that leads to them"
    )
