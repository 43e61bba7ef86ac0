"""The training step and the evaluation step: pure functions, compiled for a mesh."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax.data.augment import example_keys
from vit_jax.layers.forms import compiler_options
from vit_jax.layers.masking import patch_noise
from vit_jax.layers.stack import constrain
from vit_jax.training.distillation import TaughtStep, distillation_loss
from vit_jax.training.ema import update_average
from vit_jax.training.losses import classification_loss, wide
from vit_jax.training.mesh import batch_sharding, replicated
from vit_jax.training.metrics import AnySums, OwnSums, Sums
from vit_jax.training.mixing import Mixing, mix_batch
from vit_jax.training.own import augmented
from vit_jax.training.row_keys import key_of_rows
from vit_jax.training.state import TrainState

if TYPE_CHECKING:
    from vit_jax.training.run import Run

Batch = dict[str, Any]
# Each returns the new state, and the loss of the batch, which tells when the step is done.
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
# (state, batch, sums) -> sums with the batch's added.
EvalStep = Callable[[TrainState, Batch, AnySums], AnySums]

_DROPOUT, _AUGMENT, _MIX, _OWN = 0, 1, 2, 3
_DEVICES = "devices"


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled functions of a run.

    Attributes:
      init: makes the state at step 0.
      train, eval: compiled when first called.
    """

    init: Callable[[], TrainState]
    train: TrainStep
    eval: EvalStep


def make_steps(run: "Run") -> Steps:
    """The compiled functions of a run; nothing is compiled yet."""
    return Steps(
        init=jax.jit(run.initial_state, out_shardings=run.shardings),
        train=pmap_train_step(run) if run.config.parallel == "pmap" else jit_train_step(run),
        eval=make_eval_step(run),
    )


def augment_key(seed: int) -> jax.Array:
    """What the keys of `example_keys` derive from in a run of this seed."""
    return jax.random.fold_in(jax.random.key(seed), _AUGMENT)


