"""A run: what it trains, on which data and devices, and its compiled steps."""

import dataclasses
import functools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vit_jax.config import TrainConfig
from vit_jax.config.schema import DETERMINISTIC_OPS
from vit_jax.data.augment import TrainAugment, make_eval_preprocess, make_train_augment
from vit_jax.data.folder import labelled_paths, labels_of
from vit_jax.data.host_crop import RandomResizedCrop
from vit_jax.data.loader import Batches, eval_batches, steps_per_epoch, train_batches
from vit_jax.data.sources import ImageSource
from vit_jax.data.splits import Splits, open_splits
from vit_jax.data.statistics import STATISTICS, Statistics, set_name
from vit_jax.layers.attention import AttentionForm
from vit_jax.layers.forms import PLAIN, attention_form, set_form
from vit_jax.layers.stack import is_layer_weight
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, create_model, design_of
from vit_jax.models.spec import Preprocessing
from vit_jax.models.streams import Streams
from vit_jax.training.distillation import make_teacher
from vit_jax.training.mesh import (
    AXES,
    bytes_on_one_device,
    check_batch,
    make_mesh,
    process_rows,
    put_batch,
    replicated,
    stacked,
    state_shardings,
)
from vit_jax.training.metrics import AnySums, OwnSums, Sums
from vit_jax.training.mixing import make_mixing
from vit_jax.training.objectives import Objective, best_of, make_objective
from vit_jax.training.optimizer import make_optimizer, norm_in_one
from vit_jax.training.own import Own, check_measure
from vit_jax.training.own_model import build_own_model, has_statistics, open_own_model
from vit_jax.training.param_groups import parameter_groups
from vit_jax.training.resident import ResidentImages, read_images, resident
from vit_jax.training.row_keys import MAX_ROWS
from vit_jax.training.schedules import make_schedule
from vit_jax.training.state import TrainState, initial_state
from vit_jax.training.step import Batch, Steps, make_steps


