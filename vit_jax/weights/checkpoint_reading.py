"""Reading checkpoints: every bit is verified, and what is damaged is known to be.

Orbax notices most damage when it reads; what it does not (changed bits in an array) the stored
fingerprint tells. The info binds the items of a checkpoint to each other and to its step: it holds,
for each item, a hash of what it says and of the item's fingerprint. The formats (JSON, zarr arrays
in OCDBT) hold data alone: nothing that is read can run code.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.storage import absolute, check_regular, read_json
from vit_jax.weights.fingerprint import fingerprint

MODEL, EMA, TRAINING, INFO = "model", "ema", "training", "info"
FINGERPRINT = "fingerprint"  # stands among the arrays of each item; in the order of their names
_BONDS = "bonds"  # in the info: {item: hash}
_KINDS = {
    "step": (int,),
    "spec": (dict,),
    "best_step": (int, type(None)),
    "best_top1": (float, int, type(None)),
    "rows": (dict, type(None)),
}


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says in words and numbers beside its arrays.

    Attributes:
      step: updates done.
      spec: the model's description, of `vit_jax.weights.spec_json.spec_to_dict`.
      best_step, best_top1: the best validation so far (of the averaged weights, if there are any),
        None before the first. Of another `evaluation.metric` it is that, or minus it (loss, mae).
      rows: how many rows of metrics.jsonl are of its steps, by split; None: not known.
    """

    step: int
    spec: dict[str, Any]
    best_step: int | None = None
    best_top1: float | None = None
    rows: dict[str, int] | None = None


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not hold what was written."""


def named_arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under dotted names, in the tree's order."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        named[name.removesuffix(".value")] = leaf  # an nnx.Variable around the array
    return named


def fingerprint_of(arrays: Mapping[str, jax.Array]) -> jax.Array:
    return fingerprint([arrays[name] for name in sorted(arrays)])


def bound_info(info: CheckpointInfo, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of a checkpoint's info holds: the info, and what binds the items to it.

    Args:
      info: of the checkpoint.
      fingerprints: of each item.
    """
    said = dataclasses.asdict(info)
    return {**said, _BONDS: {item: _bond(said, mark) for item, mark in fingerprints.items()}}


