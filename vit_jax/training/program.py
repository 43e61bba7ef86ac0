"""The computation of a run on a mesh: its state and its steps. No data are opened."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax.config import TrainConfig
from vit_jax.data.augment import make_eval_preprocess, make_train_augment
from vit_jax.data.host_crop import RandomResizedCrop
from vit_jax.data.statistics import Statistics
from vit_jax.layers.stack import is_layer_weight
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, create_model
from vit_jax.models.streams import Streams
from vit_jax.training.distillation import make_teacher
from vit_jax.training.mesh import AXES, check_batch, make_mesh, replicated, state_shardings
from vit_jax.training.mixing import make_mixing
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.param_groups import parameter_groups
from vit_jax.training.row_keys import MAX_ROWS
from vit_jax.training.schedules import Schedule, make_schedule
from vit_jax.training.state import TrainState, initial_state, model_graphs
from vit_jax.training.step import (
    EvalStep,
    PrepareTrain,
    StepSettings,
    TrainStep,
    jit_train_step,
    make_eval_step,
    pmap_train_step,
)

# Constructor fields with which the examples of a batch are not independent, and the values with
# which they are: the batch cannot be computed part by part.
_INDEPENDENT = {"batch_first": True, "class_token_batch": 1}


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for a run.

    Attributes:
      mesh: the devices.
      settings: what the steps are made of.
      schedule: the learning rate of the n-th update, from 0.
      trained: an NNX filter of the model's variables that are trained.
      template: the state's shapes and types; `shardings`: where its arrays lie.
      init: makes the state at step 0.
      train_step, eval_step: compiled when first called.
    """

    mesh: Mesh
    settings: StepSettings
    schedule: Schedule
    trained: Any
    template: TrainState
    shardings: TrainState
    init: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep


def config_mesh(config: TrainConfig, devices: Any = None) -> Mesh:
    """The mesh of a run, over all of JAX's devices or those given.

    Raises:
      ValueError: devices, batch sizes and `accumulation_steps` do not fit each other.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    data, parts = config.data, config.accumulation_steps
    check_batch("config.data.batch_size", data.batch_size, mesh, parts)
    check_batch("config.data.eval_batch_size", data.eval_batch_size, mesh)
    if parts > 1 or config.parallel == "pmap":
        how = "config.accumulation_steps > 1" if parts > 1 else 'config.parallel = "pmap"'
        if data.batch_size > MAX_ROWS:
            raise ValueError(
                f"config.data.batch_size: wanted at most {MAX_ROWS} with {how}, got "
                f"{data.batch_size}"
            )
        for field, value in _INDEPENDENT.items():
            given = config.model.kwargs.get(field, value)
            if given != value:
                raise ValueError(
                    f"config.model.kwargs.{field} = {given!r} lets the examples of a batch depend "
                    f"on each other, and {how} computes it part by part: leave out one of the two"
                )
    return mesh


def model_maker(config: TrainConfig) -> Callable[[], VisionModel]:
    """A function that makes the model with its initial weights."""
    return lambda: create_model(config.model.name, rngs=Streams(config.seed), **config.model.kwargs)


def abstract_model_of(config: TrainConfig) -> VisionModel:
    """The model of a run by its shapes alone."""
    return abstract_model(config.model.name, **config.model.kwargs)


def image_size(config: TrainConfig, model: VisionModel) -> tuple[int, int]:
    """(height, width) that the model is given."""
    size = config.data.image_size
    return model.img_size if size is None else (size, size)


def _make_prepare_train(
    config: TrainConfig,
    mesh: Mesh,
    size: tuple[int, int],
    statistics: Statistics,
    dtype: Any,
    crop: RandomResizedCrop | None,
) -> PrepareTrain:
    data = config.data
    augment = make_train_augment(
        size,
        crop=crop,
        padding_crop=data.padding_crop,
        rotation_degrees=data.rotation_degrees,
        flip=data.horizontal_flip,
        color_jitter=data.color_jitter,
        rand_augment=data.rand_augment,
        rand_augment_interpolation=data.interpolation,
        random_erasing=data.random_erasing,
        random_erasing_mode=data.random_erasing_mode,
        mean=statistics.mean,
        std=statistics.std,
        dtype=dtype,
        one_by_one=mesh.devices.flat[0].platform == "cpu",
    )
    if mesh.size == 1 or config.parallel == "pmap":
        return augment
    # Each device prepares its own rows. Left to itself the compiler gathers all of them on each
    # device where they are taken one by one, since it cannot divide a loop.
    rows = P(AXES)
    return jax.shard_map(augment, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)


def make_program(
    config: TrainConfig,
    mesh: Mesh,
    model: VisionModel,
    statistics: Statistics,
    steps_per_epoch: int,
    crop: RandomResizedCrop | None = None,
) -> Program:
    """Makes the steps of a run. Nothing is compiled and no array is made.

    Args:
      config: the run.
      mesh: of `config_mesh`.
      model: of `abstract_model_of`.
      statistics: that images are normalised with.
      steps_per_epoch: updates in a pass over the training split.
      crop: a random crop that the step makes, of images of one size.

    Raises:
      ValueError: see `parameter_groups`.
    """
    make_model = model_maker(config)
    schedule = make_schedule(config.optimizer, steps_per_epoch, config.num_epochs)
    groups = parameter_groups(config.optimizer, model)
    optimizer = make_optimizer(config.optimizer, schedule, groups)

    def init() -> TrainState:
        return initial_state(make_model(), optimizer, groups.trained, bool(config.ema.decay))

    template = jax.eval_shape(init)
    shardings = state_shardings(mesh, template)
    size = image_size(config, model)
    # Normalised in float32 or wider: a model that computes in float64 is not fed rounded pixels.
    pixels = jnp.promote_types(model.dtype, jnp.float32)
    settings = StepSettings(
        platform=mesh.devices.flat[0].platform,
        graphs=model_graphs(model),
        is_layer_weight=is_layer_weight(model),
        gathered=replicated(mesh) if mesh.shape["fsdp"] > 1 else None,
        optimizer=optimizer,
        ema=config.ema,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        label_smoothing=config.loss.label_smoothing,
        mixing=make_mixing(config, model.num_classes),
        teacher=make_teacher(config, model, size),
        accumulation_steps=config.accumulation_steps,
        prepare_train=_make_prepare_train(config, mesh, size, statistics, pixels, crop),
        prepare_eval=make_eval_preprocess(
            size, mean=statistics.mean, std=statistics.std, dtype=pixels
        ),
    )
    return Program(
        mesh=mesh,
        settings=settings,
        schedule=schedule,
        trained=groups.trained,
        template=template,
        shardings=shardings,
        init=jax.jit(init, out_shardings=shardings),
        train_step=(
            pmap_train_step(settings, mesh)
            if config.parallel == "pmap"
            else jit_train_step(settings, mesh, shardings)
        ),
        eval_step=make_eval_step(settings, mesh, shardings),
    )
