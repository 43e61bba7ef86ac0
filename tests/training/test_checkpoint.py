"""What is written comes back, or is known to be damaged."""

import dataclasses
import gc
import json
import logging
import shutil
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vit_jax.layers.variables import Frozen
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.mesh import make_mesh, state_shardings
from vit_jax.training.state import TrainState, initial_state
from vit_jax.weights.checkpoint_reading import (
    CheckpointInfo,
    DamagedCheckpointError,
    _AllOther,
    named_arrays,
    quiet_orbax,
    read_info,
    read_model,
)


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """The garbage is collected for each damaged checkpoint: not that of all tests before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Model(nnx.Module):
    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.layers = nnx.List([nnx.Param(jnp.asarray(generator.normal(size=(8, 40)), "float32"))])
        self.half = nnx.Param(jnp.asarray(generator.normal(size=(300,)), jnp.bfloat16))
        self.table = Frozen(jnp.asarray(generator.normal(size=(5, 5)), "float32"))


def make_state(seed: int = 0) -> TrainState:
    return initial_state(Model(seed), optax.adamw(1e-3))


def info(step: int, best: int | None = None) -> CheckpointInfo:
    return CheckpointInfo(step, {"mean": [0.5]}, best, None if best is None else 0.75)


def model_arrays() -> dict[str, Any]:
    """Those that the item of the model holds, by name."""
    template = make_state(0)
    return named_arrays(template.params) | named_arrays(template.frozen)


def restore(directory, say=pytest.fail, ema: bool = False):
    state = make_state(99)
    if ema:
        state = dataclasses.replace(state, ema=state.params)
    shardings = state_shardings(make_mesh(1, 1), state)
    checkpoints = Checkpoints(directory, 2, True)
    try:
        return checkpoints.restore(state, shardings, say)
    finally:
        checkpoints.close()


def same(first: TrainState, second: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


@pytest.fixture
def written(tmp_path):
    """Checkpoints of steps 1 and 2, from seeds 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 5, True)
    for step in (1, 2):
        state = dataclasses.replace(make_state(step), step=jnp.asarray(step, jnp.int32))
        checkpoints.save(state, info(step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_every_bit_comes_back(written):
    state, read = restore(written)
    assert same(state, dataclasses.replace(make_state(2), step=jnp.asarray(2, jnp.int32)))
    assert read == info(2)


def test_latest_and_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2, True)
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 2)):
        if best:
            checkpoints.keep_best_of(best)
        checkpoints.save(make_state(), info(step, best))
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 5]
    # After a resume as well.
    checkpoints = Checkpoints(tmp_path, 1, True)
    state = make_state()
    checkpoints.restore(state, state_shardings(make_mesh(1, 1), state), pytest.fail)
    checkpoints.keep_best_of(2)
    checkpoints.save(state, info(6, 2))
    checkpoints.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 6]


def test_best_goes_if_it_is_not_wanted(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, False)
    for step in (1, 2):
        checkpoints.save(make_state(), info(step, 1))
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_saving_a_step_again_is_no_harm(written):
    checkpoints = Checkpoints(written, 5, True)
    checkpoints.save(make_state(7), info(2))
    checkpoints.close()
    assert same(
        restore(written)[0], dataclasses.replace(make_state(2), step=jnp.asarray(2, jnp.int32))
    )