class Run:
    """A run that could start. Nothing is compiled and no array is made.

    Args:
      config: what is asked for; `model.kwargs` are checked here, by the design.
      mesh: of `config_mesh`.
      model: of `model_to_train` and `set_preprocessing`: its shapes alone.
      steps_per_epoch: updates in a pass over the training split.
      splits: the data; None of a run that is only planned.
      own: what it is given in Python; None: nothing.

    Attributes:
      model: its `spec` says how images are prepared and what the classes are; its layers have the
        form that suits the devices.
      platform: of the devices, as JAX names it.
      objective: what it is trained for.
      reduces_by_hand: whether the step itself, under `jit` too, exchanges the gradients.
      reconstructs: whether the loss is that of MAE's pretraining.
      best: the figure that says which validation is best, and its sign, see `best_of`.
      figures: what rows show beside the loss, see `Own.figures`.
      total_steps: updates.
      gradient_norm: by which gradients are clipped.
      schedule: the learning rate of the n-th update, from 0.
      optimizer: the update rule.
      trained: an NNX filter of the model's variables that are trained.
      train_graph, eval_graph: the model's static halves in train and in eval mode.
      is_layer_weight: see `vit_jax.layers.stack`.
      mixing: of the training images; None: none.
      teacher: see `distillation`; None: none.
      prepare_train, prepare_eval: uint8 images to what the model takes.
      has_statistics: whether a training step moves variables of the model beside the trained ones.
      template: the state's shapes and types; `shardings`: where its arrays lie.
      resident: the splits whose images live on the devices.
      steps: `init` makes the state at step 0; the others are compiled when first called.

    Raises:
      ValueError: see `parameter_groups`, `make_teacher`, `make_mixing`.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        model: VisionModel[Any],
        steps_per_epoch: int,
        splits: Splits | None = None,
        own: Own | None = None,
    ):
        _check_independent(config, model)
        self.config, self.mesh, self.splits = config, mesh, splits
        self.own = own or Own()
        self.reconstructs = _reconstructs(config)
        train = None if splits is None else splits.train
        self.objective = make_objective(config, self.own.loss, train, model.num_classes)
        self.figures = self.own.figures(self.objective)
        self.best = best_of(config, self.objective, self.own.metrics)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * config.num_epochs
        if self.total_steps >= 2**31:
            raise ValueError(
                f"config.num_epochs: wanted fewer than 2^31 updates, got {self.total_steps:,}"
            )
        self.platform = mesh.devices.flat[0].platform
        self.reduces_by_hand = config.training.reduce_dtype != "auto" and mesh.size > 1

        self.model = model
        # Weights that lie divided between devices are gathered where they are used.
        self.gathered = replicated(mesh) if mesh.shape["fsdp"] > 1 else None
        attention = _attention(config, mesh)
        set_form(model, self.platform, self.gathered, attention, is_row_major(mesh))
        model.eval()
        self.eval_graph = nnx.graphdef(model)
        model.train()
        self.train_graph = nnx.graphdef(model)
        self.is_layer_weight = is_layer_weight(model)

        groups = parameter_groups(config.optimizer, model)
        self.schedule = make_schedule(config.optimizer, steps_per_epoch, config.num_epochs)
        in_one = self.platform == "gpu" and config.mesh.fsdp == 1
        self.gradient_norm = norm_in_one if in_one else optax.tree.norm
        self.optimizer = make_optimizer(config.optimizer, self.schedule, groups, self.gradient_norm)
        self.trained = groups.trained
        self.mixing = make_mixing(config, model.num_classes)
        self.teacher = make_teacher(config, model, self.platform, attention)
        self.prepare_train = self._prepare_train()
        preprocessing = self.preprocessing
        self.prepare_eval = make_eval_preprocess(
            model.input_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            dtype=self._pixel_dtype,
        )
        self.has_statistics = has_statistics(model)
        self.template = jax.eval_shape(self.initial_state)
        self.shardings = state_shardings(mesh, self.template)
        self.resident = self._resident()
        self._images: dict[int, ResidentImages] = {}
        self.steps: Steps = make_steps(self)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        found = self.model.spec.preprocessing
        assert found is not None  # of `set_preprocessing`
        return found

    def initial_state(self) -> TrainState:
        """The state at step 0; for `jax.jit`."""
        model, seed = self.config.model, self.config.seed
        made: VisionModel[Any]
        if self.own.model is None:
            made = create_model(model.name, rngs=Streams(seed), **model.kwargs)
        else:
            made = build_own_model(self.model.config, self.own.model, seed)
        average, figures = bool(self.config.ema.decay), self.figures
        roots = self.objective.roots

        def zeros(dtype: jnp.dtype) -> AnySums:
            return Sums.zeros(dtype) if figures is None else OwnSums.zeros(dtype, figures, roots)

        return initial_state(made, self.optimizer, self.trained, average, zeros)

    def train_batches(self, start_step: int) -> Batches:
        """This process's rows of the batches of the updates from `start_step` on, on the host."""
        data, source = self.config.data, self.data.train
        return train_batches(
            source,
            batch_size=data.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            num_steps=self.total_steps - start_step,
            num_workers=data.num_workers,
            worker_kind=data.worker_kind,  # pyright: ignore[reportArgumentType]
            image_size=self._host_size(source),
            crop=random_crop(self.config),
            repeats=data.repeated_augmentation,
            balanced=labels_of(source) if data.sampling == "balanced" else None,
            rows=process_rows(self.mesh, data.batch_size),
            with_images=not self._is_resident(source),
        )

    def eval_batches(self, source: ImageSource) -> Batches:
        """All examples of a split, this process's rows of each batch, on the host."""
        data, preprocessing = self.config.data, self.preprocessing
        return eval_batches(
            source,
            batch_size=data.eval_batch_size,
            num_workers=data.num_workers,
            worker_kind=data.worker_kind,  # pyright: ignore[reportArgumentType]
            image_size=self._host_size(source),
            crop_fraction=preprocessing.crop_fraction,
            interpolation=preprocessing.interpolation,
            rows=process_rows(self.mesh, data.eval_batch_size),
            with_images=not self._is_resident(source),
        )

    def on_device(self, batches: Batches, source: ImageSource | None = None) -> Iterator[Batch]:
        """Each batch as of `put`; None: of the training split."""
        return (self.put(batch, source) for batch in batches)

    def put(self, batch: Mapping[str, np.ndarray], source: ImageSource | None = None) -> Batch:
        """Sends a batch on its way to the devices, divided between them, without waiting.

        The images of a split that lives there are read before its first batch.
        """
        return self._filled(put_batch(self.mesh, batch), source)

    def block_on_device(self, batches: Sequence[Mapping[str, np.ndarray]]) -> Batch:
        """Sends batches on their way, as a block of `training.steps_per_dispatch`: `stacked`."""
        block = stacked(batches, self.config.training.steps_per_dispatch)
        return self._filled(put_batch(self.mesh, block, is_block=True))

    def _filled(self, batch: Batch, source: ImageSource | None = None) -> Batch:
        source = source or self.data.train
        if not self._is_resident(source):
            return batch
        if id(source) not in self._images:
            data = self.config.data
            self._images[id(source)] = read_images(
                source,
                self.mesh,
                data.num_workers,
                data.worker_kind,  # pyright: ignore[reportArgumentType]
            )
        return self._images[id(source)].filled(batch)

    def _is_resident(self, source: ImageSource) -> bool:
        return any(source is other for other in self.resident)

    @property
    def data(self) -> Splits:
        """The splits of a run that is not only planned."""
        assert self.splits is not None
        return self.splits

    def _resident(self) -> tuple[ImageSource, ...]:
        if self.splits is None:
            return ()
        gone_through = (self.splits.train, self.splits.validation)  # again and again
        sources = [source for source in gone_through if source is not None]
        places = zip(jax.tree.leaves(self.template), jax.tree.leaves(self.shardings), strict=True)
        state = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a, place in places]
        return resident(self.config.data, sources, self.mesh, bytes_on_one_device(state))

    def _host_size(self, source: ImageSource) -> tuple[int, int] | None:
        # Images of one size cross to the device as they are and are resized there.
        return None if source.image_shape else self.model.input_size

    @property
    def _pixel_dtype(self) -> Any:
        # float32 or wider: a model that computes in float64 is not fed rounded pixels.
        return jnp.promote_types(self.model.dtype, jnp.float32)

    def _prepare_train(self) -> TrainAugment:
        data, preprocessing = self.config.data, self.preprocessing
        augment = make_train_augment(
            self.model.input_size,
            padding_crop=data.padding_crop,
            rotation_degrees=data.rotation_degrees,
            flip=data.horizontal_flip,
            color_jitter=data.color_jitter,
            rand_augment=data.rand_augment,
            rand_augment_interpolation=data.interpolation,
            random_erasing=data.random_erasing,
            random_erasing_mode=data.random_erasing_mode,
            mean=preprocessing.mean,
            std=preprocessing.std,
            dtype=self._pixel_dtype,
            one_by_one=self.platform == "cpu",
            by_products=self.platform == "tpu",
        )
        if self.mesh.size == 1 or self.config.parallel == "pmap" or self.reduces_by_hand:
            return augment
        # Each device prepares its own rows. Left to itself the compiler gathers all of them on each
        # device where they are taken one by one, since it cannot divide a loop.
        rows = P(AXES)
        own_rows = functools.partial(
            jax.shard_map, mesh=self.mesh, in_specs=rows, out_specs=rows, check_vma=False
        )
        return TrainAugment(own_rows(augment.pixels), own_rows(augment.finished))


