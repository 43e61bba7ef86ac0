"""The engine of dialects: arrays under other libraries' names to a design's own, and back.

Each design states its dialects as data (`vit_jax.models.dialect`). Which one a file speaks is told
by its names; both directions come from the same rows.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.models.base import VisionModel
from vit_jax.models.dialect import Dialect, Name
from vit_jax.models.registry import DESIGNS

Arrays = dict[str, np.ndarray]

DIALECTS = tuple(dialect for design in DESIGNS for dialect in design.dialects)
_FLAX_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


class DialectError(ValueError):
    """Arrays that cannot be said in the other dialect."""


def dialect_of(keys: Iterable[str]) -> Dialect | None:
    """The dialect in which arrays of these names speak; None for the models' own names."""
    names = list(keys)
    return next((dialect for dialect in DIALECTS if _is_told(dialect, names)), None)


def _is_told(dialect: Dialect, names: Sequence[str]) -> bool:
    patterns = (dialect.told_by,) if isinstance(dialect.told_by, str) else dialect.told_by
    return all(any(re.search(pattern, name) for name in names) for pattern in patterns)


def to_own(
    arrays: Mapping[str, np.ndarray], notes: list[str] | None = None
) -> tuple[Arrays, str | None]:
    """The arrays under the design's own names, in PyTorch's layout, and the dialect they spoke.

    Arrays of no dialect are left as they are, and None is said.

    Args:
      arrays: by the names in a file.
      notes: takes what belongs to another part of the library's model, a line each.

    Raises:
      DialectError: see `translate`.
    """
    dialect = dialect_of(arrays)
    if dialect is not None and notes is not None:
        firsts = [_first_part(dialect, name) for name in arrays]
        for part in dialect.beside:
            if count := firsts.count(part):
                notes.append(f"{part}: {count} array{'s' * (count > 1)} of another part, left out")
    return (dict(arrays), None) if dialect is None else (translate(dialect, arrays), dialect.name)