# In arrays, an item's own directory: a file of each kind that Orbax writes.
DAMAGE = {"emptied": lambda data: b"", "halved": lambda data: data[: len(data) // 2], "gone": None}


@pytest.mark.parametrize("damage", [*DAMAGE, "flipped"])
def test_a_damaged_file_is_harmless_or_the_checkpoint_before_is_used(written, damage, tmp_path):
    good = {step: (make_state(step)) for step in (1, 2)}
    used = []
    names = [
        p.relative_to(written / "2") for p in sorted((written / "2").rglob("*")) if p.is_file()
    ]
    # Those of the model's arrays and all that is not arrays; the other items are written alike.
    names = [name for name in names if name.parts[0] != "training"]
    assert len(names) > 8
    for number, name in enumerate(names):
        copy = tmp_path / f"copy{number}" / "checkpoints"
        shutil.copytree(written, copy)
        path = copy / "2" / name
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        elif damage == "flipped":
            changed = bytearray(data)
            changed[len(data) // 2] ^= 0x10
            path.write_bytes(bytes(changed))
        else:
            path.write_bytes(DAMAGE[damage](data))
        said = []
        with quiet_orbax():
            state, read = restore(copy, said.append)
        used.append(read.step)
        wanted = dataclasses.replace(good[read.step], step=jnp.asarray(read.step, jnp.int32))
        assert same(state, wanted), name
        assert bool(said) == (read.step == 1), name
        if said:
            assert "the checkpoint of step 2 is damaged, using that of step 1" in said[0]
            assert (copy.parent / "checkpoints.damaged" / "2").is_dir()
            assert not (copy / "2").exists()
    assert 1 in used


@pytest.mark.parametrize("item", ["model", "training", "ema", "info"])
@pytest.mark.parametrize("other", ["step", "run"])
def test_items_of_two_checkpoints_are_no_checkpoint(tmp_path, item, other):
    """Of another step of the run, or of the same step of another run, as a partial copy leaves."""
    for run, seed in (("run", 2), ("other", 7)):
        checkpoints = Checkpoints(tmp_path / run, 5, True)
        for step in (1, 2):
            state = make_state(seed * step)
            state = dataclasses.replace(
                state, step=jnp.asarray(step * seed, jnp.int32), ema=make_state(seed + step).params
            )
            checkpoints.save(state, info(step, best=step * seed))
        checkpoints.close()
    source = tmp_path / ("run/1" if other == "step" else "other/2") / item
    shutil.rmtree(tmp_path / "run" / "2" / item)
    shutil.copytree(source, tmp_path / "run" / "2" / item)
    said = []
    assert restore(tmp_path / "run", said.append, ema=True)[1].step == 1
    assert "the checkpoint of step 2 is damaged" in said[0]
    wanted = "not of one checkpoint" if (item, other) != ("info", "step") else "is of step 1"
    assert wanted in said[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best_top1": 0.5}, "its model and its info are not of one checkpoint"),
        ({"bonds": {}}, "its model and its info are not of one checkpoint"),
        ({"bonds": [3]}, "its info states bonds='[3]', wanted a hash of each item"),
        ({"bonds": None}, "its info states bonds='None'"),
        ({"rows": {"train": "3"}}, "its info states rows="),
        ({"step": "2"}, "its info states step='2'"),
        ({"step": None}, "its info states step='None'"),
        ({"spec": 3}, "its info states spec='3'"),
        ({"best_step": 1.5}, "its info states best_step='1.5'"),
        ({"more": 1}, "its info states more='1'"),
    ],
)
def test_an_info_that_was_edited(written, change, words):
    path = written / "2" / "info" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="damaged") as error:
        read_model(written / "2", model_arrays())
    assert words in str(error.value)


def test_a_checkpoint_of_an_earlier_version_binds_nothing(written):
    path = written / "2" / "info" / "metadata"
    values = json.loads(path.read_text())
    for name in ("bonds", "spec", "rows"):
        del values[name]
    path.write_text(json.dumps(values | {"preprocessing": {"mean": [0.5]}}))
    assert restore(written)[1].step == 2


def test_an_info_alone(written):
    assert read_info(written / "2", 2) == info(2)
    with pytest.raises(DamagedCheckpointError, match="it is of step 2"):
        read_info(written / "2", 1)
    with pytest.raises(DamagedCheckpointError, match="No such file"):
        read_info(written / "3", 3)


def test_a_run_goes_on_after_damage(written):
    (written / "2" / "info" / "metadata").write_text("{")
    checkpoints = Checkpoints(written, 5, True)
    state = make_state()
    checkpoints.restore(state, state_shardings(make_mesh(1, 1), state), lambda text: None)
    checkpoints.save(make_state(4), info(2))
    checkpoints.close()
    assert same(restore(written)[0], make_state(4))


def test_what_is_left_of_a_killed_write_is_removed(written):
    unfinished = written / "3.orbax-checkpoint-tmp"
    shutil.copytree(written / "2", unfinished)
    assert restore(written)[1].step == 2
    assert not unfinished.exists()


def test_only_the_model_can_be_read(written):
    arrays = model_arrays()
    read, _ = read_model(written / "1", arrays)
    np.testing.assert_array_equal(read["table"], make_state(1).frozen["table"][...])
    with pytest.raises(ValueError, match=r"another model: more is missing; table is unexpected"):
        read_model(written / "1", {k: v for k, v in arrays.items() if k != "table"} | {"more": 1})


def test_closed_loops_are_silent_and_all_else_is_not(monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: heard.append(error))
    monkeypatch.setattr(sys, "unraisablehook", lambda error: heard.append(error.exc_value))
    for _ in range(2):
        with quiet_orbax():  # the hooks outlive it: tensorstore's threads may be late
            pass
    assert isinstance(sys.unraisablehook, _AllOther)
    assert not isinstance(sys.unraisablehook._hook, _AllOther)
    log, sent = logging.getLogger("asyncio"), []
    handler = logging.Handler()
    handler.emit = lambda record: sent.append(record.getMessage())
    log.addHandler(handler)
    for text in ("a task of orbax/checkpoint", "ValueError('[tensorstore_spec=...]')", "another"):
        log.error(text)
    log.removeHandler(handler)
    assert sent == ["another"]
    closed, other = RuntimeError("Event loop is closed"), ValueError("another")
    for error in (closed, other):
        sys.excepthook(type(error), error, None)
        sys.unraisablehook(types.SimpleNamespace(exc_value=error, object=None))
    assert heard == [other, other]
