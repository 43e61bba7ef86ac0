"""What the train step moves between devices: compiled for eight virtual ones of a CPU.

In the form for CPUs, and in that for all others.
"""

import functools
import json
import re
import sys
from typing import Any

import jax
import pytest
from flax import nnx

from tests import compilation
from tests.commands import run_alone
from tests.tiers import mostly_slow
from vit_jax.config import from_dict, to_dict
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.layers.forms import set_form
from vit_jax.plan.collectives import collectives, totals
from vit_jax.plan.compile import abstract_inputs, planned_run
from vit_jax.plan.hlo import HloProgram
from vit_jax.training.step import jit_train_step

_MODEL = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 64, "num_heads": 4}
# Types that the step asks to add up in; (type, shape, kind) of what the compiler exchanges.
_ADDED_UP = re.compile(r"stablehlo\.all_reduce.*?\}\) : \(tensor<[\dx]+x(\w+)>\)", re.DOTALL)
_MOVED = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\][^=\n]*? (all-\w+|collective-permute)\(")
_FULL_STEP = 1.01  # beside the gradients: the loss and the metrics, some numbers each


def _config(batch_size: int, **mesh: Any):
    fields = mesh.pop("fields", {})
    config = load_recipe(find_recipe("digits_vit"))
    model = {name: mesh.pop(name) for name in ("scan_layers", "remat") if name in mesh}
    config.model.kwargs |= _MODEL | model
    config.data.image_size = 16
    config.data.batch_size = batch_size
    config.mesh.data, config.mesh.fsdp = mesh["data"], mesh["fsdp"]
    values = to_dict(config)
    for group, of_group in fields.items():
        values[group] |= of_group
    return values


def main() -> None:
    """Compiles each config that is given as JSON, in each form, and tells what it exchanges."""
    told: list[list[Any]] = []
    for values in json.load(sys.stdin):
        run = planned_run(from_dict(values))
        inputs = abstract_inputs(run, (8, 8, 1))
        parameters = jax.tree.leaves(run.template.params)
        told.append([])
        for platform in ("cpu", "tpu"):
            set_form(run.model, platform, run.gathered)
            run.platform, run.train_graph = platform, nnx.graphdef(run.model)
            step: Any = jit_train_step(run)
            lowered = step.lower(*inputs)
            text = lowered.compile().as_text()
            rows = totals(collectives(HloProgram(text), run.mesh.size))
            told[-1].append(
                {
                    "parameters": sum(leaf.size * leaf.dtype.itemsize for leaf in parameters),
                    "bytes": {row.kind: row.bytes for row in rows},
                    "moved": sorted(set(_MOVED.findall(text))),
                    "added_up": sorted(set(_ADDED_UP.findall(lowered.as_text()))),
                }
            )
    json.dump(told, sys.stdout)


_DATA_PARALLEL = {"data": 8, "fsdp": 1}
_FSDP = {"data": 1, "fsdp": 8}
_FSDP_IN_A_SCAN = {"data": 4, "fsdp": 2, "remat": "blocks", "scan_layers": True}
_RUNS = [(32, _DATA_PARALLEL), (32, _FSDP_IN_A_SCAN), (64, _FSDP_IN_A_SCAN)]
_MIXED = {**_DATA_PARALLEL, "fields": {"mix": {"mixup_alpha": 0.8}}}
_WIDE, _NARROW = (
    {**_DATA_PARALLEL, "fields": {"training": {"reduce_dtype": kind}}}
    for kind in ("float32", "bfloat16")
)
_SLOW_RUNS = [(32, _FSDP), (64, _FSDP), (32, _MIXED), (32, _WIDE), (32, _NARROW)]


@functools.cache
def _exchanges(slow: bool) -> list[list[Any]]:
    """Of each run, in each form: one child process makes those of a tier."""
    runs = _SLOW_RUNS if slow else _RUNS
    child = run_alone(
        *("-m", "tests.plan.test_exchanges"),
        stdin=json.dumps([_config(batch, **mesh) for batch, mesh in runs]),
        timeout=None,
        variables={
            **compilation.variables(),
            "JAX_PLATFORMS": "cpu",
            # The exchanges are settled before the backend, which takes most of the time.
            "XLA_FLAGS": f"{compilation.QUICK_XLA} --xla_force_host_platform_device_count=8"
            " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        },
    )
    return json.loads(child.stdout)


def _of(mesh: dict[str, Any]) -> list[list[Any]]:
    is_slow = any(ran is mesh for _, ran in _SLOW_RUNS)
    runs, found = _SLOW_RUNS if is_slow else _RUNS, _exchanges(is_slow)
    return [forms for (_, ran), forms in zip(runs, found, strict=True) if ran is mesh]


@pytest.mark.xdist_group("exchanges")
def test_data_parallel_moves_the_gradients_once_and_nothing_else():
    (forms,) = _of(_DATA_PARALLEL)
    for found in forms:
        assert set(found["bytes"]) == {"all-reduce"}
        moved = found["bytes"]["all-reduce"]
        assert found["parameters"] <= moved < _FULL_STEP * found["parameters"]


@pytest.mark.xdist_group("exchanges")
@pytest.mark.parametrize("mesh", mostly_slow([_FSDP, _FSDP_IN_A_SCAN], [_FSDP_IN_A_SCAN]), ids=str)
def test_fsdp_moves_weights_and_no_activations(mesh):
    """However many images there are, the same bytes; of no kind that regroups activations."""
    for few, many in zip(*_of(mesh), strict=True):  # in each form
        assert few["bytes"] == many["bytes"]
        assert set(few["bytes"]) <= {"all-gather", "all-reduce", "reduce-scatter"}
        # With remat once more in the backward pass; the first and last layers are not of a stack.
        times = 2 if "remat" in mesh else 1
        assert few["bytes"]["all-gather"] < _FULL_STEP * times * few["parameters"]


@pytest.mark.slow
@pytest.mark.xdist_group("exchanges")
def test_mixing_moves_images_as_bytes():
    (forms,) = _of(_MIXED)
    for found in forms:
        images = [kind for kind, shape, _ in found["moved"] if "16,16" in shape]
        assert images
        assert set(images) == {"u8"}


@pytest.mark.slow
@pytest.mark.xdist_group("exchanges")
@pytest.mark.parametrize(("mesh", "kind"), [(_WIDE, "f32"), (_NARROW, "bf16")])
def test_gradients_are_exchanged_in_the_type_that_was_asked_for(mesh, kind):
    (forms,) = _of(mesh)
    for found in forms:  # XLA for CPUs itself adds bfloat16 up in float32
        assert found["added_up"] == [kind]
        assert {name for *_, name in found["moved"]} == {"all-reduce"}


if __name__ == "__main__":
    main()