def translate(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Arrays of a dialect under the design's own names, in PyTorch's layout.

    What has no place in the dialect keeps its name: the model will name it.

    Raises:
      DialectError: a part of what is one module here stands alone; two arrays have the same place;
        one has no layout of the dialect.
    """
    own: Arrays = {}
    for name, array in _unstacked(dialect, arrays):
        if _first_part(dialect, name) in dialect.beside:
            continue
        said, array = _to_own_entry(dialect, _without_prefix(dialect, name), array)
        if said in dialect.empty and array.size == 0:
            continue
        if said in own:
            raise DialectError(f"two of the arrays are {said}")
        own[said] = array
    return _join(dialect, _without_zeros(dialect, _split(dialect, _masked(dialect, own))))


def fields_told_by(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of the model that arrays tell, by the names in a file, beside their shapes.

    Raises:
      DialectError: what they tell no model here has.
    """
    dialect = dialect_of(arrays)
    if dialect is None or dialect.tells is None:
        return {}
    try:
        return dialect.tells(arrays)
    except ValueError as error:
        raise DialectError(str(error)) from error


def _masked(dialect: Dialect, arrays: Arrays) -> Arrays:
    """Multiplies arrays by their masks, which are then left out."""
    for template, mask in dialect.masked:
        for name in list(arrays):
            match = _pattern(mask).fullmatch(name)
            target = _filled(template, match.groups()) if match else ""
            if not match or target not in arrays:
                continue
            array, factor = arrays[target], arrays.pop(name)
            if factor.shape != array.shape:
                raise DialectError(f"{name}: wanted the shape {array.shape}, got {factor.shape}")
            arrays[target] = array * factor.astype(array.dtype)
    return arrays


def _without_zeros(dialect: Dialect, arrays: Arrays) -> Arrays:
    """Leaves out what there is not here, which has to be zero."""
    for template in dialect.zero:
        for name in [name for name in arrays if _pattern(template).fullmatch(name)]:
            if arrays.pop(name).any():
                raise DialectError(f"{name}: there is none here, and theirs is not zero")
    return arrays


def _first_part(dialect: Dialect, name: str) -> str:
    return re.split(r"[/.]", _without_prefix(dialect, name), maxsplit=1)[0]


def from_own(model: VisionModel[Any], arrays: Mapping[str, np.ndarray], name: str) -> Arrays:
    """The arrays of a model in the dialect of this name.

    Raises:
      DialectError: the design is not written in it, or it has no place for a field or an array.
    """
    dialect = dialect_for(model, name)
    said: Arrays = {}
    for own, array in _parted(dialect, {**arrays, **_empty(dialect, model, arrays)}).items():
        rows = (row for row in dialect.names if row.theirs)
        found = ((row, _pattern(row.own).fullmatch(own)) for row in rows)
        row, match = next(((row, match) for row, match in found if match), (None, None))
        if row is None or match is None:
            raise DialectError(f"{dialect.whose} has no place for {own}")
        parts = match.groups()
        if dialect.is_flax and row.own.endswith("."):
            leaf, array = _to_flax(parts[-1], array, row.layout, model.config.num_heads)
            parts = (*parts[:-1], leaf)
        elif row.layout:
            array = _with_shape(own, array, row.layout.split(" for ")[::-1])
        said[_filled(row.theirs, parts)] = np.ascontiguousarray(array)
    return said


def _empty(dialect: Dialect, model: VisionModel[Any], arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays without elements that the library's model has where this one has none."""
    kind = next((array.dtype for array in arrays.values()), np.float32)
    shapes = {
        name: [getattr(model.config, side) if isinstance(side, str) else side for side in shape]
        for name, shape in dialect.empty.items()
        if name not in arrays
    }
    return {name: np.zeros(shape, kind) for name, shape in shapes.items()}


def dialect_for(model: VisionModel[Any], name: str) -> Dialect:
    """The dialect of this name that a model is written in: the one that its fields are those of.

    Raises:
      DialectError: the design is not written in it, or it has no place for a field of the model.
    """
    known = [d for d in model.dialects if d.is_written and d.name == name]
    if not known:
        designs = [of.design for of in DESIGNS if any(d.name == name for d in of.dialects)]
        raise DialectError(
            f"{name!r} is a dialect of {', '.join(designs)}, this model is a {model.design}: its "
            "own names are written without a dialect"
        )
    others = [_others(dialect, model) for dialect in known]
    fewest = min(others, key=len)
    if fewest:
        field = fewest[0]
        raise DialectError(
            f"{known[others.index(fewest)].whose} has no place for this model's "
            f"{field}={getattr(model.config, field)!r}"
        )
    return known[others.index(fewest)]


def _others(dialect: Dialect, model: VisionModel[Any]) -> list[str]:
    """The fields of a model that are others than the dialect's, or more than it can say."""
    several = (dialect.config[key] for key in dialect.scalars)
    return [
        *(f for f, value in dialect.fields.items() if getattr(model.config, f) != value),
        *(f for f in several if isinstance(getattr(model.config, f), tuple)),
    ]


def heads_told_by(arrays: Mapping[str, np.ndarray], dialect: str | None) -> int | None:
    """The number of heads, where arrays of a dialect have them as an axis."""
    for known in DIALECTS:
        if known.name != dialect or not known.is_flax:
            continue
        for name, array in arrays.items():
            found = _row(known, _without_prefix(known, name))
            if found is not None and found[0].layout == "heads out" and array.ndim >= 2:
                return array.shape[-2]
    return None


def module_to_own(dialect: Dialect, path: str) -> str:
    """The dotted path here of a module of the dialect; as it is where there is none."""
    within = _without_prefix(dialect, path)
    for theirs, own in dialect.modules:
        if match := _pattern(theirs).fullmatch(within):
            return _filled(own, match.groups())
    found = _row(dialect, f"{within}.")
    return path if found is None else _filled(found[0].own, found[1]).removesuffix(".")


def _unstacked(
    dialect: Dialect, arrays: Mapping[str, np.ndarray]
) -> Iterable[tuple[str, np.ndarray]]:
    """Scanned layers, stacked along their first axis, one by one."""
    for name, array in arrays.items():
        head, found, tail = name.partition(f"{dialect.stack}/")
        if not dialect.stack or not found:
            yield name, array
            continue
        if array.ndim == 0 or array.size == 0:
            raise DialectError(f"{name}: wanted stacked layers, got the shape {array.shape}")
        for layer, part in enumerate(array):
            yield f"{head}{dialect.stack}_{layer}/{tail}", part


def _without_prefix(dialect: Dialect, name: str) -> str:
    prefix = next((p for p in dialect.prefixes if name.startswith(p)), "")
    return name.removeprefix(prefix)


def _to_own_entry(dialect: Dialect, name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    found = _row(dialect, name)
    if found is None:
        return name, array
    row, parts = found
    if not dialect.is_flax:
        if row.layout:
            array = _with_shape(name, array, row.layout.split(" for "))
        return _filled(row.own, parts), array
    leaf = parts[-1] if row.own.endswith(".") else ""
    if leaf and leaf not in _FLAX_LEAVES:
        return name, array
    said = _filled(row.own, (*parts[:-1], _FLAX_LEAVES[leaf]) if leaf else parts)
    return said, _from_flax(name, leaf, array, row.layout)


def _with_shape(name: str, array: np.ndarray, layout: Sequence[str]) -> np.ndarray:
    """An array of the first of two layouts, such as "N,D" and "1,N,D", in the second."""
    old, new = (axes.split(",") for axes in layout)
    sizes = dict(zip(old, _with_axes(name, array, len(old)).shape, strict=True))
    if sizes.get("1", 1) != 1:
        raise DialectError(f"{name}: wanted the axes {layout[0]}, got the shape {array.shape}")
    kept = [axis for axis in old if axis != "1"]
    order = [kept.index(axis) for axis in new if axis != "1"]
    array = array.reshape([sizes[axis] for axis in kept]).transpose(order)
    return array.reshape([1 if axis == "1" else sizes[axis] for axis in new])


def _row(dialect: Dialect, name: str) -> tuple[Name, tuple[str, ...]] | None:
    """The row that a name stands in, and what its wildcards are."""
    for row in dialect.names:
        for theirs in filter(None, (row.theirs, *row.also)):
            if match := _pattern(_without_prefix(dialect, theirs)).fullmatch(name):
                return row, match.groups()
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Of a name: a group for each number of a layer, and for what follows a module."""
    body = re.escape(template).replace(r"\#", r"(\d+)")
    return re.compile(body + "(.*)" * template.endswith((".", "/")))


def _filled(template: str, parts: Sequence[str]) -> str:
    """The name that a template and the parts of `_pattern` make."""
    numbers = template.count("#")
    for number in parts[:numbers]:
        template = template.replace("#", number, 1)
    return template + "".join(parts[numbers:])


def _from_flax(name: str, leaf: str, array: np.ndarray, layout: str) -> np.ndarray:
    """An array of Flax in PyTorch's layout."""
    if leaf == "bias" and layout == "heads out":  # (heads, head_dim)
        return _with_axes(name, array, 2).ravel()
    if leaf != "kernel":
        return array
    if layout == "heads out":  # (D, heads, head_dim)
        return _with_axes(name, array, 3).reshape(array.shape[0], -1).T
    if layout == "heads in":  # (heads, head_dim, D)
        return _with_axes(name, array, 3).reshape(-1, array.shape[-1]).T
    if layout == "conv":  # (h, w, C, D)
        return np.moveaxis(_with_axes(name, array, 4), (-1, -2), (0, 1))
    return _with_axes(name, array, 2).T


def _to_flax(leaf: str, array: np.ndarray, layout: str, num_heads: int) -> tuple[str, np.ndarray]:
    """The leaf and the array of Flax."""
    if leaf == "bias":
        return leaf, array.reshape(num_heads, -1) if layout == "heads out" else array
    if array.ndim == 1:
        return "scale", array
    if layout == "conv":
        return "kernel", np.moveaxis(array, (0, 1), (-1, -2))
    kernel = array.T
    if layout == "heads out":
        kernel = kernel.reshape(len(kernel), num_heads, -1)
    elif layout == "heads in":
        kernel = kernel.reshape(num_heads, -1, kernel.shape[-1])
    return "kernel", kernel


def _with_axes(name: str, array: np.ndarray, axes: int) -> np.ndarray:
    if array.ndim != axes:
        raise DialectError(f"{name}: wanted {axes} axes, got the shape {array.shape}")
    return array


def _split(dialect: Dialect, arrays: Arrays) -> Arrays:
    """Splits modules that are several here, such as the query of a pooling from its keys."""
    found: Arrays = {}
    for name, array in arrays.items():
        matches = [(_pattern(whole).fullmatch(name), parts) for whole, parts in dialect.split]
        match, parts = next(((m, parts) for m, parts in matches if m), (None, ()))
        if match is None:
            found[name] = array
            continue
        total = sum(share for _, share in parts)
        if array.ndim == 0 or len(array) % total:
            raise DialectError(f"{name}: wanted rows that {total} divides, got {array.shape}")
        ends = np.cumsum([share * len(array) // total for _, share in parts])[:-1]
        for (part, _), piece in zip(parts, np.split(array, ends), strict=True):
            found[_filled(part, match.groups())] = piece
    return found


def _rejoined(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Undoes `_split`."""
    said = dict(arrays)
    for whole, parts in dialect.split:
        first, others = parts[0][0], [part for part, _ in parts[1:]]
        for name in list(said):
            if match := _pattern(first).fullmatch(name):
                rest = [said.pop(_filled(other, match.groups())) for other in others]
                joined = np.concatenate([said.pop(name), *rest])
                said[_filled(whole, match.groups())] = joined
    return said


def _join(dialect: Dialect, arrays: Arrays) -> Arrays:
    """Joins modules that are one here, such as query, key and value."""
    for whole, parts in dialect.joined:
        patterns = [_pattern(part) for part in parts]
        joined: Arrays = {}
        for name, array in arrays.items():
            matches = [pattern.fullmatch(name) for pattern in patterns]
            match = next(filter(None, matches), None)
            if match is None:
                joined[name] = array
                continue
            found = [_filled(part, match.groups()) for part in parts]
            if matches[0] is not None:
                _check_alike(found, arrays)
                together = np.concatenate([arrays[name] for name in found])
                joined[_filled(whole, match.groups())] = together
            elif found[0] not in arrays:
                raise DialectError(f"{name}: there is no {found[0]} beside it")
        arrays = joined
    return arrays


def _check_alike(names: list[str], arrays: Arrays) -> None:
    kinds = [(arrays[n].shape, arrays[n].dtype) if n in arrays else None for n in names]
    if arrays[names[0]].ndim == 0 or any(kind != kinds[0] for kind in kinds):
        got = ", ".join(f"{kind[1]}{list(kind[0])}" if kind else "none" for kind in kinds)
        raise DialectError(
            f"{', '.join(names)}: wanted {len(names)} of one shape and type, got {got}"
        )


def _parted(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Undoes `_join`."""
    parted: Arrays = {}
    arrays = _rejoined(dialect, arrays)
    written = {row.own for row in dialect.names if row.theirs}
    joined = [(whole, parts) for whole, parts in dialect.joined if written.issuperset(parts)]
    for name, array in arrays.items():
        for whole, parts in joined:
            if match := _pattern(whole).fullmatch(name):
                thirds = np.split(array, len(parts))
                parted |= {
                    _filled(part, match.groups()): third
                    for part, third in zip(parts, thirds, strict=True)
                }
                break
        else:
            parted[name] = array
    return parted