def _bond(said: Mapping[str, Any], item_fingerprint: Any) -> str:
    text = json.dumps([said, np.asarray(item_fingerprint).tolist()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # tensorstore nests what happened: the outer end says where, the inner end says why.
    return text if len(text) <= 300 else f"{text[:120]} ... {text[-150:]}"


def _is_of_late_thread(error: BaseException | None, of: Any = None) -> bool:
    """Whether an error is what a thread of Orbax or tensorstore finds out after a failed read.

    tensorstore's find the event loop closed to which they would report; Orbax leaves coroutines to
    the garbage collector, which shows the error of each. The read itself has raised it.
    """
    orbax = inspect.iscoroutine(of) and "orbax" in of.cr_code.co_filename
    return orbax or str(error) == "Event loop is closed"


class _AllOther:
    """A hook of Python's, `unraisablehook` or `excepthook`, that leaves those errors out."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def __call__(self, *said: Any) -> None:
        first, *rest = said
        error, of = (rest[0], None) if rest else (first.exc_value, first.object)
        if not _is_of_late_thread(error, of):
            self._hook(*said)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter of asyncio's log, which tells of Orbax's tasks once they are garbage."""
    text = record.getMessage()
    return "orbax" not in text and "tensorstore" not in text


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Leaves out what Orbax and tensorstore print of an error beside raising it.

    Orbax logs each error of its threads as several tracebacks. What threads find out later is left
    out from now on. What matters of it reaches us as an exception.
    """
    for name in ("unraisablehook", "excepthook"):
        hook = getattr(sys, name)
        if not isinstance(hook, _AllOther):
            setattr(sys, name, _AllOther(hook))
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_info(path: pathlib.Path, step: int) -> CheckpointInfo:
    """What the checkpoint of a step says, without its arrays, which are not verified.

    Raises:
      DamagedCheckpointError: it is not there, cannot be read, or is of another step.
    """
    try:
        said = read_json(path / INFO / "metadata")
        info, _ = _unbound(said)
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(one_line(error)) from error
    if info.step != step:
        raise DamagedCheckpointError(f"it is of step {info.step}")
    return info


def read_items(
    path: pathlib.Path, wanted: Mapping[str, Mapping[str, Any]], step: int | None
) -> tuple[dict[str, Any], CheckpointInfo]:
    """Reads items of the checkpoint at `path` and verifies them.

    Args:
      wanted: {item: {name: shape, dtype and sharding}}.
      step: of which it is to be; None: of any.

    Raises:
      DamagedCheckpointError: it is not whole.
    """
    with quiet_orbax():
        try:
            return _read_and_verify(absolute(path), wanted, step)
        except Exception as error:
            # Orbax, tensorstore and JSON raise their own kinds, and bare Exception.
            reason = one_line(error)
    raise DamagedCheckpointError(reason)


def _read_and_verify(
    path: pathlib.Path, wanted: Mapping[str, Mapping[str, Any]], step: int | None
) -> tuple[dict[str, Any], CheckpointInfo]:
    check_regular(path)
    items = {}
    for item, arrays in wanted.items():
        sharding = next(iter(arrays.values())).sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        stored = jax.ShapeDtypeStruct((len(arrays),), np.uint32, sharding=sharding)
        items[item] = ocp.args.StandardRestore({**arrays, FINGERPRINT: stored})
    with _reader() as reader:
        read = reader.restore(path, ocp.args.Composite(**items, info=ocp.args.JsonRestore()))
    said = read[INFO]
    info, bonds = _unbound(said)
    if step not in (None, info.step):
        raise ValueError(f"it lies where that of step {step} should, and is of step {info.step}")
    for item, arrays in wanted.items():
        stored = np.asarray(read[item][FINGERPRINT])
        now = np.asarray(fingerprint_of({name: read[item][name] for name in arrays}))
        different = np.flatnonzero(now != stored)
        if different.size:
            raise ValueError(f"{sorted(arrays)[different[0]]} is not what was written")
        if bonds is not None and _bond(said, stored) != bonds.get(item):
            raise ValueError(f"its {item} and its info are not of one checkpoint")
    return {item: read[item] for item in wanted}, info


def _unbound(said: Any) -> tuple[CheckpointInfo, dict[str, Any] | None]:
    """The info in `said`, and what binds the items to it, which is taken out of `said`.

    None binds those of 0.1.0, which stated no `spec`.

    Raises:
      ValueError: it is no info, or one that has lost what binds.
    """
    if not isinstance(said, dict):
        raise ValueError("its info is no JSON object")
    bonds = said.pop(_BONDS, None)
    if not isinstance(bonds, dict) and (bonds is not None or "spec" in said):
        raise ValueError(
            f"its info states {_BONDS}={str(bonds)[:80]!r}, wanted a hash of each item"
        )
    return _info(dict(said)), bonds


def _info(said: dict[str, Any]) -> CheckpointInfo:
    """What a checkpoint says, also one of a version up to 0.1.0, which had no `spec`."""
    if "spec" not in said and isinstance(said.get("preprocessing"), dict):
        names, size = said.pop("class_names", ()), said.pop("data_size", None)
        preprocessing = {**said.pop("preprocessing"), "resized_from": size}
        said["spec"] = {
            "spec_version": 0,
            "preprocessing": preprocessing,
            "class_names": names or None,
        }
    wrong = [name for name, kinds in _KINDS.items() if type(said.get(name)) not in kinds]
    wrong += sorted(set(said) - set(_KINDS))
    rows = said.get("rows")
    if isinstance(rows, dict) and any(type(count) is not int for count in rows.values()):
        wrong.append("rows")
    if wrong:
        raise ValueError(f"its info states {wrong[0]}={str(said.get(wrong[0]))[:80]!r}")
    return CheckpointInfo(**said)


def _reader() -> ocp.Checkpointer:
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            model=ocp.StandardCheckpointHandler(),
            ema=ocp.StandardCheckpointHandler(),
            training=ocp.StandardCheckpointHandler(),
            info=ocp.JsonCheckpointHandler(),
        )
    )


def read_model(
    path: pathlib.Path, arrays: Mapping[str, Any], ema: bool = False, step: int | None = None
) -> tuple[dict[str, jax.Array], CheckpointInfo]:
    """Reads the arrays of the model in a checkpoint.

    Args:
      path: of the checkpoint.
      arrays: {name: array} of the model they are for.
      ema: the averaged weights; what is not trained, and so not averaged, as it is.
      step: of which it is to be; None: of any.

    Returns:
      {name: array} in the types stored, and what the checkpoint says.

    Raises:
      DamagedCheckpointError: it is damaged.
      ValueError: it holds no averaged weights, or is of another model; entries that differ are
        named.
    """
    path = absolute(path)
    try:
        check_regular(path)
        with _reader() as reader:
            items = reader.metadata(path).item_metadata
        if items.get(MODEL) is None:
            raise ValueError("it holds no model")
        stored = dict(items[MODEL].tree)
        mean = None if items.get(EMA) is None else dict(items[EMA].tree)
        for tree in (stored, mean or {}):
            tree.pop(FINGERPRINT, None)
    except Exception as error:
        reason = f"the checkpoint {path} is damaged: {one_line(error)}"
        raise DamagedCheckpointError(reason) from error
    chosen = {MODEL: stored}
    if ema:
        if mean is None:
            raise ValueError(f"the checkpoint {path} is of a run that averages no weights (ema)")
        chosen[EMA] = mean
    shapes = {name: tuple(array.shape) for name, array in stored.items()}
    problems = [f"{name} is missing" for name in arrays if name not in shapes]
    problems += [f"{name} is unexpected" for name in shapes if name not in arrays]
    problems += [
        f"{name} has shape {shapes[name]}, wanted {tuple(arrays[name].shape)}"
        for name in arrays
        if name in shapes and shapes[name] != tuple(arrays[name].shape)
    ]
    if problems:
        raise ValueError(f"the checkpoint {path} is of another model: {'; '.join(problems)}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        item: {
            name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype, sharding=here)
            for name, array in tree.items()
        }
        for item, tree in chosen.items()
    }
    try:
        read, info = read_items(path, wanted, step)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged: {error}") from error
    return read[MODEL] | read.get(EMA, {}), info