def _key_of_step(seed: int, use: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), step)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _at_asked_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a run whose matmuls have the precision that the run asks for."""

    @functools.wraps(function)
    def call(run: "Run", *arguments: Any, **named: Any) -> Any:
        asked = run.config.matmul_precision
        with jax.default_matmul_precision(asked) if asked else contextlib.nullcontext():
            return function(run, *arguments, **named)

    return call


@_at_asked_precision
def _apply(
    run: "Run",
    graph: nnx.GraphDef,
    params: nnx.State,
    frozen: nnx.State,
    images: jax.Array,
    rngs: nnx.Rngs | None = None,
    noise: jax.Array | None = None,
) -> tuple[Any, nnx.State | None]:
    """The model's output, and its other variables where the call has moved them.

    Weights outside of its layers are gathered here, the others there. With `noise` the output is
    the loss of each image's hidden patches.
    """
    if run.gathered is not None:
        params, frozen = (
            nnx.map_state(
                lambda path, leaf: (
                    leaf if run.is_layer_weight(path) else constrain(leaf, run.gathered)
                ),
                state,
            )
            for state in (params, frozen)
        )
    if run.has_statistics:  # variables that belong to this trace, so that the call may move them
        frozen = jax.tree.map(lambda leaf: leaf, frozen)
    model = nnx.merge(graph, params, frozen)
    if noise is None:
        outputs = model(images, rngs=rngs)
    else:
        outputs = model.reconstruction_losses(images, noise, rngs=rngs)
    if not run.has_statistics:
        return outputs, None
    _, _, moved = nnx.split(model, run.trained, ...)
    return outputs, moved


def _prepared(run: "Run", step: jax.Array, batch: Batch) -> jax.Array:
    """The batch's images, augmented and normalised."""
    keys = example_keys(augment_key(run.config.seed), step // run.steps_per_epoch, batch["index"])
    images = batch["image"]
    if run.own.augment is not None:
        own_keys = jax.vmap(lambda key: jax.random.fold_in(key, _OWN))(keys)
        images = augmented(run.own.augment, own_keys, images)
    return run.prepare_train(keys, images, batch.get("crop"))


def _noise(run: "Run", step: jax.Array | int, batch: Batch) -> jax.Array | None:
    """What decides which patches of the images are hidden; None where none are."""
    if not run.reconstructs:
        return None
    num_patches = math.prod(run.model.token_grid(*run.model.input_size))
    return patch_noise(run.config.seed, step, batch["index"], num_patches)


def _losses(run: "Run", outputs: Any, targets: jax.Array, smoothing: float) -> tuple[Any, Any]:
    """The loss of each example, and what its figures are read from."""
    if run.reconstructs:
        return wide(outputs), outputs
    if run.own.loss is None:
        return classification_loss(outputs, targets, smoothing)
    return wide(run.own.loss(outputs, targets)), outputs


def _sums(run: "Run", losses: jax.Array, prediction: Any, batch: Batch) -> AnySums:
    """The metrics of a batch."""
    if run.figures is None:
        return Sums.of_batch(losses, prediction, batch["label"], batch["mask"])
    found = {name: measure(prediction, batch["label"]) for name, measure in run.figures.items()}
    return OwnSums.of_batch(losses, found, batch["mask"])


def _divided(batch: Batch, parts: int) -> Batch:
    """The batch in parts, as a leading axis.

    Part i is rows i, i + parts, ... of the batch, so that every device has rows of its own in each
    part and none moves.
    """
    return {
        name: value.reshape(-1, parts, *value.shape[1:]).swapaxes(0, 1)
        for name, value in batch.items()
    }


def _mixed(run: "Run", mixing: Mixing, axis: str | None, step: jax.Array, batch: Batch) -> Batch:
    """The batch with its images ready and mixed, and with "target", their shares of the classes.

    Partners may lie in any part of an accumulated batch, so that this is done before it is divided:
    its images are kept whole as floats, where without mixing those of one part are. "label" becomes
    the class of the larger share, against which accuracy is counted.
    """
    parts = run.config.accumulation_steps
    if parts > 1:
        images = jax.lax.map(lambda part: _prepared(run, step, part), _divided(batch, parts))
        images = images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
    else:
        images = _prepared(run, step, batch)
    key = _key_of_step(run.config.seed, _MIX, step)
    images, targets = mix_batch(key, images, batch["label"], mixing, axis)
    labels = jnp.argmax(targets, axis=-1).astype(batch["label"].dtype)
    return batch | {"image": images, "target": targets, "label": labels}


def _gradients(
    run: "Run",
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    teacher: nnx.State | None,
) -> tuple[jax.Array, tuple[AnySums, nnx.State | None], nnx.State]:
    """The loss of a batch, its metrics, what the model moved, and the gradients.

    `teacher`: its arrays.
    """
    if run.mixing is None:
        images, targets = _prepared(run, state.step, batch), batch["label"]
    else:
        images, targets = batch["image"], batch["target"]
    taught = None
    if run.teacher is not None:
        assert teacher is not None
        taught = run.teacher.logits(teacher, images)

    def loss_of(params: nnx.State) -> tuple[jax.Array, tuple[AnySums, nnx.State | None]]:
        rngs = nnx.Rngs(dropout=dropout_key)
        noise = _noise(run, state.step, batch)
        logits, moved = _apply(run, run.train_graph, params, state.frozen, images, rngs, noise)
        smoothing = run.config.loss.label_smoothing
        if run.teacher is None or taught is None:
            losses, prediction = _losses(run, logits, targets, smoothing)
        else:
            distillation = run.teacher.config
            losses, prediction = distillation_loss(logits, targets, taught, distillation, smoothing)
        return losses.mean(), (_sums(run, losses, prediction, batch), moved)

    (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return loss, found, gradients


def _accumulated_gradients(
    run: "Run",
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    first: Any,
    teacher: nnx.State | None,
) -> tuple[jax.Array, AnySums, nnx.State]:
    """As `_gradients`, computed part by part: memory for the activations of one part.

    `first` is the batch's own first row in the global batch.
    """
    parts = run.config.accumulation_steps
    rows = batch["label"].shape[0] // parts
    divided = _divided(batch, parts)

    def of_part(part: Batch, key: jax.Array) -> tuple[jax.Array, AnySums, nnx.State]:
        loss, (sums, _), gradients = _gradients(run, state, part, key, teacher)
        return loss, sums, gradients

    def add_part(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        number, part = numbered
        key = key_of_rows(dropout_key, first + number, rows, parts)
        return jax.tree.map(jnp.add, total, of_part(part, key)), None

    shapes = jax.eval_shape(lambda: of_part(jax.tree.map(lambda x: x[0], divided), dropout_key))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (loss, sums, gradients), _ = jax.lax.scan(add_part, nothing, (jnp.arange(parts), divided))
    return loss / parts, sums, jax.tree.map(lambda gradient: gradient / parts, gradients)


@_at_asked_precision
def _train_step(
    run: "Run",
    axis: str | None,
    state: TrainState,
    batch: Batch,
    teacher: nnx.State | None = None,
) -> tuple[TrainState, jax.Array]:
    """One update. With `axis`, `batch` is this device's part and the update is that of them all."""
    dropout_key = _key_of_step(run.config.seed, _DROPOUT, state.step)
    if run.mixing is not None:
        batch = _mixed(run, run.mixing, axis, state.step, batch)
    rows = batch["label"].shape[0]
    first = 0 if axis is None else rows * jax.lax.axis_index(axis)
    moved = None
    if run.config.accumulation_steps > 1:
        loss, sums, gradients = _accumulated_gradients(
            run, state, batch, dropout_key, first, teacher
        )
    else:
        if axis is not None:
            dropout_key = key_of_rows(dropout_key, first, rows)
        loss, (sums, moved), gradients = _gradients(run, state, batch, dropout_key, teacher)
    if axis is not None:
        loss, gradients = jax.lax.pmean((loss, gradients), axis)
        sums = jax.lax.psum(sums, axis)
    updates, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
    params = cast(nnx.State, optax.apply_updates(state.params, updates))
    step = state.step + 1
    ema = None if state.ema is None else update_average(run.config.ema, state.ema, params, step)
    # Parameters too: a checkpoint after a finite loss may hold what the next loss will be NaN of.
    broken = ~(jnp.isfinite(loss) & _all_finite(params))
    first = jnp.where(broken & (state.nonfinite_step == 0), step, state.nonfinite_step)
    new_state = TrainState(
        step=step,
        params=params,
        frozen=state.frozen if moved is None else moved,
        opt_state=opt_state,
        sums=cast(Any, state.sums) + sums,
        nonfinite_step=first,
        ema=ema,
    )
    return new_state, loss


def jit_train_step(run: "Run") -> TrainStep:
    """One plain jitted step: the compiler divides the work as the arrays lie. Donates the state."""
    whole, teacher = replicated(run.mesh), run.teacher
    step = jax.jit(
        lambda state, batch, *taught: _train_step(run, None, state, batch, *taught),
        in_shardings=(run.shardings, batch_sharding(run.mesh), *([whole] if teacher else [])),
        out_shardings=(run.shardings, whole),
        donate_argnums=0,
        compiler_options=compiler_options(run.platform),
    )
    return TaughtStep(step, teacher, whole) if teacher else step


def pmap_train_step(run: "Run") -> TrainStep:
    """The same step, written for one device and mapped: gradients are averaged by hand.

    State and loss are whole on each device and look like one array, so that all else is as with
    `jit_train_step`. Donates the state.
    """
    teacher, mesh = run.teacher, run.mesh
    mapped: Any = jax.pmap(
        lambda state, batch, *taught: _train_step(run, _DEVICES, state, batch, *taught),
        axis_name=_DEVICES,
        in_axes=(None, 0, *([None] if teacher else [])),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    whole, alone = replicated(mesh), jax.process_count() == 1
    # How pmap itself places what it returns: given otherwise, the second step compiles anew.
    returned = NamedSharding(Mesh(mesh.devices.reshape(-1), (_DEVICES,)), P())

    def of_all_processes(leaf: jax.Array) -> jax.Array:
        # Of many processes each gets its own copies; together they are one array. Nothing moves.
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, whole, copies)

    def step(state: TrainState, batch: Batch, *taught: Any) -> tuple[TrainState, jax.Array]:
        parts = {
            name: value.reshape(mesh.size, -1, *value.shape[1:]) for name, value in batch.items()
        }
        if alone and state.step.sharding != returned:
            state = jax.device_put(state, returned)
        result = mapped(state, parts, *taught)
        return result if alone else jax.tree.map(of_all_processes, result)

    return TaughtStep(step, teacher, returned if alone else whole) if teacher else step


def make_eval_step(run: "Run") -> EvalStep:
    """The metrics of one batch in eval mode, padding left out; donates the sums."""

    def step(params: nnx.State, frozen: nnx.State, batch: Batch, sums: Any) -> AnySums:
        images = run.prepare_eval(batch["image"])
        noise = _noise(run, 0, batch)  # the same at every evaluation
        outputs, _ = _apply(run, run.eval_graph, params, frozen, images, noise=noise)
        losses, prediction = _losses(run, outputs, batch["label"], 0.0)
        batch_sums: Any = _sums(run, losses, prediction, batch)
        return sums + batch_sums

    whole, shardings = replicated(run.mesh), run.shardings
    compiled = jax.jit(
        step,
        in_shardings=(shardings.params, shardings.frozen, batch_sharding(run.mesh), whole),
        out_shardings=whole,
        donate_argnums=3,
        compiler_options=compiler_options(run.platform),
    )
    return lambda state, batch, sums: compiled(state.params, state.frozen, batch, sums)
