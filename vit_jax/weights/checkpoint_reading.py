"""Reading checkpoints: every bit is verified, and what is damaged is known to be.

Orbax notices most damage when it reads; what it does not (changed bits in an array) the stored
fingerprint tells. The info binds the items of a checkpoint to each other and to its step: it holds,
for each item, a hash of what it says and of the item's fingerprint. The formats (JSON, zarr arrays
in OCDBT) hold data alone: nothing that is read can run code.
"""

import contextlib
import dataclasses
import gc
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

from vit_jax.storage import absolute, check_regular
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
        None before the first.
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


def _is_of_closed_loop(error: BaseException | None) -> bool:
    """Whether a thread of tensorstore found the event loop closed to which it would report."""
    return str(error) == "Event loop is closed"


def silence_closed_loops() -> None:
    """Leaves out, from now on, what tensorstore's late threads cannot report.

    They show that the event loop is closed to which they would: through either hook of Python's.
    """
    unraisable, unhandled = sys.unraisablehook, sys.excepthook

    def all_other_unraisable(error: Any) -> None:
        if not _is_of_closed_loop(error.exc_value):
            unraisable(error)

    def all_other_unhandled(kind: Any, error: BaseException, trace: Any) -> None:
        if not _is_of_closed_loop(error):
            unhandled(kind, error, trace)

    sys.unraisablehook, sys.excepthook = all_other_unraisable, all_other_unhandled


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Leaves out what Orbax and tensorstore print of an error beside raising it.

    Orbax logs each error of its threads as several tracebacks and leaves coroutines to the garbage
    collector, which shows one more for each; tensorstore's threads show that the event loop, to
    which they would report, is closed. What matters of it reaches us as an exception.
    """
    logger = logging.getLogger("absl")
    level, hook = logger.level, sys.unraisablehook

    def all_other(unraisable: Any) -> None:
        closed = _is_of_closed_loop(unraisable.exc_value)
        if not closed and not inspect.iscoroutine(unraisable.object):
            hook(unraisable)

    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = all_other
    try:
        yield
    finally:
        logger.setLevel(level)
        if sys.unraisablehook is all_other:  # not that of `silence_closed_loops`, which is to stay
            sys.unraisablehook = hook


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
        gc.collect()  # the coroutines, while they are quiet
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
    if not isinstance(said, dict):
        raise ValueError("its info is no JSON object")
    bonds = said.pop(_BONDS, None)  # of versions up to 0.1.0 there are none
    info = _info(dict(said))
    if step not in (None, info.step):
        raise ValueError(f"it lies where that of step {step} should, and is of step {info.step}")
    for item, arrays in wanted.items():
        stored = np.asarray(read[item][FINGERPRINT])
        now = np.asarray(fingerprint_of({name: read[item][name] for name in arrays}))
        different = np.flatnonzero(now != stored)
        if different.size:
            raise ValueError(f"{sorted(arrays)[different[0]]} is not what was written")
        if bonds is not None and _bond(said, stored) != dict(bonds).get(item):
            raise ValueError(f"its {item} and its info are not of one checkpoint")
    return {item: read[item] for item in wanted}, info


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
      ValueError: it is damaged, holds no averaged weights, or is of another model; entries that
        differ are named.
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
        raise ValueError(f"the checkpoint {path} is damaged: {one_line(error)}") from error
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
        raise ValueError(f"the checkpoint {path} is damaged: {error}") from error
    return read[MODEL] | read.get(EMA, {}), info