def open_run(config: TrainConfig, stated: Collection[str] = (), own: Own | None = None) -> Run:
    """Opens the data and makes the run.

    Args:
      config: of the run.
      stated: fields of the model that nobody chose: its weights state them.
      own: what the run is given in Python.

    Raises:
      ValueError: data, model, batch and devices do not fit each other.
    """
    own = own or Own()
    mesh, data = config_mesh(config), config.data
    objective = make_objective(config, own.loss)
    _check_own(config, own, objective)
    _check_deterministic(config, mesh)
    model = None if own.model is not None else model_to_train(config)
    if model is not None:
        _check_independent(config, model)  # before data are opened
    splits = own.data or open_splits(
        data.source,
        data.name or None,
        data.data_dir,
        train_split=data.train_split,
        validation_split=data.validation_split or None,
        test_split=data.test_split or None,
        seed=config.seed,
        num_train_examples=data.num_train_examples,
        exclude=data.exclude or (),
        labels_file=data.labels_file or None,
        kind=config.loss.target,
    )
    if config.evaluation.patience is not None and splits.validation is None:
        raise ValueError("config.evaluation.patience: wanted None without a validation split")
    source = splits.train
    if own.model is not None:
        model = open_own_model(own.model, config, source)
        if has_statistics(model) and (in_parts := _in_parts(config)):
            raise ValueError(
                f"model: its running statistics are of a whole batch, and {in_parts} computes it "
                "part by part: leave out one of the two"
            )
    assert model is not None
    _check_model(model, config, source, stated, own, objective)
    _limit_labels(splits, objective, model.num_classes)
    if objective.of_all is not None:
        _check_some_label(splits)
    set_preprocessing(model, config, statistics_of(config, source.channels), source)
    names = splits.class_names or None
    model.spec = dataclasses.replace(model.spec, class_names=names, target=objective.target)
    return Run(config, mesh, model, steps_per_epoch(source, data.batch_size), splits, own)


