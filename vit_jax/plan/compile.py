"""Compiles the train step of a run for devices that are not there."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax.config import TrainConfig
from vit_jax.data.statistics import IMAGE_SHAPES, Statistics, set_name
from vit_jax.models.base import VisionModel
from vit_jax.models.description import num_parameters
from vit_jax.models.macs import count_traced_macs
from vit_jax.training.mesh import batch_sharding, bytes_on_one_device
from vit_jax.training.run import (
    Run,
    config_mesh,
    model_to_train,
    set_preprocessing,
    statistics_of,
)
from vit_jax.training.step import jit_train_step

# The learning rate alone depends on it, as a number inside the program.
_STEPS_PER_EPOCH = 1000
# On chips with a SparseCore XLA offloads large gathers and exchanges to it, in an instruction that
# its own printer refuses. These options keep them where all else is.
_PRINTABLE = {
    "xla_tpu_offload_gather_to_sparsecore": "false",
    **{
        f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "false"
        for kind in ("all_reduce", "all_gather", "reduce_scatter")
    },
}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs, as XLA lays them out.

    Attributes:
      arguments: the state and the batch that go in.
      outputs: what comes out and does not lie where something came in.
      temporaries: activations, gradients and all else between.
      code: the program.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Bytes on one device that a step starts from, by shapes alone: nothing is compiled.

    Attributes:
      parameters: with the frozen tables.
      optimizer: its moments.
      batch: images, labels, and where they come from.
      ema: the averaged weights.
    """

    parameters: int
    optimizer: int
    batch: int
    ema: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A train step compiled, or the reason why it cannot be.

    Attributes:
      devices: of the mesh; mesh: their numbers along its axes.
      image: (height, width, channels) of the images that reach the device.
      parameters: of the model, in all; parameter_bytes: theirs.
      step_flops: 2 for each multiply-accumulate of the step as it is written, over all devices:
        with what is computed again, without what no one needs (the gradient of the images).
      inputs: of one device.
      seconds: that the compiler took.
      memory: None where the program does not fit.
      needed_bytes: on one device, as far as XLA says.
      text: the program; empty where it does not fit.
      remark: how the text differs from the program of a real run; empty: it does not.
    """

    devices: int
    mesh: dict[str, int]
    image: tuple[int, int, int]
    parameters: int
    parameter_bytes: int
    step_flops: int
    inputs: Inputs
    seconds: float
    memory: Memory | None
    needed_bytes: int | None
    text: str
    remark: str = ""

    @property
    def is_compiled(self) -> bool:
        """False where XLA says that the program does not fit."""
        return self.memory is not None


def stored_image(config: TrainConfig, model: VisionModel[Any]) -> tuple[int, int, int]:
    """(height, width, channels) of the images that reach the device. No data are opened."""
    data = config.data
    name = set_name(data.source, data.name)
    # All others are cropped to the model's size on the host.
    size = IMAGE_SHAPES.get(name, (*model.input_size, model.in_chans))
    if size[-1] != model.in_chans:
        raise ValueError(
            f"the images of {name} have {size[-1]} channels and the model takes {model.in_chans}: "
            f"set config.model.kwargs.in_chans={size[-1]}"
        )
    return size


def _label_kind(run: Run) -> tuple[tuple[int, ...], Any]:
    """Shape and type of an image's label."""
    if run.objective.one_an_output:
        return (run.model.num_classes,), np.float32
    return (), np.int32


def abstract_inputs(
    run: Run, image: tuple[int, int, int]
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """State and batch of a train step, as shapes that know where they lie."""
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        run.template,
        run.shardings,
    )
    rows, place = run.config.data.batch_size, batch_sharding(run.mesh)
    kinds = {
        "image": (image, np.uint8),
        "label": _label_kind(run),
        "index": ((), np.int32),
        "mask": ((), np.bool_),
    }
    data = run.config.data
    if data.random_resized_crop and set_name(data.source, data.name) in IMAGE_SHAPES:
        kinds["crop"] = ((5,), np.int32)  # the step cuts it
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)
        for name, (shape, dtype) in kinds.items()
    }
    return state, batch


def planned_run(
    config: TrainConfig,
    devices: Sequence[Any] | None = None,
    steps_per_epoch: int = _STEPS_PER_EPOCH,
) -> Run:
    """A run over devices that may be those of a topology; no data are opened.

    Raises:
      ValueError: batch, model and devices do not fit each other.
    """
    mesh, model = config_mesh(config, devices), model_to_train(config)
    channels = (
        0.5,
    ) * model.in_chans  # two numbers a channel inside the program, whatever they are
    statistics = statistics_of(config, model.in_chans, Statistics(channels, channels))
    set_preprocessing(model, config, statistics)
    return Run(config, mesh, model, steps_per_epoch)


def compile_step(
    config: TrainConfig, devices: Sequence[Any], options: Mapping[str, bool] | None = None
) -> Compiled:
    """Compiles the train step of `config` over `devices`, which may be those of a topology.

    `options` are of XLA, on top of those that the step has.

    It is the `jit` form of the step, also where `config.parallel` is "pmap": JAX compiles pmap only
    for devices that are there.

    Raises:
      ValueError: batch, model and devices do not fit each other.
    """
    run = planned_run(config, devices)
    image = stored_image(config, run.model)
    state, batch = abstract_inputs(run, image)
    step: Any = jit_train_step(run)
    traced = step.trace(state, batch)
    lowered = traced.lower()
    memory, needed, text, remark = None, None, "", ""
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options and dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = _needed(str(error))
        compiled = None
    seconds = time.perf_counter() - start
    if compiled is not None:
        stats = compiled.memory_analysis()
        memory = Memory(
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
        )
        needed = memory.total
        text, remark = _text(lowered, compiled)
    # With those that are not trained, without the tables that are no parameters.
    parameters = jax.tree.leaves(nnx.state(run.model, nnx.Param))
    return Compiled(
        devices=run.mesh.size,
        mesh=dict(run.mesh.shape),
        image=image,
        parameters=num_parameters(run.model),
        parameter_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in parameters),
        step_flops=2 * count_traced_macs(traced),
        inputs=Inputs(
            parameters=bytes_on_one_device((state.params, state.frozen)),
            optimizer=bytes_on_one_device(state.opt_state),
            batch=bytes_on_one_device(batch),
            ema=bytes_on_one_device(state.ema),
        ),
        seconds=seconds,
        memory=memory,
        needed_bytes=needed,
        text=text,
        remark=remark,
    )


def _text(lowered: Any, compiled: Any) -> tuple[str, str]:
    """The text of a compiled program, and in what it is not that program's."""
    try:
        return compiled.as_text(), ""
    except jax.errors.JaxRuntimeError as error:
        if "async-update" not in str(error):
            raise
    remark = "counted without offloads to the SparseCore: XLA cannot print a program with them"
    return lowered.compile(compiler_options=_PRINTABLE).as_text(), remark


def _needed(message: str) -> int | None:
    """The bytes that XLA says a program would take, of its message; None: it does not say."""
    match = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"memory required for [\w ]+ \(([\d.]+)([KMGT]?)\) exceeds", message
    )
    return int(float(match[1]) * _UNITS[match[2]]) if match else None
