"""Finds the state dict in a checkpoint, among optimizers, options and averaged weights."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.models.registry import DESIGNS
from vit_jax.weights.dialects import DIALECTS
from vit_jax.weights.torch_globals import UnreadObject

# In the order of preference where a file has several.
RAW_KEYS = (
    *("state_dict", "model_state_dict", "model", "model_state", "module", "net", "params"),
    *("network", "student"),
)
EMA_KEYS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "module_ema", "params_ema"),
    *("ema_model", "teacher"),
)
# Of DataParallel and SWA, of Lightning, of what users call their model.
PREFIXES = ("module.", "model.", "backbone.", "net.", "network.")
# Of torch.compile, FSDP and activation checkpointing, anywhere in a name.
_INFIXES = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_AVERAGES = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
# An array that every model has once: what stands before it stands before all.
_POSITIONS = [re.escape(design.position_name) for design in DESIGNS]
_POSITIONS += [dialect.positions for dialect in DIALECTS if dialect.positions]
_ROOT = re.compile(rf"(?:^|\.)((?:{'|'.join(dict.fromkeys(_POSITIONS))})$)")
_MAX_LEVELS = 4

Rules = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class UnwrapReport:
    """Where the weights lay, and what was left.

    Attributes:
      source: keys that lead to the state dict, joined by dots; "" where the file is one.
      is_ema: whether these are averaged weights.
      others: places of further state dicts in the file, which were not taken.
      prefix: what the names began with and no longer do, such as "module.".
      infixes: what wrappers had put into names, such as "_orig_mod.".
      left: what else the file holds (optimizer, args, epoch, ...), by its keys joined by dots; of
        what stands beside the prefix its first part, as "criterion.*".
      not_tensors: entries of the state dict that are no arrays, left out.
    """

    source: str
    is_ema: bool
    others: tuple[str, ...]
    prefix: str
    infixes: tuple[str, ...]
    left: tuple[str, ...]
    not_tensors: tuple[str, ...]


def _renamed(places: list["_Place"], rules: Rules) -> list["_Place"]:
    """The state dicts with `re.sub` of each (pattern, replacement) on their names, in turn.

    Raises:
      ValueError: a pattern that is none, or fits no name of any.
    """
    for pattern, replacement in rules:
        try:
            renamed = [place.renamed(pattern, replacement) for place in places]
        except (re.error, IndexError) as error:
            raise ValueError(f"rename {pattern!r} to {replacement!r}: {error}") from error
        if all(new.names == old.names for new, old in zip(renamed, places, strict=True)):
            some = ", ".join(map(str, places[0].names[:3]))
            raise ValueError(f"rename {pattern!r}: it changes none of the names ({some}, ...)")
        places = renamed
    return places


def unwrap_state_dict(
    checkpoint: Any, *, ema: bool | None = None, rename: Rules = ()
) -> tuple[dict[str, np.ndarray], UnwrapReport]:
    """The state dict of a checkpoint, its names without the prefixes that wrappers add.

    Args:
      checkpoint: nested plain containers with NumPy arrays, as `read_torch_file` returns them.
      ema: True for the averaged weights, False for the raw ones; None for the raw ones, or the
        averaged ones where the file has no others.
      rename: (pattern, replacement) pairs for the names in the file, applied one after the other.

    Returns:
      Name to array, and a report.

    Raises:
      ValueError: there is no state dict, none of the kind asked for, or several of that kind in
        one; the message lists what there is.
    """
    places = list(_find(checkpoint, (), is_ema=False))
    if not places:
        raise ValueError(f"the checkpoint holds no state dict: {_describe(checkpoint)}")
    found = [part for place in _renamed(places, rename) for part in _parts(place)]
    wanted = [place for place in found if ema is None or place.is_ema == ema]
    if not wanted:
        raise ValueError(
            f"the checkpoint holds no {'averaged' if ema else 'raw'} weights (ema={ema}), only: "
            f"{', '.join(place.name for place in found)}"
        )
    chosen = min(wanted, key=lambda place: place.is_ema)  # the first of the raw ones, if any
    if chosen.is_ema and ema is None:
        _refuse_unread(checkpoint)
    rivals = [p.prefix for p in wanted if (p.path, p.is_ema) == (chosen.path, chosen.is_ema)]
    if len(rivals) > 1:
        rivals.sort(key=lambda prefix: -sum(name.startswith(prefix) for name in chosen.names))
        raise ValueError(
            f"the state dict holds several models, under {', '.join(rivals)}: keep one by its "
            f"prefix (vit-jax convert --rename '^{re.escape(rivals[0])}=')"
        )
    if chosen.has_twins:
        raise ValueError(f"rename {', '.join(p for p, _ in rename)}: it gives two arrays one name")
    arrays = chosen.arrays
    short = {_INFIXES.sub("", name): array for name, array in arrays.items()}
    if len(short) < len(arrays):
        raise ValueError("two of its arrays have one name without what wrappers put into it")
    inside = {
        name[len(chosen.prefix) :]: array
        for name, array in short.items()
        if name.startswith(chosen.prefix) and not name.startswith(chosen.not_under)
    }
    taken = tuple(place.prefix for place in found if place.path == chosen.path)
    inner = tuple(p for p in chosen.not_under if p not in taken)
    beside = dict.fromkeys(
        _group(name, chosen.prefix)
        for name in short
        if name.startswith(inner) or not name.startswith(taken)
    )
    report = UnwrapReport(
        source=".".join(chosen.path),
        is_ema=chosen.is_ema,
        others=tuple(place.name for place in found if place is not chosen),
        prefix=chosen.prefix,
        infixes=tuple(dict.fromkeys(part for name in arrays for part in _INFIXES.findall(name))),
        left=(*_left(checkpoint, (), [place.path for place in found]), *beside),
        not_tensors=tuple(str(name) for name in chosen.mapping if name not in arrays),
    )
    return inside, report


def _group(name: str, prefix: str) -> str:
    """What stands beside `prefix`, up to where it parts from it: "module.head.*"."""
    parts, own = name.split("."), prefix.split(".")
    shared = 1 + next((i for i, part in enumerate(parts) if part != own[i]), len(parts))
    return ".".join(parts) if shared >= len(parts) else ".".join((*parts[:shared], "*"))


@dataclasses.dataclass(frozen=True, eq=False)
class _Place:
    path: tuple[str, ...]
    mapping: Mapping[Any, Any]
    is_ema: bool
    prefix: str = ""
    not_under: tuple[str, ...] = ()  # prefixes of further models beneath this one
    has_twins: bool = False  # a rename gave two of its arrays one name

    @property
    def name(self) -> str:
        return ".".join(self.path) if not self.prefix else ".".join((*self.path, self.prefix))

    @property
    def names(self) -> list[Any]:
        return list(self.mapping)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return {
            name: value
            for name, value in self.mapping.items()
            if isinstance(name, str) and isinstance(value, np.ndarray)
        }

    def renamed(self, pattern: str, replacement: str) -> "_Place":
        mapping = {
            re.sub(pattern, replacement, name) if isinstance(name, str) else name: value
            for name, value in self.mapping.items()
        }
        has_twins = self.has_twins or len(mapping) < len(self.mapping)
        return dataclasses.replace(self, mapping=mapping, has_twins=has_twins)


def _find(node: Any, path: tuple[str, ...], *, is_ema: bool) -> Iterator[_Place]:
    """The state dicts under a node's wrapper keys, and the node itself if it holds arrays.

    Where there are both, the node itself only if it is a whole model.
    """
    if not isinstance(node, dict) or len(path) > _MAX_LEVELS:
        return
    own = _Place(path, node, is_ema or _AVERAGES in node)
    is_model = any(_ROOT.search(name) for name in own.arrays)
    if is_model:
        yield own
    inner = False
    for key in (*RAW_KEYS, *EMA_KEYS):
        if isinstance(node.get(key), dict):
            for place in _find(node[key], (*path, key), is_ema=is_ema or key in EMA_KEYS):
                inner = True
                yield place
    if not inner and not is_model and own.arrays:
        yield own


def _parts(place: _Place) -> list[_Place]:
    """The models in a state dict, each with the prefix of its names: mostly one."""
    names = {_INFIXES.sub("", name) for name in place.arrays}
    roots = {name[: found.start(1)] for name in names if (found := _ROOT.search(name))}
    if not roots:
        return [dataclasses.replace(place, prefix=_common_prefix(names))]
    parts = []
    for root in sorted(roots):
        beneath = tuple(sorted(r for r in roots if r != root and r.startswith(root)))
        is_ema = (
            place.is_ema
            or any(part in EMA_KEYS for part in root.split("."))
            or root.removesuffix("module.") + _AVERAGES in names
        )
        # A model within another, such as a decoder, is no further one; its average is.
        if is_ema or not any(r != root and root.startswith(r) for r in roots):
            part = dataclasses.replace(place, prefix=root, is_ema=is_ema, not_under=beneath)
            parts.append(part)
    return parts


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


def _common_prefix(names: Collection[str]) -> str:
    prefix = ""
    while True:
        more = [p for p in PREFIXES if all(name.startswith(prefix + p) for name in names)]
        if not more:
            return prefix
        prefix += more[0]


def _refuse_unread(checkpoint: Any) -> None:
    """Raises ValueError where the raw weights are an object that cannot be read."""
    for key in RAW_KEYS:
        if isinstance(value := checkpoint.get(key), UnreadObject):
            raise ValueError(
                f"its {key!r} is {value}, and only its averages can be read: save its "
                "state_dict() with torch.save, or take the averages (ema=True)"
            )


def _describe(checkpoint: Any) -> str:
    if not isinstance(checkpoint, dict):
        return f"it is a {type(checkpoint).__name__}, wanted a dict of arrays"
    unread = [f"{k!r} is {v}" for k, v in checkpoint.items() if isinstance(v, UnreadObject)]
    if unread:
        return f"{', '.join(unread[:3])}; save its state_dict() with torch.save"
    keys = [str(key)[:60] for key in checkpoint]
    shown = ", ".join(keys[:20]) + (", ..." if len(keys) > 20 else "")
    return (
        f"its keys are [{shown}]; wanted names of arrays, or one of {', '.join(RAW_KEYS)}, "
        f"{', '.join(EMA_KEYS)} that leads to them"
    )