def is_row_major(mesh: Mesh) -> bool:
    """Whether what a layer returns is kept in the order of its axes, see `set_form`."""
    return mesh.size == 1 and mesh.devices.flat[0].platform == "gpu"


def _attention(config: TrainConfig, mesh: Mesh) -> AttentionForm:
    """The form of attention that suits the devices, where the config leaves it to them."""
    form = attention_form(mesh.devices.flat[0]) if config.attention == "auto" else PLAIN
    # In "heads" XLA exchanges the gradients of qkv in every part of an accumulated batch.
    is_exchanged_often = config.accumulation_steps > 1 and mesh.size > 1
    return PLAIN if form.name == "heads" and is_exchanged_often else form


def _check_deterministic(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses GPUs that were started otherwise."""
    is_set = DETERMINISTIC_OPS in os.environ.get("XLA_FLAGS", "").split()
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    if config.training.deterministic and on_gpu and not is_set:
        raise ValueError(
            f"config.training.deterministic: wanted {DETERMINISTIC_OPS} among XLA_FLAGS in the "
            "environment before JAX starts, where `vit-jax train` and `finetune` put it"
        )


def _reconstructs(config: TrainConfig) -> bool:
    return config.loss.kind == "reconstruction"


def _check_some_label(splits: Splits) -> None:
    """Refuses files to validate and test on none of which has a label, before they are read."""
    for part in (splits.validation, splits.test):
        if part is not None and labelled_paths(part) and not labels_of(part).any():
            raise ValueError(f"{part.name}: no image has a label, and mAP needs some")


def _limit_labels(splits: Splits, objective: Objective, num_classes: int) -> None:
    """Lets images have no label that the objective or the model has not."""
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            part.label_limit = objective.label_limit(num_classes, part.class_names)


def _check_own(config: TrainConfig, own: Own, objective: Objective) -> None:
    """Refuses what is given in Python and does not go together with the config."""
    if (own.data is None) == (config.data.source == "own"):
        raise ValueError(
            'config.data.source: wanted "own" where training.train is given data=, and only there; '
            f"got {config.data.source!r} with data {'not ' if own.data is None else ''}given"
        )
    if (own.model is None) == (config.model.name == "own"):
        raise ValueError(
            'config.model.name: wanted "own" where training.train is given model=, and only there; '
            f"got {config.model.name!r} with model {'not ' if own.model is None else ''}given"
        )
    if own.model is not None:
        optimizer = config.optimizer
        used = {
            "model.kwargs": config.model.kwargs,
            "init_from": config.init_from,
            "optimizer.layer_decay": optimizer.layer_decay != 1,
            "distillation": config.distillation.kind != "none",
        }
        for name in (name for name, value in used.items() if value):
            raise ValueError(f"config.{name} is for a registered model, and model= is the caller's")
    if own.data is not None and config.data.num_train_examples is not None:
        raise ValueError("config.data.num_train_examples: wanted None with data= of the caller")
    if _reconstructs(config) and (own.loss is not None or own.metrics or own.model is not None):
        raise ValueError(
            'config.loss.kind: wanted "cross_entropy" with loss=, metrics= or model= of the '
            'caller, got "reconstruction"'
        )
    if own.loss is not None and config.loss.kind != "cross_entropy":
        raise ValueError(
            'config.loss.kind: wanted "cross_entropy" with loss= of the caller, in whose place it '
            f'is, got "{config.loss.kind}"'
        )
    if objective.kind != "classification":
        used = {
            "mix": config.mix.mixup_alpha or config.mix.cutmix_alpha,
            "distillation": config.distillation.kind != "none",
            "loss.label_smoothing": config.loss.label_smoothing,
            "loss.class_weights": own.loss is not None and config.loss.class_weights,
            "loss.balanced": own.loss is not None and config.loss.balanced,
            "data.sampling": config.data.sampling != "shuffled",
        }
        for name in (name for name, value in used.items() if value):
            raise ValueError(
                f"config.{name} is for the classification loss, and this run has another: leave "
                "out one of the two"
            )


def model_to_train(config: TrainConfig) -> VisionModel[Any]:
    """The model of a run by its shapes alone.

    Raises:
      ValueError: `model.kwargs` that do not fit the design.
    """
    name = config.model.name
    design_of(name)
    try:
        return abstract_model(name, **config.model.kwargs)
    except ValueError as error:
        raise ValueError(f"config.model.kwargs: {error}") from error


def set_preprocessing(
    model: VisionModel[Any],
    config: TrainConfig,
    statistics: Statistics,
    source: ImageSource | None = None,
) -> None:
    """Describes in the model's `spec` how the run prepares images, of the training split `source`.

    Raises:
      ValueError: see `open_run`.
    """
    data = config.data
    shape = source.image_shape if source else None
    preprocessing = Preprocessing(
        tuple(statistics.mean),
        tuple(statistics.std),
        crop_fraction=_crop_fraction(config, model, source) if source else 1.0,
        interpolation=data.eval_interpolation,
        size=None if data.image_size is None else (data.image_size, data.image_size),
        resized_from=None if shape is None else (shape[0], shape[1]),
    )
    model.spec = dataclasses.replace(model.spec, preprocessing=preprocessing)


def config_mesh(config: TrainConfig, devices: Any = None) -> Mesh:
    """The mesh of a run, over all of JAX's devices or those given.

    Raises:
      ValueError: devices, batch sizes and `accumulation_steps` do not fit each other.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    data, parts = config.data, config.accumulation_steps
    check_batch("config.data.batch_size", data.batch_size, mesh, parts)
    check_batch("config.data.eval_batch_size", data.eval_batch_size, mesh)
    in_parts = _in_parts(config)
    if in_parts and data.batch_size > MAX_ROWS:
        raise ValueError(
            f"config.data.batch_size: wanted at most {MAX_ROWS} with {in_parts}, got "
            f"{data.batch_size}"
        )
    return mesh


def _in_parts(config: TrainConfig) -> str:
    """What of the config computes a batch part by part; empty: nothing."""
    if config.accumulation_steps > 1:
        return "config.accumulation_steps > 1"
    if config.training.reduce_dtype != "auto":
        return f'config.training.reduce_dtype = "{config.training.reduce_dtype}"'
    return 'config.parallel = "pmap"' if config.parallel == "pmap" else ""


def _check_independent(config: TrainConfig, model: VisionModel[Any]) -> None:
    """Refuses a model whose examples depend on each other where they are computed part by part."""
    in_parts = _in_parts(config)
    for field, value in model.independent.items():
        given = getattr(model.config, field)
        if in_parts and given != value:
            raise ValueError(
                f"config.model.kwargs.{field} = {given!r} lets the examples of a batch depend on "
                f"each other, and {in_parts} computes it part by part: leave out one of the two"
            )


def random_crop(config: TrainConfig) -> RandomResizedCrop | None:
    """The random resized crop of training images.

    The loader draws it, and cuts it where images vary in size. Those of one size cross to the
    device whole, and the step cuts them.
    """
    data = config.data
    if not data.random_resized_crop:
        return None
    (small, large), (narrow, wide) = data.crop_scale, data.crop_ratio
    return RandomResizedCrop((small, large), (narrow, wide), data.interpolation)


def _crop_fraction(config: TrainConfig, model: VisionModel[Any], source: ImageSource) -> float:
    """Of evaluation. Images that come in one size are shown whole."""
    data = config.data
    if source.image_shape:
        if data.eval_crop_fraction is not None or data.eval_interpolation != "bilinear":
            raise ValueError(
                "config.data.eval_crop_fraction and eval_interpolation are for images that vary in "
                f"size; those of {source.name} are all {source.image_shape[:2]} and are shown "
                'whole: wanted None and "bilinear", got '
                f"{data.eval_crop_fraction!r} and {data.eval_interpolation!r}"
            )
        return 1.0
    if data.eval_crop_fraction is not None:
        return data.eval_crop_fraction
    return model.spec.preprocessing.crop_fraction if model.spec.preprocessing else 1.0


def statistics_of(
    config: TrainConfig, channels: int, default: Statistics | None = None
) -> Statistics:
    """Mean and standard deviation that images are normalised with.

    Args:
      config: of the run.
      channels: of its images.
      default: where the config gives none and none are known for the set; None: an error.

    Raises:
      ValueError: the config gives none and none are known for the set, or not one a channel.
    """
    data = config.data
    if data.mean is not None and data.std is not None:
        found = Statistics(data.mean, data.std)
    else:
        known = STATISTICS.get(set_name(data.source, data.name), default)
        if known is None:
            raise ValueError(
                f"no channel statistics are known for {data.name or data.source!r}: set "
                f"config.data.mean and config.data.std (known: {', '.join(sorted(STATISTICS))})"
            )
        found = known
    if len(found.mean) != channels:
        raise ValueError(
            f"config.data.mean and std: wanted one number for each of the {channels} channels of "
            f"the images, got {found.mean!r}"
        )
    return found


def _check_model(
    model: VisionModel[Any],
    config: TrainConfig,
    source: ImageSource,
    stated: Collection[str],
    own: Own,
    objective: Objective,
) -> None:
    channels = source.channels
    if model.in_chans != channels:
        raise ValueError(
            f"the images of {source.name} have {channels} channels and the model takes "
            f"{model.in_chans}: set config.model.kwargs.in_chans={channels}"
        )
    is_measured = bool(objective.kind)
    if is_measured:
        _check_classes(model, config, source, stated, own, objective)
    if _reconstructs(config) and not getattr(model.config, "decoder", False):
        raise ValueError(
            f'config.loss.kind "reconstruction": {config.model.name} has no decoder: wanted '
            "mae_vit_* with config.model.kwargs.decoder=true"
        )
    # A model that does not take images of this size says so itself.
    batch, side = config.data.batch_size, config.data.image_size
    size = model.img_size if side is None else (side, side)
    model.train()
    images = jax.ShapeDtypeStruct((batch, *size, channels), np.float32)
    outputs = nnx.eval_shape(lambda m, x: m(x, rngs=nnx.Rngs(dropout=0)), model, images)
    labels = jax.ShapeDtypeStruct((batch, *source.label_shape), source.label_dtype)
    where, advice = "config.model.kwargs", ": choose another global_pool"
    if own.model is not None:
        where, advice = "model", ""
    for part in jax.tree.leaves(outputs) if is_measured else ():
        if part.shape != (batch, model.num_classes):
            raise ValueError(
                f"{where}: the model's output has shape {part.shape}, wanted logits of shape "
                f"{(batch, model.num_classes)}{advice}"
            )
    if is_measured:  # as the steps do: metrics see what the prediction is read from
        _, outputs = jax.eval_shape(lambda y, t: objective.losses(y, t, False), outputs, labels)
    for name, measure in {"loss": own.loss, **(own.figures(objective) or {})}.items():
        if measure is not None:
            check_measure(name, measure, outputs, labels)


def _check_classes(
    model: VisionModel[Any],
    config: TrainConfig,
    source: ImageSource,
    stated: Collection[str],
    own: Own,
    objective: Objective,
) -> None:
    _check_labels(model.num_classes, config, source, objective)
    if objective.kind == "regression":
        return
    if not source.class_names:
        return  # the model decides: see `_limit_labels`
    if own.model is not None and model.num_classes != source.num_classes:
        raise ValueError(
            f"model: its output has {model.num_classes} classes, and {source.name} has "
            f"{source.num_classes}"
        )
    if model.num_classes < source.num_classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes and the model's head only "
            f"{model.num_classes}: set config.model.kwargs.num_classes={source.num_classes}"
        )
    is_chosen = "num_classes" in config.model.kwargs and "num_classes" not in stated
    if not is_chosen and model.num_classes != source.num_classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, and {config.model.name} left alone "
            f"has {model.num_classes}: set config.model.kwargs.num_classes={source.num_classes}"
        )


def _check_labels(
    num_classes: int, config: TrainConfig, source: ImageSource, objective: Objective
) -> None:
    """Refuses labels that are not what the loss is of."""
    shape, dtype = source.label_shape, source.label_dtype
    if not objective.takes(shape, dtype):
        raise ValueError(
            f"the labels of {source.name} are {dtype} of shape {shape}: wanted {objective.wanted}, "
            f'with loss.kind="{config.loss.kind}"; or loss=, a function of outputs and labels'
        )
    number = math.prod(shape)
    if objective.one_an_output and num_classes != number:
        raise ValueError(
            f"{source.name} has {number} {'numbers' if shape else 'number'} an image and the head "
            f"of the model {num_classes} outputs: set config.model.kwargs.num_classes={number}"
        )
